"""The scan against a float64 loop over time, with all gradients."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from panovlm.models.mamba import scan_torch
from panovlm.models.mamba.scan import selective_scan
from panovlm.models.mamba.scan_torch import CHUNK, scan_from

OPTIONAL = ("D", "z", "delta_bias")


def make(b: int, d: int, n: int, length: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Random float64 arguments with states that decay."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    return {
        "u": normal(b, d, length),
        "delta": normal(b, d, length),
        "A": -torch.rand(d, n, generator=g, dtype=torch.float64) * 4,
        "B": normal(b, n, length),
        "C": normal(b, n, length),
        "D": normal(d),
        "z": normal(b, d, length),
        "delta_bias": normal(d),
    }


def loop(args: dict[str, Tensor], *, delta_softplus: bool) -> Tensor:
    """Step through time, one state at a time, in the dtype of the arguments."""
    u, delta, A, B, C = (args[name] for name in ("u", "delta", "A", "B", "C"))
    if "delta_bias" in args:
        delta = delta + args["delta_bias"][:, None]
    if delta_softplus:
        delta = torch.log1p(torch.exp(delta))
    state = torch.zeros(u.shape[0], *A.shape, dtype=u.dtype)
    outputs = []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        state = torch.exp(step * A) * state + step * B[:, None, :, t] * u[:, :, t, None]
        outputs.append((state * C[:, None, :, t]).sum(-1))
    y = torch.stack(outputs, dim=-1)
    if "D" in args:
        y = y + args["D"][:, None] * u
    if "z" in args:
        y = y * args["z"] * torch.sigmoid(args["z"])
    return y


@dataclass
class Result:
    output: Tensor
    gradients: dict[str, Tensor]


def differentiate(function, args: dict[str, Tensor], dtype: torch.dtype, **options) -> Result:
    leaves = {
        name: value.detach().clone().to(dtype).requires_grad_() for name, value in args.items()
    }
    output = function(leaves, **options)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    (output * weights.to(output.dtype)).sum().backward()
    return Result(output.detach(), {name: leaf.grad for name, leaf in leaves.items()})


def call(args: dict[str, Tensor], **options) -> Tensor:
    return selective_scan(**args, **options)


def assert_near(found: Tensor, expected: Tensor, tolerance: float, name: str = "output") -> None:
    scale = expected.abs().max().clamp_min(1e-300)  # A has no gradient at length 1
    error = (found.double() - expected).abs().max() / scale
    assert error < tolerance, f"{name}: relative error {error:.1e}"


SIZES = [
    (1, 1, 1, 1),
    (2, 3, 4, 1),
    (3, 5, 2, 7),
    (2, 4, 3, CHUNK),
    (2, 7, 5, CHUNK + 1),
    (1, 6, 16, 3 * CHUNK - 1),
    (5, 3, 1, 2 * CHUNK),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("delta_softplus", [True, False])
def test_output_and_all_gradients_equal_the_loop(backend, size, delta_softplus) -> None:
    args = make(*size)
    if not delta_softplus:
        args["delta"], args["delta_bias"] = args["delta"].abs(), args["delta_bias"].abs()
    options = {"delta_softplus": delta_softplus}
    expected = differentiate(loop, args, torch.float64, **options)
    found = differentiate(call, args, torch.float32, **options)
    assert found.output.dtype == torch.float32
    assert_near(found.output, expected.output, 2e-6)
    assert found.gradients.keys() == args.keys()
    for name, gradient in expected.gradients.items():
        assert_near(found.gradients[name], gradient, 5e-6, name)


def test_time_turned_round(backend) -> None:
    """In reverse it is the scan of turned tensors, turned back, with all gradients."""
    args = make(2, 7, 5, CHUNK + 3)

    def turned(leaves: dict[str, Tensor]) -> Tensor:
        over_time = ("u", "delta", "B", "C", "z")
        backwards = {k: v.flip(2) if k in over_time else v for k, v in leaves.items()}
        return loop(backwards, delta_softplus=True).flip(2)

    expected = differentiate(turned, args, torch.float64)
    found = differentiate(call, args, torch.float32, delta_softplus=True, reverse=True)
    assert_near(found.output, expected.output, 2e-6)
    for name, gradient in expected.gradients.items():
        assert_near(found.gradients[name], gradient, 5e-6, name)


@pytest.mark.parametrize("present", [(), *((name,) for name in OPTIONAL)])
def test_optional_arguments_can_be_left_out(present) -> None:
    args = make(2, 3, 4, CHUNK + 2)
    args = {k: v for k, v in args.items() if k not in OPTIONAL or k in present}
    expected = differentiate(loop, args, torch.float64, delta_softplus=True)
    found = differentiate(call, args, torch.float64, delta_softplus=True)
    assert_near(found.output, expected.output, 1e-12)
    for name, gradient in expected.gradients.items():
        assert_near(found.gradients[name], gradient, 1e-12, name)


@pytest.mark.parametrize("limit", [1, 8, 20, 60])
def test_blocks_of_batch_and_width_change_nothing(monkeypatch, limit) -> None:
    args = make(5, 7, 4, CHUNK + 3)
    expected = differentiate(loop, args, torch.float64, delta_softplus=True)
    monkeypatch.setattr(scan_torch, "STATES_AT_ONCE_CPU", limit)
    found = differentiate(call, args, torch.float64, delta_softplus=True)
    assert_near(found.output, expected.output, 1e-12)
    for name, gradient in expected.gradients.items():
        assert_near(found.gradients[name], gradient, 1e-12, name)


def test_gradcheck() -> None:
    args = make(1, 2, 2, CHUNK + 2)
    names = list(args)

    def function(*values: Tensor) -> Tensor:
        return call(dict(zip(names, values, strict=True)), delta_softplus=True)

    assert torch.autograd.gradcheck(function, [v.requires_grad_() for v in args.values()])


def test_second_derivatives_are_refused(backend) -> None:
    args = {k: v.float().requires_grad_() for k, v in make(1, 2, 2, 3).items()}
    (first,) = torch.autograd.grad(call(args).sum(), args["B"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_only_some_states_are_kept_for_the_backward_pass() -> None:
    b, d, n, length = 2, 64, 32, 8 * CHUNK
    args = {k: v.requires_grad_() for k, v in make(b, d, n, length).items()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(args, delta_softplus=True)
    assert sum(kept.values()) < b * d * n * length / 2


def test_nothing_is_kept_and_the_result_is_the_same_without_gradients() -> None:
    args = make(2, 3, 4, CHUNK + 5)
    plain = call(args, delta_softplus=True)
    assert not plain.requires_grad
    tracked = call({k: v.clone().requires_grad_() for k, v in args.items()}, delta_softplus=True)
    assert torch.equal(plain, tracked.detach())
    with torch.no_grad():
        assert not call({k: v.requires_grad_() for k, v in args.items()}).requires_grad


def test_arguments_stay_as_they_were() -> None:
    args = make(2, 3, 4, 5)
    before = {name: value.clone() for name, value in args.items()}
    differentiate(call, args, torch.float64, delta_softplus=True)
    assert all(torch.equal(args[name], before[name]) for name in args)


def test_half_precision_is_only_rounded_at_the_borders(backend) -> None:
    halves = {name: value.bfloat16() for name, value in make(2, 6, 8, CHUNK + 5).items()}
    exact = {name: value.float() for name, value in halves.items()}
    found = differentiate(call, halves, torch.bfloat16, delta_softplus=True)
    expected = differentiate(call, exact, torch.float32, delta_softplus=True)
    assert found.output.dtype == torch.bfloat16
    assert torch.equal(found.output, expected.output.bfloat16())
    assert all(g.dtype == torch.bfloat16 for g in found.gradients.values())


def test_autocast_does_not_reach_the_scan(backend) -> None:
    args = make(2, 6, 8, CHUNK + 5)
    expected = differentiate(call, args, torch.float32, delta_softplus=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = differentiate(call, args, torch.float32, delta_softplus=True)
    assert torch.equal(found.output, expected.output)
    for name, gradient in expected.gradients.items():
        assert torch.equal(found.gradients[name], gradient), name


def test_shapes_can_be_traced_on_meta() -> None:
    args = {name: value.to("meta") for name, value in make(2, 3, 4, CHUNK + 5).items()}
    assert call(args, delta_softplus=True).shape == (2, 3, CHUNK + 5)


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_a_shape_that_would_only_broadcast_is_refused(name) -> None:
    args = make(2, 3, 4, 5)
    args[name] = args[name][:1]
    with pytest.raises(ValueError, match=f"{name} "):
        call(args)


@pytest.mark.parametrize("cut", [1, CHUNK - 1, CHUNK, CHUNK + 5])
def test_a_scan_goes_on_where_another_one_ended(cut) -> None:
    """Two pieces, the state handed over, are the whole, with all gradients."""
    args = make(2, 3, 4, 2 * CHUNK + 1)
    over_time = ("u", "delta", "B", "C", "z")

    def pieces(leaves: dict[str, Tensor]) -> Tensor:
        first = {k: v[..., :cut] if k in over_time else v for k, v in leaves.items()}
        second = {k: v[..., cut:] if k in over_time else v for k, v in leaves.items()}
        start, state = scan_from(None, **first, delta_softplus=True)
        assert state.shape == (2, 3, 4)
        rest, _ = scan_from(state, **second, delta_softplus=True)
        return torch.cat((start, rest), -1)

    expected = differentiate(loop, args, torch.float64, delta_softplus=True)
    found = differentiate(pieces, args, torch.float64)
    assert_near(found.output, expected.output, 1e-12)
    for name, gradient in expected.gradients.items():
        assert_near(found.gradients[name], gradient, 1e-12, name)


def test_gradients_of_first_and_last_state() -> None:
    args = make(1, 2, 2, CHUNK + 2)
    start = torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: scan_from(s, **args, delta_softplus=True), [start])


def test_a_state_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"start has shape \[1, 4, 3\], but \[1, 3, 4\]"):
        scan_from(torch.zeros(1, 4, 3), **make(1, 3, 4, 5))
