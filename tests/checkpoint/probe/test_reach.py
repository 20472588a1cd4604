"""Every setting is known to reach some part of a probe, or none."""

from __future__ import annotations

import pytest

from panovlm.checkpoint.fields import TRAINING_ONLY, defaults
from panovlm.checkpoint.probe.reach import NOWHERE, parts_reached
from panovlm.models.resamplers import recipes


@pytest.mark.parametrize("architecture", sorted(recipes()))
def test_every_field_is_thought_of(architecture):
    """A new one must be added to the table, or be said to reach nothing."""
    for name in defaults(architecture):
        nowhere = name in TRAINING_ONLY or name.startswith(NOWHERE)
        assert bool(parts_reached(name)) != nowhere, name


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("models.vision_config.num_attention_heads", {"tower"}),
        ("models.language_config.rope_parameters", {"language"}),
        ("models.resampler_config.norm_first", {"resampler"}),
        ("models.resampler_config.dropout", set()),
        ("models.overlap_ratio", {"projector"}),
        ("image_processing.overlap_ratio", {"preprocessing"}),
        ("image_processing.crop_strategy", {"preprocessing", "projector"}),
        ("lora.alpha", {"language"}),
        ("lora.dropout", set()),
        ("system_messages.default", {"prompt"}),
        ("models.max_text_length", set()),
        ("generation.temperature", set()),
    ],
)
def test_some(name, parts):
    assert set(parts_reached(name)) == parts
