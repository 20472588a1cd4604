"""SIGKILL between any two lines of a write: what a reader finds is whole, old or new."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import panovlm
from panovlm.checkpoint.find import tree
from panovlm.checkpoint.find.locate import SIDECAR, locate
from panovlm.checkpoint.loading.load import build_empty, complete, prove_model
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import save_checkpoint, strip_metadata
from panovlm.cli.main import main
from panovlm.models.model import PanoramaVLM

WATCHED = (
    "atomic.py",
    "checkpoint/repair/metadata.py",
    "checkpoint/saving/convert.py",
    "checkpoint/saving/export.py",
    "checkpoint/saving/save.py",
    "checkpoint/saving/weight_files.py",
)
"""Files of the package that write, or decide the order in which things are written."""
OFTEN = 3
KILLS = 5
"""Moments per operation; benchmarks/kill_saves.py tries hundreds, at random times."""


def killed_at(line: int, counted: Path, work: Callable[..., Any], *arguments: Any) -> None:
    """Do some work, and die before its so many-th line in the watched files (0: count them).

    A line in a loop counts when it is reached for the first few times.
    """
    seen = 0
    reached: Counter[tuple[str, int]] = Counter()
    files = {str(Path(panovlm.__file__).parent / name) for name in WATCHED}

    def inside(frame: Any, event: str, _: Any) -> Any:
        nonlocal seen
        place = (frame.f_code.co_filename, frame.f_lineno)
        reached[place] += event == "line"
        if event == "line" and reached[place] <= OFTEN:
            seen += 1
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return inside

    def call(frame: Any, event: str, _: Any) -> Any:
        return inside if frame.f_code.co_filename in files else None

    sys.settrace(call)
    work(*arguments)
    sys.settrace(None)
    counted.write_text(str(seen))


def save(source: Path, target: Path) -> None:
    save_checkpoint(PanoramaVLM.from_checkpoint(source), target)


def command(*words: str) -> None:
    assert main(list(words)) == 0


@pytest.fixture(scope="module")
def context() -> Any:
    """Processes that need not import everything anew, and share no thread with this one."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(
        [
            "panovlm.cli.convert",
            "panovlm.checkpoint.saving.convert",
            "panovlm.models.resamplers.mlp.module",
            "pytest",
            "transformers.models.qwen3.modeling_qwen3",
            "transformers.models.siglip.modeling_siglip",
        ]
    )
    return made


@pytest.fixture
def models(own, tmp_path):
    """Two checkpoints of one shape: other weights, and another setting."""
    for name, ratio in {"old": 0.5, "new": 0.25}.items():
        folder = tmp_path / name
        folder.mkdir()
        save_checkpoint(own(overlap_ratio=ratio), folder / "best.ckpt")
        model = PanoramaVLM.from_checkpoint(folder)
        with torch.no_grad():
            model.projector.linear.bias.fill_(ratio)
        save_checkpoint(model, folder / "best.ckpt")
    return tmp_path / "old" / "best.ckpt", tmp_path / "new" / "best.ckpt"


def moments(context: Any, tmp_path: Path, prepare: Callable[[], Path], work: Any, *words: Any):
    """Yield the folder that the work was done in: once finished, then after each killing."""
    counted = tmp_path / "counted"

    def one(line: int) -> int | None:
        folder = prepare()
        places = [word.format(folder) if isinstance(word, str) else word for word in words]
        process = context.Process(target=killed_at, args=(line, counted, work, *places))
        process.start()
        process.join()
        return process.exitcode

    assert one(0) == 0
    yield prepare.folder
    total = int(counted.read_text())
    lines = random.Random(3).sample(range(1, total + 1), min(KILLS, total))
    for line in lines:
        assert one(line) == -signal.SIGKILL
        yield prepare.folder


class Prepare:
    """Makes a folder anew from another one, or empty."""

    def __init__(self, folder: Path, like: Path | None = None) -> None:
        self.folder, self.like = folder, like

    def __call__(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.like is None:
            self.folder.mkdir()
        else:
            shutil.copytree(self.like, self.folder)
        return self.folder


def loaded(path: Path) -> float:
    """Load what a reader finds; return which of the two models it is."""
    chosen = locate(path).checkpoint
    assert chosen.name[0] != "." and chosen in tree.checkpoints_below(path)
    resolution = resolve(path)
    resolution.raise_conflicts()
    model = build_empty(complete(resolution))
    prove_model(resolution, model).raise_failure(path)
    model = PanoramaVLM.from_checkpoint(path)
    ratio = model.recipe.models.overlap_ratio
    assert torch.equal(model.projector.linear.bias, torch.full((24,), ratio))
    return ratio


@pytest.mark.parametrize("there", [True, False], ids=["over another one", "into an empty folder"])
def test_save(there, models, context, tmp_path):
    old, new = models
    prepare = Prepare(tmp_path / "work", old.parent if there else None)
    found = []
    target = tmp_path / "work" / "best.ckpt"
    for folder in moments(context, tmp_path, prepare, save, new, target):
        found.append(loaded(folder) if there or target.exists() else None)
    assert found[0] == 0.25 and (0.5 if there else None) in found


def test_add_metadata(models, context, tmp_path):
    """Two files of one run, and one of another model, that have lost their documents."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("best", "last"):
        strip_metadata(models[0], bare / f"{name}.ckpt")
    shutil.copytree(models[1].parent, bare / "other")
    words = ("add-metadata", "--recursive", "{}", "--set", "models.overlap_ratio=0.5")
    prepare = Prepare(tmp_path / "work", bare)
    described = []
    for folder in moments(context, tmp_path, prepare, command, *words):
        assert loaded(folder) == 0.5
        described.append((folder / SIDECAR).exists())
        for path in tree.checkpoints_below(folder / "other"):
            assert resolve(path).conflicts == []
    assert described[0] and not all(described)


def test_convert_to_a_folder(models, context, tmp_path):
    old, new = models
    like = tmp_path / "like"
    like.mkdir()
    options = ("--to", "huggingface", "--max-shard-size=40KB")
    command("convert", str(old), str(like / "out"), *options)
    prepare = Prepare(tmp_path / "work", like)
    words = ("convert", str(new), "{}/out", *options, "--overwrite")
    found = []
    for folder in moments(context, tmp_path, prepare, command, *words):
        found.append(loaded(folder / "out"))
        assert len(list(tree.checkpoints_below(folder))) == 1
    assert found[0] == 0.25 and 0.5 in found


@pytest.mark.parametrize(
    ("to", "name"), [("safetensors", "a.safetensors"), ("lightning", "a.ckpt")]
)
def test_convert_to_a_file(to, name, models, context, tmp_path):
    old, new = models
    like = tmp_path / "like"
    like.mkdir()
    command("convert", str(old), str(like / name), "--to", to)
    prepare = Prepare(tmp_path / "work", like)
    words = ("convert", str(new), "{}/" + name, "--to", to, "--overwrite")
    found = [loaded(folder) for folder in moments(context, tmp_path, prepare, command, *words)]
    assert found[0] == 0.25 and 0.5 in found
