"""The MLP resampler against the formula, and the layout of its layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from panovlm.checkpoint.settle.shapes import Shapes
from panovlm.errors import ContradictionError
from panovlm.models.resamplers import recipe
from panovlm.models.resamplers.mlp.recipe import MLPSettings


def build(depth: int, use_ln: bool) -> torch.nn.Module:
    settings = MLPSettings(hidden_dim=7, depth=depth, use_ln=use_ln)
    return recipe("mlp").build(settings, vision_dim=5, latent_dimension=3)


def names(depth: int, use_ln: bool) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in build(depth, use_ln).state_dict().items()}


def test_layers_are_numbered_as_in_existing_checkpoints() -> None:
    linear = {"mlp.0.weight": (7, 5), "mlp.0.bias": (7,)}
    assert names(3, True) == linear | {
        "mlp.1.weight": (7,),
        "mlp.1.bias": (7,),
        "mlp.3.weight": (7, 7),
        "mlp.3.bias": (7,),
        "mlp.4.weight": (7,),
        "mlp.4.bias": (7,),
        "mlp.6.weight": (3, 7),
        "mlp.6.bias": (3,),
    }
    assert names(2, False) == linear | {"mlp.2.weight": (3, 7), "mlp.2.bias": (3,)}
    assert names(1, True) == {"mlp.0.weight": (3, 5), "mlp.0.bias": (3,)}


@pytest.mark.parametrize(("vision_dim", "latent_dimension"), [(5, 3), (3, 5)])
def test_an_unset_width_is_that_of_the_wider_side(vision_dim, latent_dimension) -> None:
    widths = {"vision_dim": vision_dim, "latent_dimension": latent_dimension}
    module = recipe("mlp").build(MLPSettings(hidden_dim=None, depth=3), **widths)
    assert module.state_dict()["mlp.3.weight"].shape == (5, 5)


def formula(state: dict[str, Tensor], x: Tensor, depth: int, use_ln: bool) -> Tensor:
    step = 3 if use_ln else 2
    for i in range(0, step * (depth - 1), step):
        x = x @ state[f"mlp.{i}.weight"].T + state[f"mlp.{i}.bias"]
        if use_ln:
            centred = x - x.mean(-1, keepdim=True)
            x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            x = x * state[f"mlp.{i + 1}.weight"] + state[f"mlp.{i + 1}.bias"]
        x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    last = step * (depth - 1)
    return x @ state[f"mlp.{last}.weight"].T + state[f"mlp.{last}.bias"]


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("use_ln", [True, False])
def test_equals_the_formula_in_float64(depth, use_ln) -> None:
    torch.manual_seed(0)
    module = build(depth, use_ln).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    for training in (True, False):  # no dropout in this network
        found = module.train(training)(x)
        torch.testing.assert_close(found, formula(module.state_dict(), x, depth, use_ln))


@pytest.mark.parametrize("use_ln", [True, False])
def test_a_file_that_ends_between_stages_is_incomplete(use_ln) -> None:
    shapes = names(3, use_ln)
    last = "mlp.6" if use_ln else "mlp.4"
    del shapes[f"{last}.weight"], shapes[f"{last}.bias"]
    if use_ln:
        with pytest.raises(ContradictionError, match=r"mlp\.4\.weight is the last layer"):
            recipe("mlp").infer(Shapes(shapes))
    else:  # what is left is a whole MLP of depth 2; only the projection after it can object
        assert recipe("mlp").infer(Shapes(shapes))["depth"].value == 2
