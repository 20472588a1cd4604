"""The recipe: every setting that decides what a trained model computes.

It travels in every checkpoint. No torch is imported here. The public home of all settings is
:mod:`panovlm.config.schema`; what only reads checkpoints imports these from here, since the classes
of experiments would take a good part of the time of a short command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from panovlm.config.base import Field, StrictModel
from panovlm.config.problems import unexpected
from panovlm.config.readers import Before, Limits
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipe, recipes
from panovlm.models.resamplers.recipe import ResamplerSettings

RESAMPLER_CONFIGS: dict[str, ResamplerSettings] = {
    name: found.settings() for name, found in recipes().items()
}
"""The preset of every resampler architecture, built from the one place its defaults stand."""

DEFAULT_SYSTEM_MESSAGE = "You are a helpful AI assistant specialized in analyzing panoramic images."

CropStrategy = Literal[
    "e2p",
    "sliding_window",
    "cubemap",
    "anyres",
    "anyres_max",
    "anyres_e2p",
    "resize",
    "e2p_sphere",
    "cubemap6",
    "icosahedral",
    "erp",
]
Layout = Literal["original", "panovlm-1"]
Quantization = Literal["none", "int8", "nf4", "fp4"]
Fraction = Annotated[float, Limits(ge=0, lt=1)]
TextLength = Annotated[int, Limits(ge=1)] | Literal["auto", "auto:dataset"]


def _pair(value: object) -> object:
    """Read one number as a square size.

    Raises:
        ValidationError: it is neither a number nor a list.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if not isinstance(value, list | tuple):
        raise unexpected(value, "a number of pixels", "[height, width]")
    return cast("object", value)


Size = Annotated[tuple[Annotated[int, Limits(ge=1)], Annotated[int, Limits(ge=1)]], Before(_pair)]
"""(height, width) in pixels; one number means a square."""


ORIGINAL_FUSION: dict[str, Any] = {
    "fusion_text_limit": 512,
    "vision_token_fallback_ends": "row",
}
"""How the original system joined text and vision tokens where no document tells it; those that
PanoVLM wrote about its checkpoints before it had these settings do not."""


_PRESET: Any = None
"""Stands for the preset of the architecture."""


def _canonical_type(value: object, earlier: Mapping[str, Any]) -> object:
    """Return the canonical name of an architecture."""
    try:
        return recipe(value).name if isinstance(value, str) else value
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _settings_of_that_type(value: object, earlier: Mapping[str, Any]) -> object:
    """Read ``resampler_config`` with the settings class of ``resampler_type``.

    A BiMamba can so never be built from the MLP's settings: settings of another architecture are
    refused, and absent ones come from the preset of this architecture.
    """
    name = earlier.get("resampler_type")
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
    language_quantization: Quantization = "none"
    """Keep the frozen language model's Linear layers, but the output layer, in eight bits or four
    (NormalFloat or floating point), rounded by bitsandbytes (extra ``quant``). Checkpoints hold, or
    refer to, the weights in full precision."""

    resampler_type: str = Field(default="mlp", prepare=_canonical_type)
    """Architecture between tower and projector, one of the registered resamplers."""
    resampler_config: ResamplerSettings = Field(default=_PRESET, prepare=_settings_of_that_type)
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
    overlap_loss: Literal["vicreg", "barlow_twins", "info_nce", "dense_cl"] = "vicreg"
    """What is asked of tokens of two views that show the same; ``vicreg_loss_weight`` is the factor
    of each of these losses."""
    overlap_pairs: Literal["columns", "directions"] = "columns"
    """Which tokens show the same: the last columns of a view and the first of the next one, by
    ``overlap_ratio``; or those whose true directions are nearest, in any two views that overlap."""
    overlap_temperature: float = Field(default=0.2, gt=0)
    """Divides the cosines of ``info_nce`` and ``dense_cl``."""
    overlap_dense_weight: float = Field(default=0.5, ge=0, le=1)
    """Share of single tokens in ``dense_cl``; the rest is that of whole overlaps."""
    overlap_redundancy_weight: float = Field(default=0.005, ge=0)
    """Weight of the correlations between channels in ``barlow_twins``."""
    overlap_gather: bool | None = None
    """Compute the overlap loss over the batches of all training processes together, as one process
    would with the whole batch. Unset: all but ``vicreg``, which the original system computes in
    every process by itself."""

    overlap_ratio: Fraction = 0.5
    """Fraction of a view's width that it shares with the next one, as the model uses it for
    positions, stitching and the overlap loss."""
    global_view: Literal["apart", "first_view"] = "apart"
    """What happens to a leading view of the whole panorama: ``apart`` keeps its tokens in front,
    without position, stitching or overlap loss; ``first_view`` treats it as one more tile."""
    use_projection_positional_encoding: bool = True
    """Add the panoramic position of each token before the projection."""
    pe_type: Literal["columns", "directions"] = "columns"
    """Where a token is: in its column of the strip of views and its row, or in its true direction
    on the sphere (Fourier features of its three coordinates)."""
    pe_highest_frequency: float = Field(default=16.0, gt=0.5)
    """Periods of the fastest Fourier feature from one end of the unit sphere to the other
    (``pe_type`` directions)."""
    pe_spatial_encoding_type: Literal["sinusoidal", "none"] = "sinusoidal"
    """Whether row and column terms join the yaw term."""
    pe_enable_continuity: bool = True
    """Positions follow the overlap of neighbouring views (true) or count views (false)."""
    pe_temperature: float = Field(default=10000.0, gt=1)
    """Base of the wavelengths of the sinusoids."""
    pe_dropout: Fraction = 0.0
    """Dropout after the positions were added; training only."""
    stitching_mode: Literal["drop_overlap", "stride_views", "concat", "resample", "sphere"] = (
        "drop_overlap"
    )
    """How the views' token grids become one strip: without the columns that a view shares with the
    one before (``drop_overlap``, ``stride_views``), side by side, resampled at even places, or
    (``sphere``) one token for every direction, taken from the view whose centre is nearest."""
    stitch_target_cols: int = Field(default=0, ge=0)
    """Columns of the ``resample`` mode; 0: as many as there are distinct ones."""
    stitch_target_to_view_width: bool = False
    """In the ``resample`` mode: as many columns as one view has."""
    stitch_interp: Literal["nearest", "linear"] = "nearest"
    """Interpolation of the ``resample`` mode."""

    vision_rope: Literal["sequence", "closed_yaw"] = "sequence"
    """Rotary positions of the vision tokens in the language model: along the sequence like text, or
    with every row bent to a ring, on which only the difference of yaw counts."""

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
    fusion_text_limit: int | None = Field(default=None, ge=1)
    """Tokens of a row of text that stay when the vision tokens are put in; unset: all. The data
    are cut before, to ``max_text_length``; the original system cut here as well, prompts too."""
    vision_token_fallback_ends: Literal["text", "row"] = "text"  # noqa: S105
    """Whose beginning and end ``vision_token_fallback_position`` means: those of the ``text``, or
    those of the padded ``row``, as in the original system."""

    @classmethod
    def _before(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fill in what documents about the original's checkpoints do not say."""
        return {**ORIGINAL_FUSION, **values} if values.get("layout") == "original" else values


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
    rendering: Literal["exact", "good", "fast"] = "exact"
    """How finely a panorama is read. ``exact``: every pixel of it. ``good`` and ``fast``: at half,
    a quarter, an eighth of its size where the views need no more, which JPEG files need not be
    decoded beyond; perspective views then average pixel areas, or read points. Not for slices of
    the panorama and not with the tower's processor."""
    vision_processor: dict[str, Any] | None = None
    """Configuration of that processor; filled in when a checkpoint is written."""
    anyres_patch_size: int = Field(default=336, ge=8)
    """Side of the letterboxed whole view of the any-resolution strategies, in pixels."""
    anyres_max_patches: int = Field(default=12, ge=1)
    """Views of ``anyres`` and ``anyres_max`` besides the whole panorama."""
    pitch_rows: int = Field(default=1, ge=1)
    """Rows of views of ``e2p_sphere``, about the horizon."""
    poles: bool = False
    """Whether ``e2p_sphere`` also looks straight down and straight up."""
    icosahedral_views: Literal[12, 20] = 20
    """Views of ``icosahedral``: at the corners or at the faces of an icosahedron."""
    normalize: bool = True
    """Subtract the mean and divide by the standard deviation of each channel."""
    image_mean: tuple[float, float, float] | None = None
    """Per channel; unset: the tower's processor, else ImageNet."""
    image_std: tuple[float, float, float] | None = None
    """Per channel; unset: as for ``image_mean``."""


TargetPreset = Literal["attention", "mlp", "all-linear"]


class LoRASettings(StrictModel):
    """Low-rank adapters on the language model, used in stage finetune."""

    use_lora: bool = False
    """Whether there are adapters."""
    rank: int = Field(default=32, ge=1)
    """Inner width r of an adapter."""
    alpha: float = Field(default=64, gt=0)
    """Numerator of an adapter's scale, alpha / rank (rank-stabilised LoRA: alpha times the root of
    the rank)."""
    dropout: Fraction = 0.1
    """Dropout before an adapter; training only."""
    use_dora: bool = False
    """DoRA: adapters turn the rows of a weight, and a trained vector gives their lengths."""
    target_modules: tuple[str, ...] | TargetPreset = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Names of the Linear layers that get an adapter; or all those of ``attention``, of the ``mlp``
    blocks, or ``all-linear`` but the output layer. A checkpoint records the names."""


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
