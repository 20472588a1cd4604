"""How long training stands still for a checkpoint, and what that takes of memory.

    python benchmarks/saving.py [--runs 5] [--megabytes 400] [--json FILE] [--update PAGE]

One training step and a checkpoint of weights and AdamW's state, again and again: written before the
next step begins (as Lightning does), in the background from a copy (Lightning's
``AsyncCheckpointIO``), and in the background from the weights themselves, which the optimizer waits
for (this package). All files must be equal. Every way runs in a process of its own, whose largest
resident memory is told.
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from machine import spread
from table import options, publish
from torch import nn

from panovlm.training.background import AtomicCheckpointIO, BackgroundCheckpointIO

WIDTH = 1024
BATCH = 256


def build(megabytes: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model whose weights and AdamW's state have that size."""
    torch.manual_seed(0)
    layers = max(1, round(megabytes * 1e6 / (3 * 4 * WIDTH * WIDTH)))
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def steps(
    megabytes: int,
    runs: int,
    folder: Path,
    save: Callable[[dict[str, Any], Path], None] | None,
    wait: Callable[[], None],
) -> list[float]:
    """Return the milliseconds of each step with the checkpoint after it."""
    model, optimizer = build(megabytes)
    data = torch.randn(BATCH, WIDTH)
    taken: list[float] = []
    for step in range(runs + 1):
        begun = time.perf_counter()
        model(data).square().mean().backward()
        wait()
        optimizer.step()
        optimizer.zero_grad()
        if save is not None:
            state = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
            save(state, folder / f"{step}.ckpt")
            if step:
                (folder / f"{step - 1}.ckpt").unlink(missing_ok=True)
        if step:  # the first makes the optimizer's state
            taken.append((time.perf_counter() - begun) * 1e3)
    wait()
    return taken


def nothing() -> None:
    """Wait for nobody."""


def work(way: str, megabytes: int, runs: int, folder: Path, told: Any) -> None:
    """Train one way; send the times and the largest memory."""
    torch.set_num_threads(1)
    end: Callable[[], None] = nothing
    save: Callable[[dict[str, Any], Path], None] | None = None
    wait = nothing
    if way == "before the next step":
        save = AtomicCheckpointIO().save_checkpoint
    elif way == "in the background, copied":
        copying = AsyncCheckpointIO(AtomicCheckpointIO())
        save, end = copying.save_checkpoint, copying.teardown
    elif way == "in the background, panovlm":
        ours = BackgroundCheckpointIO()
        save, wait, end = ours.save_checkpoint, ours.wait, ours.teardown
    taken = steps(megabytes, runs, folder, save, wait)
    end()
    told.put((taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3))


WAYS = (
    "no checkpoint",
    "before the next step",
    "in the background, copied",
    "in the background, panovlm",
)


def main() -> int:
    parser = options(__doc__.splitlines()[0], runs=5)
    parser.add_argument("--megabytes", type=int, default=400)
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    states: list[Any] = []
    for way in WAYS:
        folder = Path(tempfile.mkdtemp(prefix="panovlm-saving-"))
        told = context.Queue()
        process = context.Process(
            target=work, args=(way, given.megabytes, given.runs, folder, told)
        )
        process.start()
        taken, memory = told.get()
        process.join()
        file = folder / f"{given.runs}.ckpt"
        if file.is_file():
            states.append(torch.load(file, weights_only=True))
        shutil.rmtree(folder)
        rows.append({"way": way, "ms": taken, "memory": memory})
    if not all(equal(states[0], state) for state in states[1:]):
        sys.exit("the files are not equal")
    plain = rows[0]
    lines = [
        "| checkpoints are written | ms per step | more than a step, ms | largest memory, MB |"
    ]
    lines += ["|---|---|---|---|"]
    lines += [
        f"| {row['way']} | {spread(row['ms'], 0)} | {median(row['ms']) - median(plain['ms']):.0f} "
        f"| {row['memory']:.0f} |"
        for row in rows
    ]
    publish(given, "saving.py", lines, rows, timed="wall time")
    return 0


def equal(one: Any, other: Any) -> bool:
    """Compare nested containers, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


if __name__ == "__main__":
    sys.exit(main())
