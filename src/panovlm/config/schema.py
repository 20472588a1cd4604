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
    field_validator,
    model_validator,
)

from panovlm.config.base import StrictModel
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
        default_factory=lambda: RESAMPLER_CONFIGS["mlp"], validate_default=False
    )
    """Settings of that architecture; what is not given comes from its preset."""
    latent_dimension: int = Field(768, ge=1)
    """Width of the resampled tokens."""

    use_vicreg_norm: bool = True
    """LayerNorm on the tower's output, in every stage."""
    use_vicreg_projector: bool = True
    """Head for the overlap loss, used in stage vision only."""
    vicreg_projector_dim: int | None = Field(None, ge=1)
    """Output width of that head; unset: ``latent_dimension``."""
    vicreg_projector_hidden: int | None = Field(None, ge=1)
    """Hidden width of that head; unset: ``vicreg_projector_dim``."""
    vicreg_projector_depth: int = Field(2, ge=1)
    vicreg_projector_ln: bool = True
    vicreg_loss_weight: float = Field(1.0, ge=0)
    vicreg_similarity_weight: float = Field(25.0, ge=0)
    vicreg_variance_weight: float = Field(25.0, ge=0)
    vicreg_covariance_weight: float = Field(1.0, ge=0)
    vicreg_gamma: float = Field(1.0, gt=0)
    vicreg_mode: Literal["pairwise", "batchwise"] = "pairwise"

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
    pe_temperature: float = Field(10000.0, gt=1)
    pe_dropout: Fraction = 0.0
    stitching_mode: Literal["drop_overlap", "stride_views", "concat", "resample"] = "drop_overlap"
    stitch_target_cols: int = Field(0, ge=0)
    """Columns of the ``resample`` mode; 0: as many as there are distinct ones."""
    stitch_target_to_view_width: bool = False
    stitch_interp: Literal["nearest", "linear"] = "nearest"

    use_text_projection: bool = False
    """Linear on the text embeddings, applied in stage resampler only."""
    training_placeholder: bool = True
    """Put the vision placeholder into training texts where prompts have it; false: vision tokens
    go to the fallback position in training, as in the original system."""
    vision_token_fallback_position: Literal["prefix", "suffix"] = "prefix"
    """Where vision tokens go when the text has no placeholder."""
    max_text_length: int | Literal["auto", "auto:dataset"] = 512
    """Tokens of text per sample; longer text is cut."""
    default_generation_prompt: str = "Describe the panoramic scene."
    layout: Layout = "panovlm-1"
    """Which family of checkpoints this model belongs to. It decides only what is assumed for a
    file whose metadata is lost: the defaults of today, or those of the original system."""

    @model_validator(mode="before")
    @classmethod
    def _type_resampler_config(cls, data: Any) -> Any:
        """Build ``resampler_config`` with the settings class of ``resampler_type``.

        A BiMamba can so never be built from the MLP's settings: settings of another architecture
        are refused, and absent ones come from the preset of this architecture.
        """
        if not isinstance(data, Mapping):
            return data
        values: dict[str, Any] = dict(data)
        name = values.get("resampler_type", "mlp")
        if not isinstance(name, str):
            return values
        architecture = recipe(name)
        values["resampler_type"] = architecture.name
        given = values.get("resampler_config")
        if given is None:
            values["resampler_config"] = RESAMPLER_CONFIGS[architecture.name]
        elif isinstance(given, ResamplerSettings):
            if type(given) is not architecture.settings:
                raise ValueError(
                    f"resampler_config holds {type(given).__name__}, but resampler_type is "
                    f"{architecture.name!r}, which needs {architecture.settings.__name__}"
                )
        else:
            values["resampler_config"] = architecture.settings.model_validate(given)
        return values


class ImageProcessing(StrictModel):
    """How a panorama becomes the views that the vision tower sees."""

    crop_strategy: CropStrategy = "anyres_e2p"
    image_size: Size | None = None
    """Pixels of one view; unset: the tower's own size."""
    overlap_ratio: Fraction = 0.5
    """Fraction of the field of view shared by neighbouring views."""
    fov_deg: float = Field(90.0, gt=0, lt=180)
    """Horizontal and vertical field of view of one perspective view, in degrees."""
    use_vision_processor: bool = False
    """Resize and normalise with the tower's own Hugging Face image processor."""
    vision_processor: dict[str, Any] | None = None
    """Configuration of that processor; filled in when a checkpoint is written."""
    anyres_patch_size: int = Field(336, ge=8)
    """Side of the letterboxed whole view of the any-resolution strategies, in pixels."""
    anyres_max_patches: int = Field(12, ge=1)
    normalize: bool = True
    image_mean: tuple[float, float, float] | None = None
    """Per channel; unset: the tower's processor, else ImageNet."""
    image_std: tuple[float, float, float] | None = None


class LoRASettings(StrictModel):
    """Low-rank adapters on the language model, used in stage finetune."""

    use_lora: bool = False
    rank: int = Field(32, ge=1)
    alpha: float = Field(64, gt=0)
    dropout: Fraction = 0.1
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


class Generation(StrictModel):
    """How answers are generated."""

    max_new_tokens: int = Field(128, ge=1)
    min_new_tokens: int = Field(0, ge=0)
    do_sample: bool = False
    """False: always the most probable token, so that an evaluation can be repeated exactly."""
    temperature: float = Field(0.6, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int = Field(20, ge=0)
    repetition_penalty: float = Field(1.0, gt=0)
    length_penalty: float = 1.0
    num_beams: int = Field(1, ge=1)


class SystemMessages(StrictModel):
    """System message of the conversation; an empty string drops it."""

    default: str = DEFAULT_SYSTEM_MESSAGE


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
    description: str = ""


class Environment(StrictModel):
    """Machine and reproducibility."""

    seed: int = Field(42, ge=0)
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int | Literal["auto"] = "auto"
    strategy: str = "auto"
    """Lightning's name of the distribution strategy."""
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed"] = "auto"
    """``auto``: bf16-mixed on an accelerator that supports it, else 32-true."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of torch; unset: torch decides."""


class Trainable(StrictModel):
    """Which components a stage trains."""

    vision_blocks: int = Field(0, ge=-1)
    """Last n blocks of the vision tower; 0 none, -1 the whole tower."""
    resampler: bool = True
    vicreg_projector: bool = False
    projector: bool = False
    language_model: bool = False
    """The whole language model (its adapters, if any, are trained in any case)."""


class StageData(StrictModel):
    """Training and validation tables of one stage."""

    csv_train: tuple[str, ...] = ()
    csv_val: tuple[str, ...] = ()

    @field_validator("csv_train", "csv_val", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return () if value is None else (value,) if isinstance(value, str) else value


class StageConfig(StrictModel):
    """One training stage."""

    epochs: int = Field(1, ge=1)
    lr: float = Field(2e-5, gt=0)
    batch_size: int = Field(1, ge=1)
    accumulate_grad_batches: int = Field(2, ge=1)
    warmup_ratio: Fraction = 0.1
    """Fraction of the optimizer steps with rising learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Fall of the learning rate after the warm-up, to zero for cosine and linear."""
    weight_decay: float = Field(0.01, ge=0)
    gradient_clip: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 switches clipping off."""
    max_text_length: int | Literal["auto", "auto:dataset"] | None = None
    """Tokens of text per sample in this stage; unset: the model's."""
    questions_per_sample: int = Field(1, ge=1)
    """Rows about one panorama that are joined into one conversation."""
    trainable: Trainable | None = None
    """Unset: vision trains resampler and overlap head, the others resampler and projector."""
    val_check_interval: float | int = 1.0
    """Fraction of an epoch, or number of steps, between validations."""
    patience: int = Field(0, ge=0)
    """Validations without improvement before the stage stops early; 0: never."""
    data: StageData | None = None
    """Tables of this stage; unset: those of ``data``."""
    lora: LoRASettings | None = None
    """Adapters of this stage; unset: those of ``lora`` (finetune only)."""


class Training(StrictModel):
    """The stages and what they share."""

    prefix: str = ""
    stages: tuple[str, ...] = STAGES
    stage_configs: dict[str, StageConfig]
    num_workers: int = Field(2, ge=0)
    """Processes that load panoramas; 0: the training process itself."""
    eval_batch_size: int = Field(8, ge=1)
    system_msg: str | None = None
    """Overrides ``system_messages.default`` when given."""
    augment: bool = False
    """Colour jitter of the training views."""
    cache_views: bool = False
    """Keep the views of every panorama in memory after the first time."""
    checkpoint_every_n_steps: int = Field(500, ge=1)
    """Optimizer steps between two writes of last.ckpt."""
    wandb_project: str | None = None

    @model_validator(mode="after")
    def _stages_are_configured(self) -> Training:
        if not self.stage_configs:
            raise ValueError("stage_configs is empty; configure at least one stage")
        for stage in self.stages:
            if stage not in self.stage_configs:
                raise ValueError(
                    f"stage {stage!r} is listed in training.stages but training.stage_configs "
                    f"has only {sorted(self.stage_configs)}"
                )
        return self


class SyntheticScenes(StrictModel):
    """Ray-cast scenes to write before training, when they are not there yet."""

    root: str
    """Folder for images and tables (train.csv, val.csv, test.csv)."""
    train_scenes: int = Field(2000, ge=1)
    val_scenes: int = Field(50, ge=1)
    test_scenes: int = Field(200, ge=1)
    questions_per_scene: int = Field(8, ge=1)
    width: int = Field(256, ge=64)
    """Pixels of the panorama's width; its height is half of that."""
    seed: int = Field(0, ge=0)


class Data(StrictModel):
    """Tables of image paths and texts."""

    csv_train: tuple[str, ...] = ()
    csv_val: tuple[str, ...] = ()
    csv_test: tuple[str, ...] = ()
    skip_unreadable_images: bool = False
    """Leave rows out, counted and listed, whose image cannot be read; otherwise it is an error."""
    synthetic: SyntheticScenes | None = None

    @field_validator("csv_train", "csv_val", "csv_test", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return () if value is None else (value,) if isinstance(value, str) else value


class Paths(StrictModel):
    """Folders that PanoVLM writes to and reads from."""

    runs_dir: str = "runs"
    eval_dir: str = "results/eval_results"
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

    def recipe(self) -> Recipe:
        """Return the part that travels in a checkpoint."""
        return Recipe(**{name: getattr(self, name) for name in Recipe.model_fields})
