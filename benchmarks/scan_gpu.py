"""The selective scan on a CUDA device against the usual ways to compute it.

    python benchmarks/scan_gpu.py [--runs 20] [--dtype bfloat16] [--json scan.json]
        [--update docs/performance.md]

Candidates are our scan by Triton and in plain torch, transformers' function as it is and compiled
by torch (its parallel scan), and mambapy and mamba-ssm where they are installed. Every output is
compared with float64 before anything is timed, and ours must be exact. What others cannot do (for
want of memory, or of gradients) is left out and told. "Bandwidth" is what must at least be moved,
arguments read and results written once each way, in the time that was taken, against a copy of one
large tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from machine import machine, spread
from scan import EXACT, SHAPES, arguments, difference, mambapy, ours, output
from table import options, write
from torch import Tensor
from transformers.models.mamba.modeling_mamba import mamba_selective_scan

from panovlm.errors import PanoVLMError
from panovlm.models.mamba import backends

EXACT_ON_GPU = {torch.float32: 4 * EXACT, torch.bfloat16: 3e-2}
"""Of the largest value; a GPU's powers of two are exact to two bits more only."""
OURS = ("triton", "torch")
COPIED = 1 << 30
"""Bytes of the copy that shows what the memory can do; no cache holds them."""


def transformers(u, delta, A, B, C, D, z, delta_bias, **how: bool) -> Tensor:
    """Call transformers' function without its kernels."""
    how["delta_softplus"] = True
    y = mamba_selective_scan(u, delta, A, B, C, D, z, delta_bias, return_last_state=False, **how)
    return y[0] if isinstance(y, tuple) else y


def candidates() -> dict[str, Callable[..., Tensor]]:
    """Return what is installed, ours first."""
    found: dict[str, Callable[..., Tensor]] = {"triton": ours("triton"), "torch": ours("torch")}
    found["transformers"] = transformers
    found["transformers, torch.compile"] = torch.compile(
        partial(transformers, use_associative_scan=True), dynamic=False
    )
    if find_spec("mambapy"):
        found["mambapy"] = mambapy
    if find_spec("mamba_ssm"):
        found["mamba-ssm"] = ours("mamba_ssm")
    return found


def milliseconds(work: Callable[[], object]) -> float:
    """Time one call on the device."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    work()
    ended.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(ended)


def call(scan: Callable[..., Tensor], args: Mapping[str, Tensor], *, gradients: bool) -> Tensor:
    """Scan once, with gradients of everything or of nothing."""
    leaves = {k: v.detach().requires_grad_(gradients) for k, v in args.items()}
    y = scan(**leaves)
    if gradients:
        y.sum().backward()
    return y.detach()


def moved(args: Mapping[str, Tensor], *, gradients: bool) -> int:
    """Return the fewest bytes that come from and go to memory."""
    given = sum(t.numel() * t.element_size() for t in args.values())
    output = args["u"].numel() * args["u"].element_size()
    # Back again: the arguments and the output's gradient are read, and as many gradients written.
    return given + output + gradients * (2 * given + output)


def bandwidth(runs: int) -> float:
    """Return the bytes that a copy reads and writes in a millisecond."""
    source = torch.ones(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = [milliseconds(lambda: target.copy_(source)) for _ in range(runs + 1)]
    return 2 * COPIED / median(times[1:])


def can(name: str, shape: str, work: Callable[[], object]) -> bool:
    """Try something once; tell what keeps others from it."""
    try:
        work()
    except (RuntimeError, PanoVLMError) as error:
        if name in OURS:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"{shape}: {name} is left out: {reason}", file=sys.stderr, flush=True)
        return False
    return True


def measure(shape: str, dtype: torch.dtype, runs: int, best: float) -> list[dict[str, Any]]:
    """Compare all candidates on one shape."""
    args = {k: v.to("cuda") for k, v in arguments(*SHAPES[shape]).items()}
    args = {k: v.to(dtype) if v.ndim == 3 else v for k, v in args.items()}
    exact = {"y": output(ours("torch"), {k: v.double() for k, v in args.items()})}
    errors: dict[str, float] = {}
    rows: list[dict[str, Any]] = []

    def compare(name: str, scan: Callable[..., Tensor]) -> None:
        errors[name] = difference({"y": output(scan, args)}, exact)[0]

    scans = {n: s for n, s in candidates().items() if can(n, shape, partial(compare, n, s))}
    wrong = {name: errors[name] for name in OURS if not errors[name] <= EXACT_ON_GPU[dtype]}
    if wrong:
        sys.exit(f"{shape}: not exact to {EXACT_ON_GPU[dtype]}: {wrong}")
    for gradients in (False, True):
        work = {
            name: partial(call, scan, args, gradients=gradients) for name, scan in scans.items()
        }
        # The first call compiles and warms up.
        times: dict[str, list[float]] = {n: [] for n, once in work.items() if can(n, shape, once)}
        for _ in range(runs):
            for name, found in times.items():
                found.append(milliseconds(work[name]))
        first = median(times["triton"])
        rows += [
            {
                "shape": shape,
                "gradients": gradients,
                "candidate": name,
                "ms": found,
                "ratio": median(found) / first,
                "bandwidth": moved(args, gradients=gradients) / median(found) / best,
                "error": errors[name],
            }
            for name, found in times.items()
        ]
    return rows


def main() -> int:
    parser = options(__doc__.splitlines()[0], runs=20)
    parser.add_argument("--shape", action="append", choices=list(SHAPES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("scan_gpu.py needs a CUDA device, and torch finds none here")
    backends.use("triton")  # says what is missing for it
    best = bandwidth(given.runs)
    where = f"{torch.cuda.get_device_name()} (a copy: {best / 1e6:.0f} GB/s), {machine()}"
    lines = [
        f"On {where}; {given.dtype}; medians of {given.runs} runs [smallest .. largest].",
        "",
        "| shape | work | candidate | ms | times as long | bandwidth | error |",
        "|---" * 7 + "|",
    ]
    rows = []
    for shape in given.shape or SHAPES:
        for row in measure(shape, getattr(torch, given.dtype), given.runs, best):
            rows.append(row)
            work = "with gradients" if row["gradients"] else "forward"
            lines.append(
                f"| {shape} | {work} | {row['candidate']} | {spread(row['ms'])} "
                f"| {row['ratio']:.1f} | {row['bandwidth']:.0%} | {row['error']:.1e} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    write(given, "scan_gpu.py", lines, rows, where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
