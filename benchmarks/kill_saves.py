"""Kills writing processes at random moments, and fills a disk, and looks at what is left.

    python benchmarks/kill_saves.py [--kills 300]

Each operation runs in a process of its own that is sent SIGKILL at a random time of its run. After
that, whatever a reader would open must be one of the two models, whole, with the settings that
belong to its weights; temporary files must be found by nobody. Ends with 1 if that ever fails.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import machine
from small_model import small_model

from panovlm.checkpoint.documents.metadata import EMBEDDED
from panovlm.checkpoint.find.locate import SIDECAR, locate
from panovlm.checkpoint.find.tree import checkpoints_below
from panovlm.checkpoint.loading.load import build_empty, complete, prove_model
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import save_checkpoint, strip_metadata, without_record
from panovlm.cli.main import main as panovlm
from panovlm.models.model import PanoramaVLM

OLD, NEW = 0.5, 0.25
"""Overlap of the two models; one of their weights has the same value, which ties the two."""
MARK = "projector.linear.bias"


@dataclass(frozen=True)
class Operation:
    """Something that writes checkpoints.

    Attributes:
        work: does it in a folder.
        place: what a reader opens afterwards, below the folder.
        left: models that may be found there (``None``: nothing yet).
    """

    name: str
    work: Callable[[Path, Path], None]
    prepare: Callable[[Path, Path], None]
    place: str
    left: tuple[float | None, ...]


def command(*words: object) -> None:
    with redirect_stdout(io.StringIO()):
        code = panovlm([str(word) for word in words])
    if code:
        sys.exit(code)


def save(stock: Path, folder: Path) -> None:
    save_checkpoint(PanoramaVLM.from_checkpoint(stock / "new" / "best.ckpt"), folder / "best.ckpt")


def describe(stock: Path, folder: Path) -> None:
    for name in ("best", "last"):
        file = folder / f"{name}.ckpt"
        command("add-metadata", "--checkpoint", file, "--set", f"models.overlap_ratio={OLD}")


def solve(stock: Path, folder: Path) -> None:
    command("repair", folder, "--solve", "--write")


def forgetful_run(stock: Path, folder: Path) -> None:
    """A setting is missing everywhere; its usual value is the right one, which the probe shows."""
    old_run(stock, folder)
    file, sidecar = folder / "best.ckpt", folder / SIDECAR
    contents = torch.load(file, weights_only=True)
    del contents[EMBEDDED]
    contents["state_dict"] = without_record(contents["state_dict"])
    torch.save(contents, file)
    document = json.loads(sidecar.read_text())
    del document["recipe"]["models"]["overlap_ratio"]
    sidecar.write_text(json.dumps(document))


class Convert:
    """Converts the new model over the old one."""

    def __init__(self, to: str, name: str) -> None:
        self.to, self.name = to, name

    def __call__(self, stock: Path, folder: Path) -> None:
        self.run(stock / "new", folder)

    def prepare(self, stock: Path, folder: Path) -> None:
        folder.mkdir()
        self.run(stock / "old", folder)

    def run(self, source: Path, folder: Path) -> None:
        words = ("--to", self.to, "--overwrite", "--max-shard-size", "100KB")
        command("convert", source, folder / self.name, *words)


def old_run(stock: Path, folder: Path) -> None:
    shutil.copytree(stock / "old", folder)


def bare_run(stock: Path, folder: Path) -> None:
    folder.mkdir()
    for name in ("best", "last"):
        strip_metadata(stock / "old" / "best.ckpt", folder / f"{name}.ckpt")


def nothing(stock: Path, folder: Path) -> None:
    folder.mkdir()


def operations() -> list[Operation]:
    converts = {
        "safetensors": "out.safetensors",
        "lightning": "out.ckpt",
        "sharded": "out",
        "huggingface": "out",
    }
    found = [
        Operation("save, over another", save, old_run, "", (OLD, NEW)),
        Operation("save, into nothing", save, nothing, "", (None, NEW)),
        Operation("add-metadata, two files", describe, bare_run, "", (OLD,)),
        Operation("repair --solve --write", solve, forgetful_run, "", (OLD,)),
    ]
    for to, name in converts.items():
        work = Convert(to, name)
        found.append(Operation(f"convert to {to}", work, work.prepare, name, (OLD, NEW)))
    return found


def make_stock(stock: Path) -> None:
    """Write the two models."""
    for name, ratio in {"old": OLD, "new": NEW}.items():
        model = small_model(overlap_ratio=ratio)
        model.get_parameter(MARK).data.fill_(ratio)
        (stock / name).mkdir(parents=True)
        save_checkpoint(model, stock / name / "best.ckpt")


def what_is_there(folder: Path, place: str) -> float | None:
    """Open what a reader would; return which of the two models it is, or ``None`` for nothing."""
    for path in checkpoints_below(folder):
        assert not any(part.startswith(".") for part in path.relative_to(folder).parts), path
    target = folder / place
    if not target.exists() or (target.is_dir() and not any(checkpoints_below(target))):
        return None
    assert locate(target).checkpoint.name[0] != "."
    resolution = resolve(target)
    resolution.raise_conflicts()
    prove_model(resolution, build_empty(complete(resolution))).raise_failure(target)
    model = PanoramaVLM.from_checkpoint(target)
    ratio = model.recipe.models.overlap_ratio
    assert torch.equal(model.get_parameter(MARK), torch.full_like(model.get_parameter(MARK), ratio))
    return ratio


def child(started: Any, work: Callable[[Path, Path], None], stock: Path, folder: Path) -> None:
    started.send(None)
    work(stock, folder)


def run(context: Any, operation: Operation, stock: Path, folder: Path, after: float | None) -> int:
    """Do the work in a process, killed ``after`` so many seconds; return its exit code."""
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there, operation.work, stock, folder))
    process.start()
    here.recv()
    process.join(after)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode


def kill(context: Any, operation: Operation, stock: Path, folder: Path, kills: int) -> bool:
    """Kill one operation again and again; print what was found."""
    begun = time.monotonic()
    prepared = folder.with_name("prepared")
    operation.prepare(stock, prepared)
    durations = []
    for _ in range(3):
        shutil.copytree(prepared, folder)
        start = time.monotonic()
        assert run(context, operation, stock, folder, None) == 0
        durations.append(time.monotonic() - start)
        shutil.rmtree(folder)
    draw = random.Random(operation.name)
    found: Counter[float | None] = Counter()
    killed = leftovers = failed = runs = 0
    # The first run is slower than those that follow, so some of these end before they are killed.
    while killed < kills and runs < 4 * kills:
        shutil.copytree(prepared, folder)
        code = run(context, operation, stock, folder, draw.uniform(0, median(durations)))
        runs += 1
        killed += code == -signal.SIGKILL
        leftovers += bool(list(folder.rglob(".*.tmp")))
        try:
            there = what_is_there(folder, operation.place)
            assert there in operation.left, there
            found[there] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what a reader would get
            failed += 1
            print(f"  FAILED {operation.name}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)
    shutil.rmtree(prepared)
    old, new, none = found[OLD], found[NEW], found[None]
    print(
        f"| {operation.name} | {killed} of {runs} | {old} | {new} | {none} | {leftovers} | "
        f"{failed} | {time.monotonic() - begun:.0f} s |",
        flush=True,
    )
    return failed == 0


def fill_up(operation: Operation, stock: Path, folder: Path) -> bool:
    """Run an operation where there is no room for it; print what came of it."""
    operation.prepare(stock, folder)
    full = folder / "filler"
    room = "files of at most 2 kB"
    limit = 2_000
    if os.path.ismount(folder.parent):
        full.write_bytes(bytes(shutil.disk_usage(folder.parent).free))
        room, limit = "a full tmpfs", resource.RLIM_INFINITY
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))\n"
        "from pathlib import Path\n"
        "from panovlm.cli.quiet import quiet\n"
        "quiet()  # other libraries' advice is not ours\n"
        "import kill_saves\n"
        "from panovlm.errors import PanoVLMError\n"
        f"work = {{o.name: o.work for o in kill_saves.operations()}}[{operation.name!r}]\n"
        "try:\n"
        f"    work(Path({str(stock)!r}), Path({str(folder)!r}))\n"
        "except PanoVLMError as error:\n"
        "    sys.exit(f'error: {error}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    full.unlink(missing_ok=True)
    said = done.stderr.strip()
    fine = done.returncode != 0 and said.startswith("error: cannot write ") and "\n" not in said
    fine = fine and not list(folder.rglob(".*.tmp"))
    there = what_is_there(folder, operation.place)
    fine = fine and there == operation.left[0]
    print(f"| {operation.name} | {room} | {said.replace(str(folder), '')} | {there} |")
    shutil.rmtree(folder)
    return fine


def disk_full(stock: Path, root: Path) -> bool:
    """Fill a small disk (a tmpfs where this process may mount one, else a limit on file sizes)."""
    small = root / "small"
    small.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)]
    mounted = os.geteuid() == 0 and subprocess.run(words, capture_output=True).returncode == 0
    print("\n| with no room | where | message | then found |\n|---|---|---|---|")
    try:
        fine = [fill_up(operation, stock, small / "work") for operation in operations()]
        return all(fine)
    finally:
        if mounted:
            subprocess.run(["umount", str(small)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300, help="in all, shared by the operations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kill_saves", "panovlm.checkpoint.saving.convert"])
    print(machine())
    print(
        "\n| killed while doing | killed | old model | new model | nothing | temporary files left "
        "| failures | time |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_stock(root / "stock")
        share = -(-options.kills // len(operations()))
        fine = [
            kill(context, operation, root / "stock", root / "work", share)
            for operation in operations()
        ]
        fine.append(disk_full(root / "stock", root))
    print("\nall whole" if all(fine) else "\nFAILED")
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
