"""Which settings reach which part of a probe.

A setting that reaches no part leaves the probe as it is: it is about training, about how answers
are generated, or only a name. No torch is needed here.
"""

from __future__ import annotations

from collections.abc import Iterable

from panovlm.checkpoint.fields import TRAINING_ONLY
from panovlm.checkpoint.probe.record import Part
from panovlm.config.model_recipe import ModelSettings

REACH: tuple[tuple[str, tuple[Part, ...]], ...] = (
    ("models.vision_name", ("tower", "preprocessing")),
    ("models.vision_config", ("tower",)),
    ("models.use_vicreg_norm", ("tower",)),
    ("models.language_model_name", ("language", "prompt")),
    ("models.language_config", ("language",)),
    ("models.language_quantization", ("language",)),
    ("models.vision_token_fallback", ("language",)),
    ("models.fusion_text_limit", ("language",)),
    ("models.vision_rope", ("language",)),
    ("models.tokenizer_name", ("prompt",)),
    ("models.default_generation_prompt", ("prompt",)),
    ("models.resampler_type", ("resampler",)),
    ("models.resampler_config", ("resampler",)),
    ("models.latent_dimension", ("resampler", "projector")),
    ("models.overlap_ratio", ("projector",)),
    ("models.global_view", ("projector",)),
    ("models.use_projection_positional_encoding", ("projector",)),
    ("models.pe_", ("projector",)),
    ("models.stitch", ("projector",)),
    # Whether the first view shows the whole panorama decides what the projector does with it.
    ("image_processing.crop_strategy", ("preprocessing", "projector")),
    ("image_processing.", ("preprocessing",)),
    ("lora.", ("language",)),
    ("system_messages.", ("prompt",)),
)
"""Fields, or beginnings of their names, and the parts of the probe that they change; the first
entry that fits counts."""

NOWHERE = (
    "models.layout",
    "models.use_text_projection",  # applied in stage resampler only
    "models.use_vicreg_projector",  # its loss is of stage vision only
    "generation.",
)
"""Fields (besides those that only training looks at) that change nothing that is probed."""


def parts_reached(field: str) -> tuple[Part, ...]:
    """Return the parts of the probe that a setting can change."""
    if field in TRAINING_ONLY or field.startswith(NOWHERE):
        return ()
    return next((parts for beginning, parts in REACH if field.startswith(beginning)), ())


def parts_changed(fields: Iterable[str], models: ModelSettings) -> set[Part]:
    """Return the parts of the probe that changes of some settings reach in a model.

    Where tokens are placed by their true directions, the views decide what the projector does.

    Args:
        fields: dotted names of the settings.
        models: settings of the model.
    """
    found: set[Part] = {part for field in fields for part in parts_reached(field)}
    positioned = models.use_projection_positional_encoding and models.pe_type == "directions"
    if "preprocessing" in found and (positioned or models.stitching_mode == "sphere"):
        found.add("projector")
    return found
