"""What holds for every registered resampler: settings -> shapes -> the same settings."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.checkpoint.settle.shapes import Shapes
from panovlm.errors import ContradictionError
from panovlm.models.resamplers import ResamplerRecipe, ResamplerSettings, recipe, recipes

PREFIX = "resampler_module.resampler."

small = st.integers(1, 3)
widths = st.integers(1, 40)
sides = st.integers(1, 64)
rates = st.floats(0, 0.9)

VARIANTS: dict[str, st.SearchStrategy[dict[str, object]]] = {
    "mlp": st.fixed_dictionaries(
        {"hidden_dim": widths, "depth": st.integers(1, 5), "use_ln": st.booleans()}
    ),
    "bimamba": st.fixed_dictionaries(
        {
            "hidden_dim": widths,
            "depth": small,
            "expand": st.floats(1, 4),
            "d_state": st.integers(1, 20),
            "d_conv": st.integers(1, 5),
            "norm_first": st.booleans(),
            "directions": st.sampled_from(["mean", "sum"]),
            "cross_view": st.booleans(),
            "dropout": rates,
        }
    ),
    "qformer": st.fixed_dictionaries(
        {
            "num_query_tokens": st.integers(1, 512),
            "num_hidden_layers": small,
            "num_attention_heads": st.just(1),
            "dropout": rates,
        }
    ),
    "perceiver": st.fixed_dictionaries(
        {
            "num_latents": st.integers(1, 600),
            "hidden_dim": widths.map(lambda half: 2 * half),
            "depth": small,
            "num_attention_heads": st.just(1),
            "dropout": rates,
        }
    ),
    "conv": st.fixed_dictionaries(
        {"hidden_dim": widths, "depth": small, "stride": st.integers(1, 9), "drop_path": rates}
    ),
    "c_abstractor": st.fixed_dictionaries(
        {
            "hidden_dim": widths,
            "depth": small,
            "rows": sides,
            "columns": sides,
            "mlp_depth": small,
        }
    ),
    "identity": st.just({}),
    "avg_pool": st.fixed_dictionaries({"window": sides}),
    "spatial_pool": st.fixed_dictionaries(
        {"rows": sides, "columns": sides, "mode": st.sampled_from(["average", "max"])}
    ),
    "masked_drop": st.fixed_dictionaries({"rate": rates}),
}
WEIGHTLESS = {"identity", "avg_pool", "spatial_pool", "masked_drop"}
"""They leave the width of tokens as it is."""
CHANGED = {
    "norm_first": False,
    "directions": "sum",
    "cross_view": True,
    "dropout": 0.77,
    "drop_path": 0.77,
    "rate": 0.77,
    "mode": "max",
    "num_attention_heads": 2,
}
"""Another value of every field that shapes do not show."""


@st.composite
def models(draw: st.DrawFn, name: str | None = None) -> tuple[str, ResamplerSettings, int, int]:
    """An architecture, settings of it, Dv and D."""
    name = name or draw(st.sampled_from(sorted(VARIANTS)))
    chosen = recipe(name).settings.model_validate(draw(VARIANTS[name]))
    vision_dim = 2 * draw(widths)
    return name, chosen, vision_dim, vision_dim if name in WEIGHTLESS else draw(widths)


@cache
def built(name: str, chosen: ResamplerSettings, vision_dim: int, latent: int) -> dict:
    """Shapes of a build without memory, under the names of a checkpoint."""
    with torch.device("meta"):
        module = recipe(name).build(chosen, vision_dim=vision_dim, latent_dimension=latent)
    return {PREFIX + key: tuple(t.shape) for key, t in module.state_dict().items()}


def claimants(shapes: dict) -> list[str]:
    return [name for name, r in recipes().items() if not r.missing(Shapes(shapes, PREFIX))]


def rebuilt(architecture: ResamplerRecipe, shapes: dict) -> dict:
    """Shapes of the model that inference describes."""
    seen = architecture.infer(Shapes(shapes, PREFIX))
    observed = {key: seen[key].value for key in seen if key in architecture.settings.model_fields}
    widths = seen["vision_dim"].value, seen["latent_dimension"].value
    hidden = architecture.settings.model_fields
    heads = {"num_attention_heads": 1} if "num_attention_heads" in hidden else {}
    return built(architecture.name, architecture.settings(**observed, **heads), *widths)


def test_every_architecture_is_tried_here() -> None:
    assert set(VARIANTS) == set(recipes())


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_setting_says_whether_shapes_show_it(name) -> None:
    assert set(recipe(name).observability) == set(recipe(name).settings.model_fields)


@settings(max_examples=60, deadline=None)
@given(models())
def test_settings_come_back_from_shapes(model) -> None:
    name, chosen, vision_dim, latent = model
    shapes = built(*model)
    assert claimants(shapes) == [name]
    architecture = recipe(name)
    seen = architecture.infer(Shapes(shapes, PREFIX))
    assert seen["vision_dim"].value == vision_dim
    assert seen["latent_dimension"].value == latent
    observable = {k for k, kind in architecture.observability.items() if kind == "observable"}
    if name == "mlp" and chosen.depth == 1:
        observable -= {"hidden_dim", "use_ln"}  # no hidden stage, nothing to see
    assert set(seen) == observable | {"vision_dim", "latent_dimension"}
    for field in observable:
        assert architecture.agrees(field, getattr(chosen, field), seen), field
        if field != "expand":  # several give the same width
            assert seen[field].value == getattr(chosen, field)
    assert rebuilt(architecture, shapes) == shapes


@settings(max_examples=40, deadline=None)
@given(models())
def test_fields_that_shapes_do_not_show_leave_them_alone(model) -> None:
    name, chosen, vision_dim, latent = model
    for field, kind in recipe(name).observability.items():
        if kind != "observable":
            changed = chosen.model_copy(update={field: CHANGED[field]})
            assert changed != chosen or getattr(chosen, field) == CHANGED[field]
            assert built(name, changed, vision_dim, latent) == built(*model), field


@settings(max_examples=150, deadline=None)
@given(models(), st.data())
def test_a_changed_shape_is_refused_by_name_or_describes_another_model(model, data) -> None:
    shapes = dict(built(*model))
    tensor = data.draw(st.sampled_from(sorted(shapes)))
    axis = data.draw(st.integers(0, len(shapes[tensor]) - 1))
    change = data.draw(st.sampled_from([-1, 1, 16]))
    size = shapes[tensor][axis] + change
    shapes[tensor] = (*shapes[tensor][:axis], size, *shapes[tensor][axis + 1 :])
    architecture = recipe(model[0])
    if size == 0:
        return  # empty tensors have tests of their own
    try:
        found = architecture.infer(Shapes(shapes, PREFIX))
    except ContradictionError as error:
        # The other tensor of the same layer may be the one that does not fit any more.
        assert tensor.rpartition(".")[0] in str(error)
        return
    limits = {"num_query_tokens": 512, "window": 64, "rows": 64, "columns": 64, "stride": 64}
    if any(found[name].value > most for name, most in limits.items() if name in found):
        return  # refused when the settings are made
    assert rebuilt(architecture, shapes) == shapes


@settings(max_examples=100, deadline=None)
@given(models(), st.data())
def test_a_lost_tensor_is_named(model, data) -> None:
    shapes = dict(built(*model))
    tensor = data.draw(st.sampled_from(sorted(shapes)))
    del shapes[tensor]
    architecture = recipe(model[0])
    missing = architecture.missing(Shapes(shapes, PREFIX))
    if missing:
        assert missing == [f"{tensor.removeprefix(PREFIX)} is absent"]
        return
    with pytest.raises(ContradictionError) as error:
        architecture.infer(Shapes(shapes, PREFIX))
    assert tensor in str(error.value) or tensor == f"{PREFIX}mlp.1.weight"


@settings(max_examples=30, deadline=None)
@given(models())
def test_evidence_names_tensors_of_the_file(model) -> None:
    shapes = built(*model)
    seen = recipe(model[0]).infer(Shapes(shapes, PREFIX))
    for field, observed in seen.items():
        assert PREFIX in observed.evidence, field


def test_inference_needs_no_torch() -> None:
    code = """
import sys
import panovlm.models.resamplers as resamplers
from panovlm.checkpoint.settle.shapes import Shapes
shapes = Shapes({"mlp.0.weight": (4, 3), "mlp.0.bias": (4,)})
[found] = [r for r in resamplers.recipes().values() if not r.missing(shapes)]
assert found.infer(shapes)["latent_dimension"].value == 4
heavy = {"torch", "transformers", "numpy", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
