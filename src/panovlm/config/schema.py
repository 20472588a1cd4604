"""All settings of PanoVLM, typed. Every default stands here or in a resampler's recipe.

A :class:`Recipe` is the part that decides what a trained model computes; it travels in every
checkpoint. :class:`Settings` is a whole experiment: a recipe plus how to train it and on what.
No torch is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from panovlm.config.base import StrictModel
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipe, recipes
from panovlm.models.resamplers.recipe import ResamplerSettings

RESAMPLER_CONFIGS: dict[str, ResamplerSettings] = {
    name: found.settings() for name, found in recipes().items()
}
"""The preset of every resampler architecture, built from the one place its defaults stand."""

STAGES = ("vision", "resampler", "finetune")
"""Training stages in their natural order."""

STAGE_ALIASES = {
    "vision_pretraining": "vision",
    "vision_pretrain": "vision",
    "joint_vision_resampler": "vision",
    "joint_resampler": "vision",
    "resampler_training": "resampler",
    "instruction_tuning": "finetune",
    "instruction_tune": "finetune",
    "final_finetune": "finetune",
}
"""Older names of the stages."""

DEFAULT_SYSTEM_MESSAGE = "You are a helpful AI assistant specialized in analyzing panoramic images."

CropStrategy = Literal[
    "e2p", "sliding_window", "cubemap", "anyres", "anyres_max", "anyres_e2p", "resize"
]
Layout = Literal["original", "panovlm-1"]
Fraction = Annotated[float, Field(ge=0, lt=1)]
TextLength = Annotated[int, Field(ge=1)] | Literal["auto", "auto:dataset"]


def _pair(value: object) -> object:
    """Read one number as a square size."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


Size = Annotated[
    tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], BeforeValidator(_pair)
]
"""(height, width) in pixels; one number means a square."""


class ModelSettings(StrictModel):
    """The network: names and configurations of its backbones, and everything between them."""

    vision_name: str = "google/siglip-base-patch16-224"
    """Hub id or local folder of the vision tower; only a label when ``vision_config`` is given."""
    vision_config: dict[str, Any] | None = None
    """Hugging Face configuration of the tower. In an experiment: build it untrained from this."""
    language_model_name: str = "Qwen/Qwen2.5-0.5B-Instruct"
    """Hub id or local folder of the language model; a label when ``language_config`` is given."""
    language_config: dict[str, Any] | None = None
    """Hugging Face configuration of the language model. In an experiment: build it untrained."""
    tokenizer_name: str | None = None
    """Hub id or folder of the tokenizer; unset: the language model's own. A language model built
    untrained and without tokenizer gets a word tokenizer made from its training texts."""

    resampler_type: str = "mlp"
    """Architecture between tower and projector, one of the registered resamplers."""
    resampler_config: SerializeAsAny[ResamplerSettings] = Field(
        default_factory=lambda given: RESAMPLER_CONFIGS[given["resampler_type"]]
    )
    """Settings of that architecture; what is not given comes from its preset."""
    latent_dimension: int = Field(default=768, ge=1)
    """Width of the resampled tokens."""

    use_vicreg_norm: bool = True
    """LayerNorm on the tower's output, in every stage."""
    use_vicreg_projector: bool = True
    """Head for the overlap loss, used in stage vision only."""
    vicreg_projector_dim: int | None = Field(default=None, ge=1)
    """Output width of that head; unset: ``latent_dimension``."""
    vicreg_projector_hidden: int | None = Field(default=None, ge=1)
    """Hidden width of that head; unset: ``vicreg_projector_dim``."""
    vicreg_projector_depth: int = Field(default=2, ge=1)
    """Linear layers of that head."""
    vicreg_projector_ln: bool = True
    """LayerNorm after each hidden layer of that head."""
    vicreg_loss_weight: float = Field(default=1.0, ge=0)
    """Factor of the whole overlap loss; 0 switches it off."""
    vicreg_similarity_weight: float = Field(default=25.0, ge=0)
    """Weight of the term that makes overlapping tokens equal."""
    vicreg_variance_weight: float = Field(default=25.0, ge=0)
    """Weight of the term that keeps every channel spread out."""
    vicreg_covariance_weight: float = Field(default=1.0, ge=0)
    """Weight of the term that keeps channels from repeating each other."""
    vicreg_gamma: float = Field(default=1.0, gt=0)
    """Standard deviation that every channel shall have at least."""
    vicreg_mode: Literal["pairwise", "batchwise"] = "pairwise"
    """Variance and covariance over the tokens of one pair of views, or of all pairs together."""

    overlap_ratio: Fraction = 0.5
    """Fraction of a view's width that it shares with the next one, as the model uses it for
    positions, stitching and the overlap loss."""
    global_view: Literal["apart", "first_view"] = "apart"
    """What happens to a leading view of the whole panorama: ``apart`` keeps its tokens in front,
    without position, stitching or overlap loss; ``first_view`` treats it as one more tile."""
    use_projection_positional_encoding: bool = True
    """Add the panoramic position of each token before the projection."""
    pe_spatial_encoding_type: Literal["sinusoidal", "none"] = "sinusoidal"
    """Whether row and column terms join the yaw term."""
    pe_enable_continuity: bool = True
    """Positions follow the overlap of neighbouring views (true) or count views (false)."""
    pe_temperature: float = Field(default=10000.0, gt=1)
    """Base of the wavelengths of the sinusoids."""
    pe_dropout: Fraction = 0.0
    """Dropout after the positions were added; training only."""
    stitching_mode: Literal["drop_overlap", "stride_views", "concat", "resample"] = "drop_overlap"
    """How the views' token grids become one strip: without the columns that a view shares with the
    one before (``drop_overlap``, ``stride_views``), side by side, or resampled at even places."""
    stitch_target_cols: int = Field(default=0, ge=0)
    """Columns of the ``resample`` mode; 0: as many as there are distinct ones."""
    stitch_target_to_view_width: bool = False
    """In the ``resample`` mode: as many columns as one view has."""
    stitch_interp: Literal["nearest", "linear"] = "nearest"
    """Interpolation of the ``resample`` mode."""

    use_text_projection: bool = False
    """Linear on the text embeddings, applied in stage resampler only."""
    training_placeholder: bool = True
    """Put the vision placeholder into training texts where prompts have it; false: vision tokens
    go to the fallback position in training, as in the original system."""
    vision_token_fallback_position: Literal["prefix", "suffix"] = "prefix"  # noqa: S105
    """Where vision tokens go when the text has no placeholder."""
    max_text_length: TextLength = 512
    """Tokens of text per sample; longer text is cut."""
    default_generation_prompt: str = "Describe the panoramic scene."
    """What is asked where no question is given."""
    layout: Layout = "panovlm-1"
    """Which family of checkpoints this model belongs to. It decides only what is assumed for a
    file whose metadata is lost: the defaults of today, or those of the original system."""

    @field_validator("resampler_type")
    @classmethod
    def _canonical_type(cls, value: str) -> str:
        try:
            return recipe(value).name
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @field_validator("resampler_config", mode="before")
    @classmethod
    def _settings_of_that_type(cls, value: object, info: ValidationInfo) -> object:
        """Read ``resampler_config`` with the settings class of ``resampler_type``.

        A BiMamba can so never be built from the MLP's settings: settings of another architecture
        are refused, and absent ones come from the preset of this architecture.
        """
        name = info.data.get("resampler_type")
        if name is None:  # the type was refused, and that alone is reported
            return RESAMPLER_CONFIGS["mlp"]
        if value is None:
            return RESAMPLER_CONFIGS[name]
        settings = recipe(name).settings
        if isinstance(value, ResamplerSettings) and type(value) is not settings:
            raise ValueError(
                f"holds {type(value).__name__}, but resampler_type is {name!r}, "
                f"which needs {settings.__name__}"
            )
        return settings.model_validate(value)


class ImageProcessing(StrictModel):
    """How a panorama becomes the views that the vision tower sees."""

    crop_strategy: CropStrategy = "anyres_e2p"
    """Which views are cut; docs/panoramas.md shows each strategy."""
    image_size: Size | None = None
    """Pixels of one view; unset: the tower's own size."""
    overlap_ratio: Fraction = 0.5
    """Fraction of the field of view shared by neighbouring views."""
    fov_deg: float = Field(default=90.0, gt=0, lt=180)
    """Horizontal and vertical field of view of one perspective view, in degrees."""
    use_vision_processor: bool = False
    """Resize and normalise with the tower's own Hugging Face image processor."""
    vision_processor: dict[str, Any] | None = None
    """Configuration of that processor; filled in when a checkpoint is written."""
    anyres_patch_size: int = Field(default=336, ge=8)
    """Side of the letterboxed whole view of the any-resolution strategies, in pixels."""
    anyres_max_patches: int = Field(default=12, ge=1)
    """Views of ``anyres`` and ``anyres_max`` besides the whole panorama."""
    normalize: bool = True
    """Subtract the mean and divide by the standard deviation of each channel."""
    image_mean: tuple[float, float, float] | None = None
    """Per channel; unset: the tower's processor, else ImageNet."""
    image_std: tuple[float, float, float] | None = None
    """Per channel; unset: as for ``image_mean``."""


class LoRASettings(StrictModel):
    """Low-rank adapters on the language model, used in stage finetune."""

    use_lora: bool = False
    """Whether there are adapters."""
    rank: int = Field(default=32, ge=1)
    """Inner width r of an adapter."""
    alpha: float = Field(default=64, gt=0)
    """Numerator of an adapter's scale, alpha / rank."""
    dropout: Fraction = 0.1
    """Dropout before an adapter; training only."""
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Names of the Linear layers that get an adapter."""


class Generation(StrictModel):
    """How answers are generated."""

    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer, in tokens."""
    min_new_tokens: int = Field(default=0, ge=0)
    """Shortest answer, in tokens."""
    do_sample: bool = False
    """False: always the most probable token, so that an evaluation can be repeated exactly."""
    temperature: float = Field(default=0.6, gt=0)
    """Divides the logits; only when sampling."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Smallest set of tokens whose probabilities reach this sum; only when sampling."""
    top_k: int = Field(default=20, ge=0)
    """Most tokens to choose from, 0 for all; only when sampling."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Penalty of tokens that were there before; 1 is none."""
    length_penalty: float = 1.0
    """Above 0 favours longer answers; only with several beams."""
    num_beams: int = Field(default=1, ge=1)
    """Beams of the search; 1 is greedy (or sampling)."""


class SystemMessages(StrictModel):
    """System message of the conversation; an empty string drops it."""

    default: str = DEFAULT_SYSTEM_MESSAGE
    """First message of every conversation."""


class Recipe(StrictModel):
    """Everything that decides what a trained model computes, as it travels in a checkpoint."""

    models: ModelSettings = Field(default_factory=ModelSettings)
    image_processing: ImageProcessing = Field(default_factory=ImageProcessing)
    lora: LoRASettings = Field(default_factory=LoRASettings)
    generation: Generation = Field(default_factory=Generation)
    system_messages: SystemMessages = Field(default_factory=SystemMessages)


class Experiment(StrictModel):
    """Name of the experiment; it names the run folder."""

    name: str = ""
    """Empty or ``auto``: made from the names of the parts."""
    auto_name: bool = False
    """Make the name from the parts although one is given."""
    description: str = ""
    """For people; nothing reads it."""


class Environment(StrictModel):
    """Machine and reproducibility."""

    seed: int = Field(default=42, ge=0)
    """Seed of initial weights, order of the data and augmentation."""
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    """Where training runs."""
    devices: int | Literal["auto"] = "auto"
    """How many devices."""
    strategy: str = "auto"
    """Lightning's name of the distribution strategy."""
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed"] = "auto"
    """``auto``: bf16-mixed on an accelerator that supports it, else 32-true."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; unset: torch decides."""


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


class StageData(StrictModel):
    """Training and validation tables of one stage."""

    csv_train: tuple[str, ...] = ()
    """Training tables."""
    csv_val: tuple[str, ...] = ()
    """Validation tables."""

    @field_validator("csv_train", "csv_val", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return () if value is None else (value,) if isinstance(value, str) else value


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
    """Rows about one panorama that are joined into one conversation."""
    trainable: Trainable | None = None
    """Unset: vision trains resampler and overlap head, the others resampler and projector. What a
    given block leaves out follows the same rule."""
    val_check_interval: float | int = 1.0
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
    stage_configs: dict[str, StageConfig]
    """One block per stage."""
    num_workers: int = Field(default=2, ge=0)
    """Processes that load panoramas; 0: the training process itself."""
    eval_batch_size: int = Field(default=8, ge=1)
    """Questions per batch of an evaluation."""
    system_msg: str | None = None
    """Overrides ``system_messages.default`` when given."""
    augment: bool = False
    """Colour jitter of the training views."""
    cache_views: bool = False
    """Keep the views of every panorama in memory after the first time."""
    checkpoint_every_n_steps: int = Field(default=500, ge=1)
    """Optimizer steps between two writes of last.ckpt."""
    wandb_project: str | None = None
    """Project to log to with Weights & Biases (to be installed besides); unset: no such log."""

    @field_validator("stage_configs", mode="before")
    @classmethod
    def _complete_trainable(cls, value: Any) -> Any:
        """Fill a partial ``trainable`` block with what its stage usually trains."""
        if not isinstance(value, Mapping):
            return value
        return {name: _with_usual_components(name, stage) for name, stage in value.items()}

    @model_validator(mode="after")
    def _stages_are_configured(self) -> Training:
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
        return self


class SyntheticScenes(StrictModel):
    """Ray-cast scenes to write before training, when they are not there yet."""

    root: str
    """Folder for images and tables (train.csv, val.csv, test.csv)."""
    train_scenes: int = Field(default=2000, ge=1)
    """Panoramas of train.csv."""
    val_scenes: int = Field(default=50, ge=1)
    """Panoramas of val.csv."""
    test_scenes: int = Field(default=200, ge=1)
    """Panoramas of test.csv."""
    train_fewest: int = Field(default=3, ge=1, le=5)
    """Fewest objects in a training scene; scenes with one or two are an easier start. Validation
    and test scenes have three to five."""
    questions_per_scene: int = Field(default=8, ge=1)
    """Most rows per panorama."""
    width: int = Field(default=256, ge=128)
    """Pixels of the panorama's width; its height is half of that."""
    seed: int = Field(default=0, ge=0)
    """Seed of the scenes."""


class Data(StrictModel):
    """Tables of image paths and texts."""

    csv_train: tuple[str, ...] = ()
    """Training tables."""
    csv_val: tuple[str, ...] = ()
    """Validation tables."""
    csv_test: tuple[str, ...] = ()
    """Tables of an evaluation."""
    skip_unreadable_images: bool = False
    """Leave rows out, counted and listed, whose image cannot be read; otherwise it is an error."""
    synthetic: SyntheticScenes | None = None
    """Scenes to make first; unset: none."""

    @field_validator("csv_train", "csv_val", "csv_test", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return () if value is None else (value,) if isinstance(value, str) else value


class Paths(StrictModel):
    """Folders that PanoVLM writes to and reads from."""

    runs_dir: str = "runs"
    """Folder of all run folders."""
    eval_dir: str = "results/eval_results"
    """Folder of evaluation results."""
    data_dir: str = ""
    """Base of relative image paths in tables; empty: the table's own folder."""
    pretrained_dir: str | None = None
    """Checkpoint (file or run folder) that the first stage starts from."""


class Settings(Recipe):
    """One experiment: a :class:`Recipe` plus how to train it and on what."""

    experiment: Experiment = Field(default_factory=Experiment)
    environment: Environment = Field(default_factory=Environment)
    training: Training
    data: Data = Field(default_factory=Data)
    paths: Paths = Field(default_factory=Paths)

    @model_validator(mode="before")
    @classmethod
    def _complete_stage_lora(cls, data: Any) -> Any:
        """Fill a partial ``lora`` block of a stage from the top-level one."""
        match data:
            case {"lora": Mapping() as shared, "training": {"stage_configs": Mapping() as stages}}:
                filled = {
                    name: {**stage, "lora": {**shared, **stage["lora"]}}
                    if isinstance(stage, Mapping) and isinstance(stage.get("lora"), Mapping)
                    else stage
                    for name, stage in stages.items()
                }
                return {**data, "training": {**data["training"], "stage_configs": filled}}
            case _:
                return data

    def recipe(self) -> Recipe:
        """Return the part that travels in a checkpoint, with ``training.system_msg`` settled."""
        parts = {name: getattr(self, name) for name in Recipe.model_fields}
        if self.training.system_msg is not None:
            parts["system_messages"] = SystemMessages(default=self.training.system_msg)
        return Recipe(**parts)
