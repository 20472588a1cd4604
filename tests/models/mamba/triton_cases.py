"""The scan by Triton against plain torch in float64.

``test_scan_triton.py`` runs this file in processes of its own: in Triton's interpreter, which must
be chosen before Triton is imported, and on a CUDA device where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer as ReferenceMixer
from triton import knobs

from panovlm.models.mamba import backends, scan_triton
from panovlm.models.mamba.block import MambaMixer
from panovlm.models.mamba.scan import selective_scan

DEVICE = torch.device("cpu" if knobs.runtime.interpret else "cuda")
EXACT, EXACT_GRADIENTS = (3e-7, 2e-6) if knobs.runtime.interpret else (1e-6, 5e-6)
"""Of the largest value. The powers of two of a GPU are exact to two bits more only."""
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


@pytest.fixture(autouse=True)
def short_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three steps in a tile on the CPU: the interpreter does those beyond the end as well."""
    if knobs.runtime.interpret:
        monkeypatch.setattr(scan_triton, "TILE", 3)
    backends.use("triton")
    yield
    backends.use("auto")


def arguments(b: int, d: int, n: int, length: int) -> dict[str, Tensor]:
    """As a mixer makes them: time before width, B and C and the gate parts of wider tensors."""
    g = torch.Generator().manual_seed(b + d + n + length)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g).to(DEVICE)

    _, B, C = normal(b, length, 3 + 2 * n).split((3, n, n), -1)
    return {
        "u": normal(b, length, d).transpose(1, 2),
        "delta": normal(b, length, d).transpose(1, 2) - 2,
        "A": -torch.rand(d, n, generator=g).to(DEVICE) * 4,
        "B": B.transpose(1, 2),
        "C": C.transpose(1, 2),
        "D": normal(d),
        "z": normal(b, length, 2 * d).chunk(2, -1)[1].transpose(1, 2),
        "delta_bias": normal(d),
    }


def results(args: dict[str, Tensor], dtype: torch.dtype | None = None, **options) -> list[Tensor]:
    """Return the output and all gradients; the leaves keep the strides that they had."""
    leaves = {k: v.detach().to(dtype).requires_grad_() for k, v in args.items()}
    y = selective_scan(**leaves, **{"delta_softplus": True, **options})
    weights = torch.linspace(-1, 1, y.numel()).bfloat16().view(y.shape)  # exact in every type
    gradients = torch.autograd.grad(y, list(leaves.values()), weights.to(y.dtype).to(DEVICE))
    return [y.detach(), *gradients]


def assert_exact(args: dict[str, Tensor], **options) -> None:
    found = results(args, torch.float32, **options)
    expected = results(args, torch.float64, **options)
    for name, one, other in zip(("y", *args), found, expected, strict=True):
        assert one.shape == other.shape
        error = (one.double() - other).abs().max() / other.abs().max().clamp_min(1e-30)
        limit = EXACT if name == "y" else EXACT_GRADIENTS
        assert error < limit, f"{name}: {error:.1e}"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 5, 3, 7), (1, 9, 17, 3)])
def test_odd_sizes_in_both_directions(size, reverse) -> None:
    assert_exact(arguments(*size), reverse=reverse)


@settings(max_examples=4, deadline=None)
@given(st.integers(1, 2), st.integers(1, 5), st.integers(1, 9), st.integers(1, 7), st.booleans())
def test_any_size(b, d, n, length, reverse) -> None:
    assert_exact(arguments(b, d, n, length), reverse=reverse)


def test_the_tiles_that_are_used(monkeypatch) -> None:
    monkeypatch.undo()
    assert scan_triton.TILE == 8
    assert_exact(arguments(1, 3, 4, 10))


@pytest.mark.parametrize("present", [(), ("D",), ("z",), ("delta_bias",)])
def test_optional_arguments(present) -> None:
    args = arguments(1, 3, 2, 4)
    left_out = {"D", "z", "delta_bias"} - set(present)
    assert_exact({k: v for k, v in args.items() if k not in left_out})


def test_step_sizes_without_softplus() -> None:
    args = arguments(1, 3, 2, 4)
    assert_exact(args | {"delta": args["delta"].abs()}, delta_softplus=False)


def test_blocks_and_parts_of_the_channels(monkeypatch) -> None:
    """Programs that take several blocks add to the same sums, in the same order every time."""
    monkeypatch.setattr(scan_triton, "STATES_OF_A_PROGRAM", 4)  # one channel in a block
    monkeypatch.setattr(scan_triton, "PROGRAMS", 2)  # two parts of one and two blocks
    args = arguments(1, 3, 3, 4)
    assert_exact(args)
    once, again = results(args, torch.float32), results(args, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_tensors_may_lie_in_any_way() -> None:
    args = arguments(2, 3, 2, 4)
    tight = {name: value.contiguous() for name, value in args.items()}
    one_for_all = {n: torch.stack([v, v], -1)[..., 0] for n, v in args.items()}
    one_for_all["u"] = args["u"][:1].expand(2, -1, -1)
    one_for_all["z"] = args["z"][:, :1].expand(2, 3, 4)
    for case in (tight, one_for_all):
        assert_exact(case, reverse=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_only_rounded_at_the_borders(dtype) -> None:
    halves = {k: v.to(dtype) for k, v in arguments(1, 6, 8, 7).items()}
    found = results(halves, dtype)
    exact = results(halves, torch.float32)
    for name, one, other in zip(("y", *NAMES), found, exact, strict=True):
        assert one.dtype == dtype
        # The interpreter cuts bits off where a GPU rounds: one unit in the last place, not a half.
        ulp = torch.finfo(dtype).eps * other.abs() + torch.finfo(dtype).tiny
        assert ((one.float() - other).abs() <= ulp).all(), name


def test_parameters_may_be_wider_than_the_signal() -> None:
    args = arguments(1, 3, 2, 4)
    mixed = {k: v.bfloat16() if v.ndim == 3 else v for k, v in args.items()}
    found = results(mixed)
    assert [t.dtype for t in found[1:]] == [t.dtype for t in mixed.values()]
    assert found[0].dtype == torch.bfloat16


@pytest.mark.parametrize("reverse", [False, True])
def test_equals_the_mixer_of_transformers(reverse) -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(5, expand=1.3, d_state=3, d_conv=3)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    config = MambaConfig(hidden_size=5, state_size=3, conv_kernel=3)
    config.intermediate_size = len(mixer.D)  # its own `expand` must be an integer
    reference = ReferenceMixer(config, layer_idx=0)
    reference.load_state_dict(mixer.state_dict())
    mixer.to(DEVICE), reference.to(DEVICE)
    x = torch.randn(2, 6, 5).to(DEVICE)
    output = mixer(x, reverse=reverse)
    expected = reference(x.flip(1)).flip(1) if reverse else reference(x)
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(output)
    ours = torch.autograd.grad((output * weights).sum(), list(mixer.parameters()))
    named = dict(reference.named_parameters())
    theirs = torch.autograd.grad(
        (expected * weights).sum(), [named[name] for name, _ in mixer.named_parameters()]
    )
    for (name, _), one, other in zip(mixer.named_parameters(), ours, theirs, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_extreme_step_sizes_stay_finite() -> None:
    args = arguments(1, 4, 3, 2)
    args["delta"] = torch.tensor([-300.0, -90.0, 90.0, 300.0])[None, :, None].expand(1, 4, 2)
    args["delta"], args["z"] = args["delta"].to(DEVICE), args["z"] * 200
    expected = selective_scan(**{k: v.double() for k, v in args.items()}, delta_softplus=True)
    found, *gradients = results(args, torch.float32)
    assert (found - expected).abs().max() < EXACT * expected.abs().max()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_not_lost(name) -> None:
    args = {k: v.contiguous() for k, v in arguments(1, 2, 2, 2).items()}
    args[name].view(-1)[0] = float("nan")
    assert selective_scan(**args, delta_softplus=True).isnan().any()


def test_nothing_to_scan() -> None:
    for size in ((0, 2, 2, 3), (2, 2, 2, 0)):
        y, *gradients = results(arguments(*size), torch.float32)
        assert y.shape == (size[0], 2, size[3])
        assert all(not gradient.any() for gradient in gradients)


def test_nothing_is_kept_without_gradients() -> None:
    args = arguments(1, 3, 2, 4)
    with torch.no_grad():
        plain = selective_scan(**args, delta_softplus=True)
    assert torch.equal(plain, results(args, torch.float32)[0])


def test_second_derivatives_are_refused() -> None:
    args = {k: v.requires_grad_() for k, v in arguments(1, 2, 2, 2).items()}
    (first,) = torch.autograd.grad(
        selective_scan(**args, delta_softplus=True).sum(), args["B"], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
