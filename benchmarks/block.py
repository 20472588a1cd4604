"""The BiMamba block against the same block of transformers' mixers, forwards and with gradients.

    python benchmarks/block.py [--runs 5] [--json block.json] [--update docs/performance.md]

Every candidate has the same weights, and the same norm, reversal and residual around its two
mixers. ``transformers`` steps through time on a CPU; with its option ``use_mambapy`` it calls the
parallel scan of mambapy, where that is installed. ``matrix products`` are those of our block alone.
Outputs and gradients are compared with float64 before anything is timed.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from machine import spread
from table import options, publish, take_turns
from torch import Tensor, nn
from transformers import MambaConfig
from transformers.models.mamba import modeling_mamba

from panovlm.models.mamba import backends
from panovlm.models.mamba.block import MambaMixer
from panovlm.models.resamplers.bimamba.module import BiMambaBlock
from panovlm.models.resamplers.bimamba.recipe import BiMambaSettings

SHAPES = {
    "nine views, B9 L256 d1024 N64": (9, 256, 1024, 64),
    "two views, B2 L256 d1024 N64": (2, 256, 1024, 64),
    "small, B36 L64 d64 N16": (36, 64, 64, 16),
}
TOO_LONG = {
    ("nine views, B9 L256 d1024 N64", True): ("transformers", "transformers, mambapy"),
    ("two views, B2 L256 d1024 N64", True): ("transformers",),
}
"""A minute and more for each run."""
PRODUCTS = "matrix products"
EXACT = 2e-6
"""Of the largest value of an output or of the gradient of a parameter."""
Work = Callable[[], object]


def block_of(width: int, n: int) -> BiMambaBlock:
    """Return a block whose parameters are all off their initial values."""
    torch.manual_seed(0)
    block = BiMambaBlock(BiMambaSettings(hidden_dim=width, d_state=n, dropout=0.0))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return block


class TheirMixer(modeling_mamba.MambaMixer):
    """A mixer of transformers that can be called as ours is."""

    def forward(self, x: Tensor, loop: None, *, reverse: bool = False) -> Tensor:
        """Mix; back through time by turning a copy round."""
        assert loop is None
        return super().forward(x.flip(1)).flip(1) if reverse else super().forward(x)


def of_transformers(block: BiMambaBlock, *, use_mambapy: bool) -> nn.Module:
    """Return the block with transformers' mixers in it."""
    block = copy.deepcopy(block)
    for side in ("forward_block", "backward_block"):
        ours = getattr(block, side)
        inner, n = ours.A_log.shape
        config = MambaConfig(
            hidden_size=ours.in_proj.in_features,
            state_size=n,
            conv_kernel=ours.conv1d.kernel_size[0],
            use_mambapy=use_mambapy,
        )
        config.intermediate_size = inner  # its `expand` must be a whole number
        theirs = TheirMixer(config, layer_idx=0)
        theirs.load_state_dict(ours.state_dict())
        setattr(block, side, theirs)
    return block


def run(block: nn.Module, backend: backends.Choice, x: Tensor, *, gradients: bool) -> Tensor:
    """Mix once; without gradients none are prepared either."""
    backends.use(backend)
    block.zero_grad()
    with torch.set_grad_enabled(gradients):
        y = block(x.detach().requires_grad_(gradients), None)
    if gradients:
        (y * y.detach()).sum().backward()
    return y.detach()


def products(block: BiMambaBlock, x: Tensor, *, gradients: bool) -> None:
    """Multiply what the block multiplies, with nothing in between."""
    for mixer in (block.forward_block, block.backward_block):
        assert isinstance(mixer, MambaMixer)
        inner, rank = mixer.dt_proj.weight.shape
        for weight, width in (
            (mixer.in_proj.weight, x.shape[2]),
            (mixer.x_proj.weight, inner),
            (mixer.dt_proj.weight, rank),
            (mixer.out_proj.weight, inner),
        ):
            weight.grad = None
            given = x.new_ones(*x.shape[:2], width, requires_grad=gradients)
            with torch.set_grad_enabled(gradients):
                y = nn.functional.linear(given, weight)
            if gradients:
                y.backward(y.detach())


def candidates(block: BiMambaBlock) -> dict[str, Callable[..., Tensor]]:
    """Return what is installed, ours first."""
    found: dict[str, Callable[..., Tensor]] = {}
    if backends.has_numba():
        found["panovlm, numba"] = partial(run, block, "numba")
    found["panovlm, torch"] = partial(run, block, "torch")
    found["transformers"] = partial(run, of_transformers(block, use_mambapy=False), "torch")
    if find_spec("mambapy"):
        theirs = of_transformers(block, use_mambapy=True)
        found["transformers, mambapy"] = partial(run, theirs, "torch")
    return found


def error(values: list[Tensor], exact: list[Tensor]) -> float:
    """Return the largest difference, each relative to the largest value of its tensor."""
    pairs = zip(values, exact, strict=True)
    return max(float((v - e).abs().max() / e.abs().max()) for v, e in pairs)


def errors(block: BiMambaBlock, x: Tensor, theirs: dict[str, Any]) -> dict[str, float]:
    """Return the error of every candidate's output and gradients on one sequence."""
    exact = copy.deepcopy(block).double()
    reference = [run(exact, "torch", x.double(), gradients=True)]
    reference += [p.grad for p in exact.parameters()]
    found = {}
    for name, candidate in theirs.items():
        y = candidate(x, gradients=True)
        own = candidate.args[0]
        gradients = [own.get_parameter(n).grad for n, _ in exact.named_parameters()]
        found[name] = error([y, *gradients], reference)
    wrong = {name: e for name, e in found.items() if e > EXACT}
    if wrong:
        sys.exit(f"not exact to {EXACT}: {wrong}")
    return found


def measure(shape: str, runs: int) -> list[dict[str, Any]]:
    """Compare all candidates on one shape."""
    batch, length, width, n = SHAPES[shape]
    block = block_of(width, n)
    x = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1))
    found, rows = candidates(block), []
    off = errors(block, x[:1, :64], found)
    for gradients in (False, True):
        late = TOO_LONG.get((shape, gradients), ())
        work: dict[str, Work] = {
            name: partial(candidate, x, gradients=gradients)
            for name, candidate in found.items()
            if name not in late
        }
        work[PRODUCTS] = partial(products, block, x, gradients=gradients)
        times = take_turns(work, runs)
        first = median(next(iter(times.values())))
        rows += [
            {
                "shape": shape,
                "gradients": gradients,
                "candidate": name,
                "ms": ms,
                "ratio": median(ms) / first,
                "error": off.get(name),
            }
            for name, ms in times.items()
        ]
    return rows


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    work = "with gradients" if row["gradients"] else "forward"
    off = "" if row["error"] is None else f"{row['error']:.1e}"
    return (
        f"| {row['shape']} | {work} | {row['candidate']} | {spread(row['ms'], 1)} "
        f"| {row['ratio']:.2f} | {off} |"
    )


def main() -> int:
    parser = options(__doc__.splitlines()[0], runs=5)
    parser.add_argument("--shape", action="append", choices=list(SHAPES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for shape in given.shape or SHAPES:
        for row in measure(shape, given.runs):
            rows.append(row)
            print(line(row), file=sys.stderr, flush=True)
    peers = "" if find_spec("mambapy") else "mambapy is not installed. "
    heading = "| shape | work | candidate | ms | times as long | error |"
    lines = [
        f"{peers}Errors are the largest of the output and all gradients, on 64 steps of one view.",
        "",
        heading,
        "|---" * 6 + "|",
        *map(line, rows),
    ]
    publish(given, "block.py", lines, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
