"""The BiMamba resampler against its formulas in float64; its settings from shapes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panovlm.checkpoint.settle.shapes import Shapes
from panovlm.config.problems import ValidationError
from panovlm.errors import ContradictionError
from panovlm.models.resamplers import recipe
from panovlm.models.resamplers.bimamba.recipe import BiMambaSettings, shortest_expand

State = dict[str, Tensor]


def below(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def layer_norm(x: Tensor, state: State) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state["weight"] + state["bias"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def mixer(x: Tensor, s: State) -> Tensor:
    """One direction, one sequence ``[l, H]``, one step and one tap at a time."""
    inner, n = s["A_log"].shape
    projected = x @ s["in_proj.weight"].T
    u, z = projected[:, :inner], projected[:, inner:]
    taps = s["conv1d.weight"][:, 0]
    convolved = []
    for t in range(len(u)):
        total = s["conv1d.bias"].clone()
        for k in range(taps.shape[1]):
            source = t - (taps.shape[1] - 1) + k
            if source >= 0:
                total = total + taps[:, k] * u[source]
        convolved.append(silu(total))
    u = torch.stack(convolved)
    parameters = u @ s["x_proj.weight"].T
    rank = parameters.shape[1] - 2 * n
    dt, B, C = parameters[:, :rank], parameters[:, rank : rank + n], parameters[:, rank + n :]
    delta = torch.log1p(torch.exp(dt @ s["dt_proj.weight"].T + s["dt_proj.bias"]))
    A = -torch.exp(s["A_log"])
    state = torch.zeros(inner, n, dtype=x.dtype)
    outputs = []
    for t in range(len(u)):
        step = delta[t][:, None]
        state = torch.exp(step * A) * state + step * B[t] * u[t][:, None]
        outputs.append(state @ C[t] + s["D"] * u[t])
    return (torch.stack(outputs) * silu(z)) @ s["out_proj.weight"].T


def formula(tokens: Tensor, s: State, depth: int, norm_first: bool) -> Tensor:
    x = tokens @ s["input_proj.weight"].T + s["input_proj.bias"]
    for i in range(depth):
        block = below(s, f"blocks.{i}.")
        norm = below(block, "norm.")
        y = layer_norm(x, norm) if norm_first else x
        forward = mixer(y, below(block, "forward_block."))
        backward = mixer(y.flip(0), below(block, "backward_block.")).flip(0)
        x = x + 0.5 * (forward + backward)
        x = x if norm_first else layer_norm(x, norm)
    x = layer_norm(x, below(s, "final_norm."))
    return x @ s["output_proj.weight"].T + s["output_proj.bias"]


def build(**changes: object) -> torch.nn.Module:
    values = {"hidden_dim": 18, "depth": 2, "expand": 1.3, "d_state": 3, "d_conv": 3, **changes}
    settings = BiMambaSettings.model_validate(values)
    torch.manual_seed(0)
    return recipe("bimamba").build(settings, vision_dim=5, latent_dimension=4)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("length", [1, 19])
def test_equals_the_formulas_view_by_view(norm_first, length) -> None:
    module = build(norm_first=norm_first).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tokens = torch.randn(3, length, 5, dtype=torch.float64)
    state = module.state_dict()
    expected = torch.stack([formula(view, state, 2, norm_first) for view in tokens])
    torch.testing.assert_close(module(tokens), expected)


def test_dropout_acts_on_the_mixers_and_in_training_only() -> None:
    module = build(dropout=0.5)
    tokens = torch.randn(2, 6, 5)
    assert not torch.equal(module(tokens), module(tokens))
    module.eval()
    assert torch.equal(module(tokens), module(tokens))
    with torch.no_grad():
        for block in module.blocks:
            for direction in (block.forward_block, block.backward_block):
                direction.out_proj.weight.zero_()
    # With silent mixers only the residual is left, and dropout does not touch it.
    assert torch.equal(module.train()(tokens), module.eval()(tokens))


def test_every_parameter_learns() -> None:
    module = build()
    module(torch.randn(2, 6, 5)).square().sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("hidden", "expand", "inner"),
    [(1024, 1.75, 1792), (768, 2.0, 1536), (768, 1.75, 1344), (48, 1.75, 84), (100, 0.28, 28)],
)
def test_usual_expansions_come_back_exactly(hidden, expand, inner) -> None:
    assert int(expand * hidden) == inner
    assert shortest_expand(inner, hidden) == expand


def test_rounding_of_the_product_is_respected() -> None:
    assert int(0.29 * 100) == 28  # so that 0.29 cannot be the answer for 29
    found = shortest_expand(29, 100)
    assert found != 0.29
    assert int(found * 100) == 29


@given(st.integers(1, 5000), st.integers(1, 20000))
def test_expand_is_exact_for_any_sizes(hidden, inner) -> None:
    assert int(shortest_expand(inner, hidden) * hidden) == inner


@given(st.integers(1, 300), st.integers(1, 600))
def test_expand_has_the_fewest_decimals(hidden, inner) -> None:
    found = shortest_expand(inner, hidden)
    for digits in itertools.count():
        most = math.ceil((inner + 2) / hidden * 10**digits)
        if any(int(m / 10**digits * hidden) == inner for m in range(most + 1)):
            assert round(found, digits) == found
            return


@pytest.mark.parametrize(
    ("name", "shape", "formula"),
    [
        ("blocks.0.forward_block.A_log", (24, 3), "A_log"),
        ("blocks.1.backward_block.A_log", (23, 4), r"A_log has shape \[23, 4\], but \[23, 3\]"),
        ("blocks.0.backward_block.in_proj.weight", (45, 18), r"but \[46, 18\]"),
        ("blocks.1.forward_block.x_proj.weight", (9, 23), r"but \[8, 23\]"),
        ("blocks.1.forward_block.dt_proj.weight", (23, 3), r"but \[23, 2\]"),
        ("blocks.1.forward_block.D", (22,), r"but \[23\]"),
        ("blocks.1.forward_block.conv1d.weight", (23, 1, 4), r"but \[23, 1, 3\]"),
        ("blocks.1.forward_block.out_proj.weight", (18, 24), r"but \[18, 23\]"),
        ("blocks.1.norm.weight", (17,), r"but \[18\]"),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(name, shape, formula) -> None:
    shapes = {k: tuple(v.shape) for k, v in build().state_dict().items()}
    recipe("bimamba").infer(Shapes(shapes))
    with pytest.raises(ContradictionError, match=formula) as error:
        recipe("bimamba").infer(Shapes(shapes | {name: shape}))
    assert name in str(error.value)


def test_an_empty_shell_is_explained() -> None:
    shapes = {k: (0,) * v.ndim for k, v in build().state_dict().items()}
    with pytest.raises(ContradictionError, match="holds no weights"):
        recipe("bimamba").infer(Shapes(shapes))


def test_a_missing_block_is_named() -> None:
    shapes = {k: tuple(v.shape) for k, v in build(depth=3).state_dict().items()}
    left = {k: v for k, v in shapes.items() if not k.startswith("blocks.1.")}
    with pytest.raises(ContradictionError, match=r"blocks has entries up to 2 but lacks \[1\]"):
        recipe("bimamba").infer(Shapes(left))


def test_claims_about_expand_agree_when_the_width_does() -> None:
    shapes = {k: tuple(v.shape) for k, v in build(hidden_dim=64, expand=1.333).state_dict().items()}
    architecture = recipe("bimamba")
    seen = architecture.infer(Shapes(shapes))
    assert seen["expand"].value == 1.33
    assert architecture.agrees("expand", 1.333, seen)
    assert not architecture.agrees("expand", 1.4, seen)
    for nonsense in (math.nan, math.inf, "1.333", None):
        assert not architecture.agrees("expand", nonsense, seen)
    assert architecture.agrees("hidden_dim", 64, seen)
    assert not architecture.agrees("hidden_dim", 63, seen)


@pytest.mark.parametrize("expand", [0.05, 1e308, math.inf, math.nan])
def test_an_expansion_without_inner_width_is_refused(expand) -> None:
    with pytest.raises(ValidationError, match="expand"):
        BiMambaSettings(hidden_dim=18, expand=expand)
