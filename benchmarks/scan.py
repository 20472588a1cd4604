"""The selective scan against the usual ways to compute it, forwards and with gradients.

    python benchmarks/scan.py [--runs 7] [--json scan.json] [--update docs/performance.md]

``loop`` is the plain formula, a Python loop over time on all states, as in mamba-ssm's reference
and on transformers' path without kernels. ``mambapy`` is its parallel scan, where it is installed.
``products alone`` does as many multiplications as the compiled loop has for its states, most of
them with an addition in the same instruction, on numbers in registers, and nothing else: with the
same arithmetic no scan is faster. Every output and every gradient is compared with float64 before
anything is timed. Each candidate that keeps something for its gradients does so once more in a
process of its own, whose largest resident memory is told.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from machine import machine, spread
from table import replace_table
from torch import Tensor, nn

from panovlm.models.mamba import backends
from panovlm.models.mamba.scan import selective_scan

SHAPES = {
    "large, B9 L256 D1792 N64": (9, 256, 1792, 64),
    "one view, B1 L256 D1792 N64": (1, 256, 1792, 64),
    "small, B36 L64 D112 N16": (36, 64, 112, 16),
    "demo, B144 L4 D168 N8": (144, 4, 168, 8),
}
TOO_LONG = {("loop", "large, B9 L256 D1792 N64", True)}
"""Minutes and some thirty GB for each run."""
ONCE = {("mambapy", "large, B9 L256 D1792 N64", True)}
"""Half a minute for each run."""
ALONE = "products alone"
PRODUCTS = {False: 10, True: 28}
"""For a state: exponent, six in the power of two, input, state, output. With gradients all of these
twice, and eight for the gradients of state (two), exponent, A, delta, x, B and C."""
EXACT, EXACT_GRADIENTS = 4e-7, 2e-6
"""Of the largest value; outputs differ by 1e-7 to 3.5e-7 in float32, whoever computes them."""


def arguments(batch: int, length: int, width: int, n: int) -> dict[str, Tensor]:
    """Random tensors that lie as a mixer makes them."""
    g = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g)

    B, C = normal(batch, length, 2 * n).chunk(2, -1)
    return {
        "u": normal(batch, length, width).transpose(1, 2),
        "delta": normal(batch, length, width).transpose(1, 2) - 2,
        "A": -torch.arange(1.0, n + 1).expand(width, n).contiguous(),
        "B": B.transpose(1, 2),
        "C": C.transpose(1, 2),
        "D": torch.ones(width),
        "z": normal(batch, length, 2 * width).chunk(2, -1)[1].transpose(1, 2),
        "delta_bias": torch.zeros(width),
    }


def loop(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    """Step through time with every decay and input made beforehand."""
    delta = nn.functional.softplus(delta + delta_bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    inputs = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    state, outputs = torch.zeros_like(decay[:, :, 0]), []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + inputs[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    return (torch.stack(outputs, 2) + D[:, None] * u) * nn.functional.silu(z)


def mambapy(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    """Scan all states in parallel over time."""
    from mambapy.pscan import pscan

    delta = nn.functional.softplus(delta + delta_bias[:, None]).transpose(1, 2)
    decay = torch.exp(delta.unsqueeze(-1) * A)
    inputs = (delta * u.transpose(1, 2)).unsqueeze(-1) * B.transpose(1, 2).unsqueeze(2)
    states = pscan(decay, inputs)
    outputs = C.transpose(1, 2).unsqueeze(-1).to(states.dtype)
    y = (states @ outputs).squeeze(3).transpose(1, 2)
    return (y + D[:, None] * u) * nn.functional.silu(z)


def ours(backend: backends.Choice) -> Callable[..., Tensor]:
    """Return our scan with one backend."""

    def scan(**args: Tensor) -> Tensor:
        backends.use(backend)
        return selective_scan(**args, delta_softplus=True)

    return scan


def candidates() -> dict[str, Callable[..., Tensor]]:
    """Return what is installed."""
    found = {"torch": ours("torch"), "loop": loop}
    if backends.has_numba():
        found = {"numba": ours("numba"), **found}
    if find_spec("mambapy"):
        found["mambapy"] = mambapy
    return found


def seconds(scan: Callable[..., Tensor], args: Mapping[str, Tensor], *, gradients: bool) -> float:
    """Time one call."""
    leaves = {k: v.detach().requires_grad_(gradients) for k, v in args.items()}
    begun = time.perf_counter()
    y = scan(**leaves)
    if gradients:
        y.sum().backward()
    return time.perf_counter() - begun


@cache
def multiplier() -> Callable[[np.ndarray, int], None]:
    """Return a function that multiplies lanes so many times."""
    import numba

    from panovlm.models.mamba.lanes import load, store

    @numba.njit
    def multiply(room: np.ndarray, number: int) -> None:
        factor = load(room, 0)
        one, two, three = factor, factor, factor  # as many as it takes not to wait for one of them
        for _ in range(number // 3):
            one, two, three = one * factor + factor, two * factor + factor, three * factor + factor
        store(room, 0, one + two + three)

    return multiply


def seconds_alone(batch: int, length: int, width: int, n: int, *, gradients: bool) -> float:
    """Time the products of a scan."""
    from panovlm.models.mamba.vectors import LANES

    room = np.full(LANES, 0.5, np.float32)
    number = batch * length * width * n * PRODUCTS[gradients] // LANES
    begun = time.perf_counter()
    multiplier()(room, number)
    return time.perf_counter() - begun


def gradients_of(scan: Callable[..., Tensor], args: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the output and the gradients of its mean square."""
    leaves = {name: value.detach().requires_grad_() for name, value in args.items()}
    y = scan(**leaves)
    found = torch.autograd.grad(y.square().mean(), list(leaves.values()))
    return {"y": y.detach(), **dict(zip(leaves, found, strict=True))}


def difference(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return the largest differences of output and gradients, relative to the largest values."""
    errors = {
        name: float((found[name] - value).abs().max() / value.abs().max())
        for name, value in exact.items()
        if name in found
    }
    return errors.pop("y"), max(errors.values(), default=0.0)


def errors_of(shape: str) -> dict[str, tuple[float, float]]:
    """Compare all candidates with float64.

    Gradients are compared for one sequence: peers would need tens of GB for all.
    """
    args = arguments(*SHAPES[shape])
    one = arguments(1, *SHAPES[shape][1:])
    exact = ours("torch")
    truth = gradients_of(exact, {name: value.double() for name, value in one.items()})
    whole = {"y": output(exact, {name: value.double() for name, value in args.items()})}
    return {
        name: (
            difference({"y": output(candidate, args)}, whole)[0],
            difference(gradients_of(candidate, one), truth)[1],
        )
        for name, candidate in candidates().items()
    }


@torch.no_grad()
def output(candidate: Callable[..., Tensor], args: Mapping[str, Tensor]) -> Tensor:
    """Scan once, without gradients."""
    return candidate(**args)


def memory(name: str, shape: str) -> float:
    """Return how many MB a process holds more at the most while it takes gradients."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=_hold, args=(name, shape, told))
    process.start()
    process.join()
    return told.get() if process.exitcode == 0 else float("nan")


def _hold(name: str, shape: str, told: Any) -> None:
    torch.set_num_threads(1)
    args, candidate = arguments(*SHAPES[shape]), candidates()[name]
    gradients_of(candidate, arguments(1, 8, *SHAPES[shape][2:]))  # imports and compiles
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # forget the largest so far
    seconds(candidate, args, gradients=True)
    told.put(_resident("VmHWM") - before)


def _resident(which: str) -> float:
    """Return this process's memory in MB, now or at its largest."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(which))


def measure(shape: str, runs: int) -> list[dict[str, object]]:
    """Compare all candidates on one shape."""
    args, rows = arguments(*SHAPES[shape]), []
    errors = errors_of(shape)
    wrong = {
        name: found
        for name, found in errors.items()
        if found[0] > EXACT or found[1] > EXACT_GRADIENTS
    }
    if wrong:
        sys.exit(f"{shape}: not exact to {EXACT} and {EXACT_GRADIENTS}: {wrong}")
    for gradients in (False, True):
        scans = {n: s for n, s in candidates().items() if (n, shape, gradients) not in TOO_LONG}
        times: dict[str, list[float]] = {name: [] for name in scans}
        for run in range(runs + 1):
            for name, scan in scans.items():
                if run != 1 and (name, shape, gradients) in ONCE:
                    continue
                taken = seconds(scan, args, gradients=gradients)
                if run:  # the first warms up
                    times[name].append(taken * 1e3)
            if backends.has_numba():
                taken = seconds_alone(*SHAPES[shape], gradients=gradients)
                if run:
                    times.setdefault(ALONE, []).append(taken * 1e3)
        first = median(next(iter(times.values())))
        rows += [
            {
                "shape": shape,
                "gradients": gradients,
                "candidate": name,
                "ms": found,
                "ratio": median(found) / first,
                "error": None if name == ALONE else errors[name][gradients],
                "memory": memory(name, shape)
                if gradients and "large" in shape and name != ALONE
                else None,
            }
            for name, found in times.items()
        ]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--shape", action="append", choices=list(SHAPES))
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--update", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    torch.set_num_threads(1)
    heading = "| shape | work | candidate | ms | times as long | error | MB more |"
    lines = [
        f"On {machine()}; one thread; medians of {options.runs} runs [smallest .. largest].",
        "",
    ]
    lines += [heading, "|---" * 7 + "|"]
    rows = []
    for shape in options.shape or SHAPES:
        for row in measure(shape, options.runs):
            rows.append(row)
            work = "with gradients" if row["gradients"] else "forward"
            error = "" if row["error"] is None else f"{row['error']:.1e}"
            lines.append(
                f"| {shape} | {work} | {row['candidate']} | {spread(row['ms'], 1)} "
                f"| {row['ratio']:.2f} | {error} "
                f"| {'' if row['memory'] is None else format(row['memory'], '.0f')} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join(lines))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}), encoding="utf-8")
    if options.update:
        replace_table(options.update, "scan.py", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
