"""The compiled scan against plain torch in float64, in all the ways its arguments can lie."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from panovlm.errors import ConfigError, MissingDependencyError
from panovlm.models.mamba import backends
from panovlm.models.mamba.scan import selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
OPTIONAL = ("D", "z", "delta_bias")


@pytest.fixture(autouse=True)
def numba_only():
    pytest.importorskip("numba")
    backends.use("numba")
    yield
    backends.use("auto")


def arguments(b: int, d: int, n: int, length: int) -> dict[str, Tensor]:
    """As a mixer makes them: time before width, B and C and the gate parts of wider tensors."""
    g = torch.Generator().manual_seed(b + d + n + length)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g)

    _, B, C = normal(b, length, 3 + 2 * n).split((3, n, n), -1)
    return {
        "u": normal(b, length, d).transpose(1, 2),
        "delta": normal(b, length, d).transpose(1, 2) - 2,
        "A": -torch.rand(d, n, generator=g) * 4,
        "B": B.transpose(1, 2),
        "C": C.transpose(1, 2),
        "D": normal(d),
        "z": normal(b, length, 2 * d).chunk(2, -1)[1].transpose(1, 2),
        "delta_bias": normal(d),
    }


def results(args: dict[str, Tensor], dtype: torch.dtype, **options: bool) -> list[Tensor]:
    """Return the output and all gradients; the leaves keep the strides that they had."""
    leaves = {k: v.detach().to(dtype).requires_grad_() for k, v in args.items()}
    y = selective_scan(**leaves, **{"delta_softplus": True, **options})
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(dtype)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), weights)]


def assert_exact(args: dict[str, Tensor], **options: bool) -> None:
    found = results(args, torch.float32, **options)
    expected = results(args, torch.float64, **options)
    for name, one, other in zip(("y", *args), found, expected, strict=True):
        assert one.shape == other.shape
        error = (one.double() - other).abs().max() / other.abs().max().clamp_min(1e-30)
        assert error < (3e-7 if name == "y" else 2e-6), f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    "size", [(1, 1, 1, 2), (3, 63, 5, 7), (2, 64, 1, 8), (70, 65, 3, 4), (2, 130, 17, 41)]
)
def test_odd_sizes_in_both_directions(size) -> None:
    assert_exact(arguments(*size))
    assert_exact(arguments(*size), reverse=True)


@pytest.mark.parametrize("size", [(0, 3, 2, 5), (2, 3, 2, 0)])
def test_nothing_to_scan(size) -> None:
    args = arguments(*size)
    y, *gradients = results(args, torch.float32)
    assert y.shape == args["u"].shape
    for gradient, value in zip(gradients, args.values(), strict=True):
        assert gradient.shape == value.shape and not gradient.any()


@pytest.mark.parametrize("present", list(itertools.product([False, True], repeat=3)))
def test_optional_arguments(present) -> None:
    args = arguments(2, 5, 3, 19)
    left_out = [name for name, there in zip(OPTIONAL, present, strict=True) if not there]
    assert_exact({k: v for k, v in args.items() if k not in left_out})


def test_step_sizes_without_softplus() -> None:
    args = arguments(2, 5, 3, 19)
    assert_exact(args | {"delta": args["delta"].abs()}, delta_softplus=False)


def test_a_long_scan_is_as_exact_as_one_of_a_panorama() -> None:
    args = arguments(1, 70, 16, 256)
    args["A"] -= 1  # states that never fade gather rounding errors in every float32 scan
    assert_exact(args)


def test_tensors_may_lie_in_any_way() -> None:
    args = arguments(3, 6, 4, 10)
    tight = {name: value.contiguous() for name, value in args.items()}
    gaps = {n: torch.stack([v, v], -1)[..., 0] for n, v in args.items()}
    one_for_all = args | {
        "u": args["u"][:1].expand(3, -1, -1),
        "z": args["z"][:, :1].expand(3, 6, 10),
    }
    for case in (tight, gaps, one_for_all):
        assert_exact(case)
        assert_exact(case, reverse=True)


def test_no_result_depends_on_the_number_of_threads() -> None:
    args, before = arguments(5, 200, 16, 100), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results(args, torch.float32)
        torch.set_num_threads(3)
        together = results(args, torch.float32)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_nothing_changes_without_gradients() -> None:
    args = arguments(2, 5, 3, 19)
    with torch.no_grad():
        plain = selective_scan(**args, delta_softplus=True)
    assert torch.equal(plain, results(args, torch.float32)[0])


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_not_lost(name) -> None:
    args = {k: v.contiguous() for k, v in arguments(1, 3, 2, 9).items()}
    args[name].view(-1)[0] = float("nan")
    assert selective_scan(**args, delta_softplus=True).isnan().any()


def test_extreme_step_sizes_stay_finite() -> None:
    args = arguments(1, 4, 3, 9)
    args["delta"] = torch.tensor([-300.0, -90.0, 90.0, 300.0])[None, :, None].expand(1, 4, 9)
    expected = selective_scan(**{k: v.double() for k, v in args.items()}, delta_softplus=True)
    found, *gradients = results(args, torch.float32)
    assert (found - expected).abs().max() < 3e-7 * expected.abs().max()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_float64_and_meta_stay_in_torch() -> None:
    args = arguments(2, 3, 4, 5)
    doubles = {name: value.double() for name, value in args.items()}
    assert selective_scan(**doubles).dtype == torch.float64
    assert selective_scan(**{k: v.to("meta") for k, v in args.items()}).shape == (2, 3, 5)
    assert backends.for_scan(torch.device("cpu"), torch.float32, 1) == "numba"
    assert backends.for_scan(torch.device("cpu"), torch.float64, 1) == "torch"


def test_small_scans_are_not_worth_compiling() -> None:
    backends.use("auto")
    cpu, large = torch.device("cpu"), backends.WORTH_COMPILING
    assert backends.for_scan(cpu, torch.float32, large) == "numba"
    assert backends.for_scan(cpu, torch.float32, large - 1) == "torch"


def test_another_device_is_an_error_where_numba_was_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"works on the CPU only.*cuda:0"):
        backends.for_scan(torch.device("cuda:0"), torch.float32, 1)
    backends.use("auto")
    assert backends.for_scan(torch.device("mps"), torch.float32, 1) == "torch"


def test_without_numba(monkeypatch) -> None:
    monkeypatch.setattr(backends, "has_numba", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"pip install 'panovlm\[fast\]'"):
        backends.use("numba")
    backends.use("auto")
    cpu, large = torch.device("cpu"), backends.WORTH_COMPILING
    assert backends.for_scan(cpu, torch.float32, large) == "torch"


def test_no_compiler_is_imported_before_it_is_needed() -> None:
    compilers = "{'numba', 'triton.language'}"
    code = f"import sys, panovlm.models.mamba.block; sys.exit(bool({compilers} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_torchs_default_type_has_no_say():
    """Lightning sets it to bfloat16 while it trains in bf16-true."""
    args = arguments(2, 5, 3, 70)
    expected = results(args, torch.float32)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = results(args, torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
