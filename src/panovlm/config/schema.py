"""All settings of PanoVLM, typed.

Every default stands here, in the recipe, in :mod:`~panovlm.config.data_settings` or in a
resampler's own.

A :class:`~panovlm.config.model_recipe.Recipe` is the part that decides what a trained model
computes; it travels in every checkpoint. :class:`Settings` is a whole experiment: a recipe plus how
to train it and on what. No torch is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from panovlm.config.base import Field, StrictModel
from panovlm.config.data_settings import Data, Kind, StageData, SyntheticScenes, WeightedTable
from panovlm.config.model_recipe import (
    DEFAULT_SYSTEM_MESSAGE,
    RESAMPLER_CONFIGS,
    CropStrategy,
    Fraction,
    Generation,
    ImageProcessing,
    Layout,
    LoRASettings,
    ModelSettings,
    Recipe,
    SystemMessages,
    TextLength,
)
from panovlm.config.paths import Paths
from panovlm.config.readers import Before, Limits
from panovlm.config.stages import STAGE_ALIASES, STAGES

__all__ = [
    "DEFAULT_SYSTEM_MESSAGE",
    "RESAMPLER_CONFIGS",
    "STAGES",
    "STAGE_ALIASES",
    "Attention",
    "CropStrategy",
    "Data",
    "Environment",
    "Experiment",
    "Generation",
    "ImageProcessing",
    "Kind",
    "Layout",
    "LoRASettings",
    "ModelSettings",
    "Paths",
    "Recipe",
    "Settings",
    "StageConfig",
    "StageData",
    "SyntheticScenes",
    "SystemMessages",
    "Trainable",
    "Training",
    "WeightedTable",
    "usually_trainable",
]


class Experiment(StrictModel):
    """Name of the experiment; it names the run folder."""

    name: str = ""
    """Empty or ``auto``: made from the names of the parts."""
    auto_name: bool = False
    """Make the name from the parts although one is given."""
    description: str = ""
    """For people; nothing reads it."""


Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]


class Environment(StrictModel):
    """Machine and reproducibility."""

    seed: int = Field(default=42, ge=0, le=2**32 - 1)
    """Seed of initial weights, order of the data and augmentation."""
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    """Where training runs."""
    devices: Annotated[int, Limits(ge=1)] | Literal["auto", -1] = "auto"
    """How many devices; -1: every accelerator; ``auto``: likewise, or one process on a CPU."""
    strategy: str = "auto"
    """Lightning's name of the distribution strategy; those that split the model over processes
    (fsdp, deepspeed) are refused."""
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed"] = "auto"
    """``auto``: bf16-mixed on an accelerator that supports it, else 32-true."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    """CPU threads of torch; unset: torch decides."""
    scan_backend: Literal["auto", "torch", "numba", "triton", "mamba_ssm"] = "auto"
    """What computes Mamba's selective scan, to the same numbers. ``numba``: compiled loops on the
    CPU (extra ``fast``); ``triton``: kernels for CUDA devices; ``mamba_ssm``: those of the package
    mamba-ssm; ``auto``: numba for large scans on the CPU where it is installed, else torch."""
    attn_implementation: Attention = "auto"
    """How tower and language model compute attention: torch's fused one, step by step, or that of
    the package flash-attn (CUDA, bfloat16 or float16); ``auto``: what transformers takes for the
    model. No checkpoint records it."""
    compile: bool = False
    """Have torch compile the layers of tower and language model in training, which then takes less
    time per step after a first minute; needs a C++ compiler. No checkpoint records it."""

    def _check(self) -> None:
        fitting = {
            "numba": ("auto", "cpu"),
            "triton": ("auto", "gpu"),
            "mamba_ssm": ("auto", "gpu"),
        }
        if self.accelerator not in fitting.get(self.scan_backend, (self.accelerator,)):
            raise ValueError(
                f"scan_backend is {self.scan_backend!r}, which does not work with the accelerator "
                f"{self.accelerator!r}; set scan_backend to auto or torch"
            )


class Trainable(StrictModel):
    """Which components a stage trains."""

    vision_blocks: int = Field(default=0, ge=-1)
    """Last n blocks of the vision tower; 0 none, -1 the whole tower."""
    resampler: bool = True
    """The resampler."""
    vicreg_projector: bool = False
    """The head of the overlap loss."""
    projector: bool = False
    """The Linear between resampler and language model."""
    language_model: bool = False
    """The whole language model (its adapters, if any, are trained in any case)."""


class StageConfig(StrictModel):
    """One training stage."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the training tables."""
    lr: float = Field(default=2e-5, gt=0)
    """Highest learning rate."""
    batch_size: int = Field(default=1, ge=1)
    """Panoramas per step of one device."""
    accumulate_grad_batches: int = Field(default=2, ge=1)
    """Batches per optimizer step; all labelled tokens (stage vision: panoramas) count alike."""
    warmup_ratio: Fraction = 0.1
    """Fraction of the optimizer steps with rising learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Fall of the learning rate after the warm-up, to zero for cosine and linear."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decay of matrices; vectors and Mamba's ``A_log`` have none."""
    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 switches clipping off."""
    max_text_length: TextLength | None = None
    """Tokens of text per sample in this stage; unset: the model's."""
    questions_per_sample: int = Field(default=1, ge=1)
    """Rows about one panorama that share its views; each stays a conversation of its own."""
    trainable: Trainable | None = None
    """Unset: vision trains resampler and overlap head, the others resampler and projector. What a
    given block leaves out follows the same rule."""
    val_check_interval: Annotated[float, Limits(gt=0, le=1)] | Annotated[int, Limits(ge=1)] = 1.0
    """Fraction of an epoch, or number of steps, between validations."""
    patience: int = Field(default=0, ge=0)
    """Validations without improvement before the stage stops early; 0: never."""
    data: StageData | None = None
    """Tables of this stage; unset: those of ``data``."""
    lora: LoRASettings | None = None
    """Adapters of this stage; unset, or what a given block leaves out: as in the top-level block
    ``lora`` (finetune only)."""


def usually_trainable(stage: str) -> Trainable:
    """Return what ``stage`` trains where its configuration does not say."""
    if stage == "vision":
        return Trainable(vicreg_projector=True)
    return Trainable(projector=True)


def _complete_trainable(stages: Any) -> Any:
    """Fill a partial ``trainable`` block with what its stage usually trains."""
    if not isinstance(stages, Mapping):
        return stages
    return {name: _with_usual_components(name, stage) for name, stage in stages.items()}


def _with_usual_components(name: str, stage: Any) -> Any:
    if not isinstance(stage, Mapping) or not isinstance(stage.get("trainable"), Mapping):
        return stage
    trainable = {**usually_trainable(name).model_dump(), **stage["trainable"]}
    return {**stage, "trainable": trainable}


class Training(StrictModel):
    """The stages and what they share."""

    prefix: str = ""
    """Name of result files, and of the experiment where that has no name."""
    stages: tuple[str, ...] = STAGES
    """Stages to run, in this order."""
    stage_configs: Annotated[dict[str, StageConfig], Before(_complete_trainable)]
    """One block per stage."""
    num_workers: Annotated[int, Limits(ge=0)] | Literal["auto"] = "auto"
    """Processes that load panoramas; 0: the training process itself. ``auto``: one for every core
    that training does not need, at most 8; none with ``cache_views``."""
    views_on: Literal["loader", "device"] = "loader"
    """Where perspective views are cut, to the same bits: in loaders, or on the training device."""
    eval_batch_size: int = Field(default=8, ge=1)
    """Questions per batch of an evaluation."""
    system_msg: str | None = None
    """Overrides ``system_messages.default`` when given."""
    augment: bool = False
    """Colour jitter of the training views."""
    yaw_turns: int = Field(default=1, ge=1)
    """Turn every training panorama by a chance multiple of 360° / n, and the directions in its
    texts with it; 1: no turning. Texts with directions need 2, 4 or 8."""
    cache_views: bool | Literal["disk"] = False
    """Keep the views of every panorama: ``true`` in memory, rendered before training; ``disk`` in
    ``paths.cache_dir``, rendered when they are first needed, for every run with the same views."""
    cache_features: bool = False
    """Keep what the frozen vision tower makes of every panorama in ``paths.cache_dir``, computed
    before training, and read it instead of the panorama in every epoch, stage and run with the same
    tower and views."""
    cache_limit: float = Field(default=100.0, gt=0)
    """GiB that the views, and as much again that the features, of one run's panoramas may take on
    disk; a run that needs more is refused before they are computed."""
    checkpoint_every_n_steps: int = Field(default=500, ge=1)
    """Optimizer steps between two writes of last.ckpt."""
    save: Literal["all", "trainable"] = "all"
    """What a checkpoint holds: every weight, or all but the frozen tensors that are still those of
    the named backbones; these are then kept by name and digest."""
    reload_check: bool = True
    """Before the first step, write a checkpoint and load it in a new process; read back every
    checkpoint that is written. A run whose checkpoints would not load stops at once."""
    wandb_project: str | None = None
    """Project to log to with Weights & Biases (to be installed besides); unset: no such log."""

    def _check(self) -> None:
        self._check_stages()
        self._check_caches()

    def _check_caches(self) -> None:
        turned = ("yaw_turns", self.yaw_turns > 1, "turns every panorama by chance")
        cut = ("views_on", self.views_on == "device", "device would have nothing to cut")
        colours = ("augment", self.augment, "changes the colours of every panorama by chance")
        unread = ("cache_views", self.cache_views is True, "keeps pixels that would never be read")
        for cache, kept, conflicts in (
            ("cache_views", "the views", (turned, cut)),
            ("cache_features", "what the tower makes", (colours, turned, cut, unread)),
        ):
            for name, wrong, why in conflicts:
                if getattr(self, cache) and wrong:
                    raise ValueError(
                        f"{cache} keeps {kept} of each panorama once and for all, but {name} "
                        f"{why}; switch one of the two off"
                    )

    def _check_stages(self) -> None:
        if not self.stage_configs:
            raise ValueError("stage_configs is empty; configure at least one stage")
        for stage in (*self.stages, *self.stage_configs):
            if stage not in STAGES:
                raise ValueError(f"there is no stage {stage!r}; stages are {', '.join(STAGES)}")
        for stage in self.stages:
            if stage not in self.stage_configs:
                raise ValueError(
                    f"stage {stage!r} is in training.stages (all of {', '.join(STAGES)} when not "
                    f"given), but stage_configs has only {', '.join(sorted(self.stage_configs))}"
                )


class Settings(Recipe):
    """One experiment: a :class:`Recipe` plus how to train it and on what."""

    experiment: Experiment = Field(default_factory=Experiment)
    environment: Environment = Field(default_factory=Environment)
    training: Training
    data: Data = Field(default_factory=Data)
    paths: Paths = Field(default_factory=Paths)

    @classmethod
    def _before(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fill a partial ``lora`` block of a stage from the top-level one."""
        match values:
            case {"lora": Mapping() as shared, "training": {"stage_configs": Mapping() as stages}}:
                filled = {
                    name: {**stage, "lora": {**shared, **stage["lora"]}}
                    if isinstance(stage, Mapping) and isinstance(stage.get("lora"), Mapping)
                    else stage
                    for name, stage in stages.items()
                }
                return {**values, "training": {**values["training"], "stage_configs": filled}}
            case _:
                return values

    def _check(self) -> None:
        if self.training.save == "trainable" and self.environment.precision == "bf16-true":
            raise ValueError(
                "training.save is 'trainable', but environment.precision 'bf16-true' changes the "
                "type of the backbones, so that they cannot be left to the models they came from; "
                "set one of the two otherwise"
            )
        self._check_quantization()

    def _check_quantization(self) -> None:
        """Refuse what a quantised language model cannot be asked for."""
        kind = self.models.language_quantization
        if kind == "none":
            return
        told = f"models.language_quantization is {kind!r}, "
        if self.models.language_config is not None:
            raise ValueError(
                f"{told}but models.language_config builds an untrained language model; name a "
                "trained one with models.language_model_name and leave language_config out"
            )
        if self.training.save != "trainable":
            raise ValueError(
                f"{told}so that the language model's weights are not there to be saved; set "
                "training.save to 'trainable', which leaves them to the model of that name"
            )
        for name, stage in self.training.stage_configs.items():
            if stage.trainable is not None and stage.trainable.language_model:
                raise ValueError(
                    f"{told}but training.stage_configs.{name}.trainable.language_model asks to "
                    "train it; rounded weights cannot be trained. Train adapters (lora.use_lora), "
                    "or set models.language_quantization to none"
                )

    def recipe(self) -> Recipe:
        """Return the part that travels in a checkpoint, with ``training.system_msg`` settled."""
        parts = {name: getattr(self, name) for name in Recipe.model_fields}
        if self.training.system_msg is not None:
            parts["system_messages"] = SystemMessages(default=self.training.system_msg)
        return Recipe(**parts)
