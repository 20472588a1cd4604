"""SIGKILL at moments of the run that files on the disk tell."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from panovlm.checkpoint.find.locate import locate
from panovlm.checkpoint.loading.load import build_empty, prove_model
from panovlm.checkpoint.resolve import resolve
from panovlm.cli.main import main
from panovlm.training.rundir import BEST, LAST

STAGES = ("vision", "resampler", "finetune")

Moment = Callable[[Path], bool]


def train(file: Path, runs: Path, *more: str) -> list[str]:
    return ["train", "-c", str(file), f"paths.runs_dir={runs}", *more]


def writes_of(name: str, count: int) -> Moment:
    """Seen: so many different files of that name, each replacing the one before."""
    seen: set[tuple[int, int]] = set()

    def moment(runs: Path) -> bool:
        for path in runs.glob(f"*/*/*/{name}"):
            try:
                found = path.stat()
            except FileNotFoundError:  # a temporary file that got its name in between
                continue
            seen.add((found.st_ino, found.st_mtime_ns))
        return len(seen) >= count

    return moment


def begun(stage: str) -> Moment:
    return lambda runs: any(runs.glob(f"*/{stage}/*/config.yaml"))


def killed_at(context: Any, arguments: list[str], runs: Path, moment: Moment) -> int | None:
    """Run the command in a process of its own and kill it; return its exit code."""
    process = context.Process(target=main, args=(arguments,))
    process.start()
    while process.is_alive() and not moment(runs):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def context() -> Any:
    """Processes that need not import everything anew, and share no thread with this one."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["panovlm.cli.main", "panovlm.training.run"])
    return made


def assert_nothing_half_written(runs: Path) -> None:
    """Every checkpoint that a reader would pick up opens and is what it says it is."""
    for folder in {path.parent for path in runs.rglob("*.ckpt") if path.name[0] != "."}:
        for purpose in ("evaluate", "resume"):
            assert not locate(folder, purpose).checkpoint.name.startswith(".")
        for file in folder.glob("[!.]*.ckpt"):
            resolution = resolve(file)
            assert not resolution.conflicts
            prove_model(resolution, build_empty(resolution.config)).raise_failure(file)
            torch.load(file, weights_only=True)


def weights(runs: Path, stage: str, file: str) -> dict[str, torch.Tensor]:
    (path,) = runs.glob(f"small/{stage}/*/{file}")
    return torch.load(path, weights_only=True)["state_dict"]


def test_killed_again_and_again(small_file: Path, context: Any, tmp_path: Path) -> None:
    assert main(train(small_file, tmp_path / "whole")) == 0
    runs = tmp_path / "killed"
    draw = random.Random(5)
    moments = [
        writes_of(LAST, draw.randint(1, 3)),
        writes_of(".*.tmp", draw.randint(2, 9)),
        writes_of(BEST, 2),
        begun("resampler"),
        writes_of(LAST, draw.randint(2, 4)),
        begun("finetune"),
        writes_of(LAST, 1),
    ]
    killed = 0
    for moment in moments:
        code = killed_at(context, train(small_file, runs, "--resume"), runs, moment)
        killed += code == -signal.SIGKILL
        assert_nothing_half_written(runs)
    assert killed >= 5
    assert main(train(small_file, runs, "--resume")) == 0
    assert_nothing_half_written(runs)
    for stage in STAGES:
        for file in (LAST, BEST):
            found, expected = (weights(r, stage, file) for r in (runs, tmp_path / "whole"))
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in found), (stage, file)
