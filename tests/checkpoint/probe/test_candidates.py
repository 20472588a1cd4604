"""What is tried when a probe differs: only values that fit the shapes, and not those that are."""

from __future__ import annotations

import pytest

from panovlm.checkpoint.fields import defaults, nest
from panovlm.checkpoint.probe.candidates import candidates, value_of
from panovlm.checkpoint.probe.record import PARTS
from panovlm.config.problems import ValidationError
from panovlm.config.schema import RESAMPLER_CONFIGS, Recipe
from panovlm.models.resamplers import recipes

TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}


def values(architecture="bimamba", **changes):
    found = {"models.vision_config": TOWER, "models.language_config": LLAMA, "lora.use_lora": True}
    return {**defaults(architecture), **found, **changes}


def tried(part, **changes):
    return [c.changes for c in candidates(part, values(**changes), {})]


def test_heads_where_their_width_is_not_stated():
    """Qwen2's configuration leaves it out; key rows and query rows stay what the weights have."""
    bare = {key: value for key, value in LLAMA.items() if key != "head_dim"}
    found = tried("language", **{"models.language_config": bare})
    section = "models.language_config."
    heads = [c for c in found if f"{section}num_attention_heads" in c]
    assert heads
    for changes in heads:
        size = changes[f"{section}head_dim"]
        assert changes[f"{section}num_attention_heads"] * size == 32
        assert changes[f"{section}num_key_value_heads"] * size == 16


@pytest.mark.parametrize("architecture", sorted(recipes()))
@pytest.mark.parametrize("part", PARTS)
def test_every_candidate_is_a_recipe_that_differs(architecture, part):
    start = values(architecture)
    found = candidates(part, start, {})
    assert part == "resampler" or found
    for candidate in found:
        changed = {**start}
        for name, value in candidate.changes.items():
            section = ".".join(name.split(".")[:2])
            if section in ("models.vision_config", "models.language_config"):
                changed[section] = {**changed[section], name.removeprefix(f"{section}."): value}
            else:
                changed[name] = value
        try:
            Recipe.model_validate(nest(changed))
        except ValidationError as error:
            pytest.fail(f"{candidate}: {error}")
        assert changed != start


def test_heads_divide_the_width():
    heads = [
        c["models.vision_config.num_attention_heads"]
        for c in tried("tower")
        if "models.vision_config.num_attention_heads" in c
    ]
    assert heads == [16, 8, 2, 1]


def test_heads_of_queries_and_keys_change_together():
    name = "models.language_config"
    heads = [c for c in tried("language") if f"{name}.head_dim" in c]
    assert heads == [
        {f"{name}.num_attention_heads": 8, f"{name}.num_key_value_heads": 4, f"{name}.head_dim": 4},
        {
            f"{name}.num_attention_heads": 2,
            f"{name}.num_key_value_heads": 1,
            f"{name}.head_dim": 16,
        },
    ]


def test_what_shapes_show_is_not_tried():
    shown = {"models.language_config.head_dim": object(), "models.vision_config.hidden_act": 1}
    found = [*candidates("language", values(), shown), *candidates("tower", values(), shown)]
    assert not any(name in c.changes for c in found for name in shown)


def test_a_resampler_says_itself_what_shapes_do_not_show():
    assert tried("resampler") == [
        {"models.resampler_config.norm_first": False},
        {"models.resampler_config.directions": "sum"},
        {"models.resampler_config.cross_view": True},
    ]
    heads = tried("resampler", architecture="qformer")
    assert {c["models.resampler_config.num_attention_heads"] for c in heads} == {16, 4, 2, 1}
    of_latents = tried("resampler", architecture="perceiver")
    tower_says, own = 64, RESAMPLER_CONFIGS["perceiver"].hidden_dim
    assert own % 48 == 0 != tower_says % 48
    assert {"models.resampler_config.num_attention_heads": own // 48} in of_latents
    assert all(own % n == 0 for c in of_latents for n in c.values())
    modes = tried("resampler", architecture="spatial_pool")
    assert modes == [{"models.resampler_config.mode": "max"}]
    for architecture, found in recipes().items():
        hidden = {f for f, how in found.observability.items() if how != "observable"}
        names = {f for c in tried("resampler", architecture=architecture) for f in c}
        assert names == {
            f"models.resampler_config.{field}" for field in hidden - found.training_only
        }


def test_a_field_is_about_training_in_every_architecture_or_in_none():
    """The names of fields that only training looks at are one set."""
    every = {name for found in recipes().values() for name in found.training_only}
    for found in recipes().values():
        assert every & found.settings.model_fields.keys() == found.training_only
        assert all(found.observability[name] == "unobservable" for name in found.training_only)


def test_the_rotary_base_keeps_its_scaling():
    scaled = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5}
    changed = {"models.language_config": {**LLAMA, "rope_parameters": scaled}}
    found = [
        c["models.language_config.rope_parameters"]
        for c in tried("language", **changed)
        if "models.language_config.rope_parameters" in c
    ]
    assert {rope["factor"] for rope in found} == {8.0}
    assert 1e6 in {rope["rope_theta"] for rope in found}
    old = {"models.language_config": {"rope_theta": 1e4}}
    assert {"models.language_config.rope_theta": 1e6} in tried("language", **old)


def test_without_adapters_their_scale_is_not_tried():
    assert any("lora.alpha" in c for c in tried("language"))
    assert not any("lora.alpha" in c for c in tried("language", **{"lora.use_lora": False}))


def test_value_of():
    found = values()
    assert value_of(found, "models.vision_config.hidden_act") == "gelu"
    assert value_of(found, "models.vision_config.absent") is None
    assert value_of(found, "models.overlap_ratio") == 0.5
