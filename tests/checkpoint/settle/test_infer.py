"""Layer 2: what shapes tell about a whole model."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from panovlm.checkpoint.fields import flatten, nest
from panovlm.checkpoint.loading.load import build_empty
from panovlm.checkpoint.names.keys import map_keys
from panovlm.checkpoint.settle.infer import claimant, infer
from panovlm.checkpoint.settle.shapes import Shapes
from panovlm.config.schema import Recipe
from panovlm.errors import CheckpointError, ContradictionError


@pytest.fixture
def shapes(files):
    """Shapes of an original model's file, under the model's own names; changed by ``change``."""

    def of(model, change=None):
        found = {name: tuple(t.shape) for name, t in files.state_dict(model).items()}
        if change:
            change(found)
        return map_keys(found).shapes(found)

    return of


@pytest.mark.parametrize("resampler_type", ["mlp", "bimamba", "qformer"])
def test_the_architecture_and_its_sizes(resampler_type, build, shapes):
    model = build(resampler_type=resampler_type)
    found = infer(shapes(model))
    assert found.resampler.name == model.kind
    assert found.fields["models.resampler_type"].value == model.kind
    for key, value in model.sizes.items():
        if found.resampler.observability[key] == "observable":
            assert found.fields[f"models.resampler_config.{key}"].value == value
        else:
            assert f"models.resampler_config.{key}" not in found.fields
    assert found.fields["models.latent_dimension"].value == 40
    assert "models.resampler_config.vision_dim" not in found.fields


def test_optional_parts(build, shapes):
    whole = infer(shapes(build(use_text_projection=True, lora={"r": 3}))).fields
    assert whole["models.use_vicreg_norm"].value is True
    assert whole["models.use_text_projection"].value is True
    assert whole["models.use_vicreg_projector"].value is True
    assert whole["lora.use_lora"].value is True and whole["lora.rank"].value == 3
    bare = infer(shapes(build(use_vicreg_norm=False, use_vicreg_projector=False))).fields
    assert bare["models.use_vicreg_norm"].value is False
    assert bare["models.use_text_projection"].value is False
    assert bare["models.use_vicreg_projector"].value is False
    assert bare["lora.use_lora"].value is False and "lora.rank" not in bare


def test_the_overlap_head(build, shapes):
    head = {
        "vicreg_projector_dim": 20,
        "vicreg_projector_hidden": 28,
        "vicreg_projector_depth": 3,
        "vicreg_projector_ln": False,
    }
    fields = infer(shapes(build(**head))).fields
    assert {key: fields[f"models.{key}"].value for key in head} == head
    older = infer(shapes(build(vicreg_reads_vision=True)))
    assert older.fields["models.use_vicreg_projector"].value is False
    assert older.overruled == {"models.use_vicreg_projector"}
    assert all(name.startswith("vicreg_projector.mlp.") for name in older.dropped)


def test_unknown_backbones_are_left_to_their_configuration(build, shapes):
    """The number of tokens is read all the same: training may have changed it."""

    def rename(found):
        for name in list(found):
            if ".self_attn.q_proj" in name or "patch_embedding" in name:
                found[name.replace("q_proj", "wq").replace("patch_", "p_")] = found.pop(name)

    found = infer(shapes(build(language="llama"), rename))
    assert set(found.unrecognised) == {"models.vision_config", "models.language_config"}
    rows = found.fields["models.language_config.vocab_size"]
    assert rows.value == 21 and rows.evidence == "language_model.model.embed_tokens.weight[0]"


class TestDetection:
    def test_none(self):
        with pytest.raises(CheckpointError, match=r"no tensor of resampler_module\.resampler"):
            claimant(Shapes({}, "resampler_module.resampler."))
        with pytest.raises(CheckpointError, match=r"Nearest is .bimamba.: .*A_log is absent"):
            claimant(
                Shapes(
                    dict.fromkeys(
                        ["input_proj.weight", "final_norm.weight", "output_proj.weight"], (2, 2)
                    )
                )
            )

    def test_a_mixture_is_nobodys(self, build, shapes):
        def mix(found):
            found["model.resampler_module.resampler.query"] = (1, 4, 32)

        with pytest.raises(CheckpointError, match="no registered resampler"):
            infer(shapes(build(), mix))


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("model.projector.linear.weight", (24, 41), "latent_dimension"),
        ("model.projector.linear.weight", (25, 40), "language-model width"),
        ("model.resampler_module.resampler.mlp.0.weight", (48, 33), "vision width"),
        ("model.resampler_module.resampler.mlp.3.weight", (48, 47), "mlp.3.weight"),
        ("model.language_model.model.layers.1.mlp.up_proj.weight", (40, 23), "up_proj"),
    ],
)
def test_parts_that_do_not_fit_together(name, shape, told, build, shapes):
    def change(found):
        found[name] = shape
        for alias in ("resampler.", "vision_to_language_projection."):
            for other in [key for key in found if key.startswith(f"model.{alias}")]:
                del found[other]

    with pytest.raises(ContradictionError, match=told):
        infer(shapes(build(), change))


def test_the_shape_map_is_not_changed(build, files):
    found = {n: tuple(t.shape) for n, t in files.state_dict(build()).items()}
    before = dict(found)
    keys = map_keys(found)
    assert infer(keys.shapes(found)).fields
    assert found == before


TOWERS = {
    "siglip_vision_model": {"vision_use_head": False},
    "clip_vision_model": {},
    "dinov2": {"mlp_ratio": 3},
}
LANGUAGES = ("qwen2", "qwen3", "llama", "gemma2", "gemma3_text")
RESAMPLERS = {
    "mlp": {"hidden_dim": 19, "depth": 4, "use_ln": False},
    "bimamba": {"hidden_dim": 21, "depth": 2, "expand": 1.37, "d_state": 3, "d_conv": 2},
    "qformer": {"num_query_tokens": 5, "num_hidden_layers": 2, "num_attention_heads": 2},
}
UNSEEN = {
    "models.overlap_ratio": 0.25,
    "models.stitching_mode": "concat",
    "models.use_projection_positional_encoding": False,
    "models.global_view": "first_view",
    "image_processing.fov_deg": 60.0,
    "lora.alpha": 5.0,
}


def drawn(random: Random) -> dict[str, Any]:
    """A recipe with odd sizes, as nested settings."""
    tower, language = random.choice(sorted(TOWERS)), random.choice(LANGUAGES)
    kind = random.choice(sorted(RESAMPLERS))
    patch, width = random.choice([2, 3, 4]), 2 * random.randint(2, 12)
    vision = {
        "model_type": tower,
        "hidden_size": width,
        "intermediate_size": random.randint(3, 30),
        "num_hidden_layers": random.randint(1, 3),
        "num_attention_heads": 2,
        "patch_size": patch,
        "image_size": patch * random.randint(1, 4),
        **TOWERS[tower],
    }
    text = {
        "model_type": language,
        "vocab_size": random.randint(5, 40),
        "hidden_size": 4 * random.randint(1, 6),
        "intermediate_size": random.randint(3, 30),
        "num_hidden_layers": random.randint(1, 3),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    lora = {"use_lora": random.random() < 0.5, "rank": random.randint(1, 5), "alpha": 7}
    models = {
        "vision_config": vision,
        "language_config": text,
        "resampler_type": kind,
        "resampler_config": RESAMPLERS[kind],
        "latent_dimension": random.randint(1, 30),
        "use_vicreg_norm": random.random() < 0.5,
        "use_vicreg_projector": random.random() < 0.5,
        "vicreg_projector_dim": random.randint(1, 20),
        "vicreg_projector_hidden": random.randint(1, 20),
        "vicreg_projector_depth": random.randint(2, 4),
        "vicreg_projector_ln": random.random() < 0.5,
        "use_text_projection": random.random() < 0.5,
    }
    return {"models": models, "lora": lora}


def shapes_of(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    return {n: tuple(t.shape) for n, t in build_empty(recipe).state_dict().items()}


@pytest.mark.parametrize("seed", range(12))
def test_a_whole_random_model_comes_back(seed):
    """Every field that is observed is that of the recipe, and no unobserved one moves a shape."""
    settings = drawn(Random(seed))
    recipe = Recipe.model_validate(settings)
    found = shapes_of(recipe)
    inferred = infer(map_keys(found).shapes(found))
    assert inferred.unrecognised == {} and inferred.absent == set()
    values = flatten(recipe)
    for name, seen in inferred.fields.items():
        section, _, field = name.rpartition(".")
        if section in ("models.vision_config", "models.language_config"):
            expected = {**CONFIG_DEFAULTS, **settings["models"][section.split(".")[1]]}
            assert seen.value == expected[field], name
        elif name == "lora.target_modules":
            assert set(seen.value) == set(values[name])
        elif name.endswith(".expand"):
            assert inferred.resampler.agrees("expand", values[name], inferred.seen)
        else:
            assert seen.value == values[name], name
    assert UNSEEN.keys() & inferred.fields.keys() == set()
    changed = nest({**flatten(recipe), **UNSEEN})
    assert shapes_of(Recipe.model_validate(changed)) == found


CONFIG_DEFAULTS = {
    "num_channels": 3,
    "use_mask_token": True,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "attention_bias": False,
    "mlp_bias": False,
}
"""Observed fields of backbones that the drawn configurations leave to their classes."""
