"""Files are written while training goes on: the same files, and no weight changes under them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from panovlm.config.schema import Settings
from panovlm.errors import CheckpointError
from panovlm.training import background
from panovlm.training.background import AtomicCheckpointIO, BackgroundCheckpointIO
from panovlm.training.module import StageModule
from panovlm.training.run import train
from panovlm.training.rundir import BEST, LAST

ALONE = "training.stages=[resampler]"


@pytest.fixture
def writer() -> Iterator[BackgroundCheckpointIO]:
    made = BackgroundCheckpointIO()
    yield made
    made.teardown()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing is written before it is set."""
    opened = threading.Event()
    save = torch.save

    def late(*arguments: Any) -> None:
        opened.wait()
        save(*arguments)

    monkeypatch.setattr(background.torch, "save", late)
    yield opened
    opened.set()


def test_saving_returns_before_the_file_is_there(
    writer: BackgroundCheckpointIO, gate: threading.Event, tmp_path: Path
) -> None:
    order: list[bool] = []
    weights = torch.arange(1000.0)
    writer.save_checkpoint({"weights": weights}, tmp_path / "last.ckpt")
    writer.then(lambda: order.append((tmp_path / "last.ckpt").is_file()))
    assert not (tmp_path / "last.ckpt").exists() and not order
    gate.set()
    writer.wait()
    assert order == [True]
    found = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(found["weights"], weights)


def test_one_file_after_the_other(writer: BackgroundCheckpointIO, tmp_path: Path) -> None:
    for step in range(3):
        writer.save_checkpoint({"step": step}, tmp_path / "last.ckpt")
    writer.wait()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["step"] == 2


def test_a_fault_is_told_once_and_nothing_more_is_done(
    writer: BackgroundCheckpointIO, tmp_path: Path
) -> None:
    done: list[int] = []
    writer.save_checkpoint({}, tmp_path / "missing" / "last.ckpt")
    writer.then(lambda: done.append(1))
    with pytest.raises(CheckpointError, match=r"missing/last\.ckpt"):
        writer.wait()
    writer.wait()
    assert not done
    writer.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    writer.then(lambda: done.append(2))
    writer.wait()
    assert done == [2]


def test_a_fault_is_told_with_another_error(writer: BackgroundCheckpointIO, tmp_path: Path) -> None:
    error = ValueError("the loss is not finite")
    writer.save_checkpoint({}, tmp_path / "missing" / "last.ckpt")
    writer.settle(error)
    assert "missing/last.ckpt" in error.__notes__[0]
    writer.settle(error)
    assert len(error.__notes__) == 1


def files(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: torch.load(folder / name, weights_only=True) for name in (BEST, LAST)}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_files_are_the_same_however_late_they_are_written(
    make_settings: Callable[..., Settings],
    gate: threading.Event,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every file is written only once training waits for it: after the next step's passes."""
    overrides = (ALONE, "training.checkpoint_every_n_steps=1", "training.reload_check=false")
    gate.set()
    at_once = AtomicCheckpointIO.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(BackgroundCheckpointIO, "save_checkpoint", at_once)
        expected = files(train(make_settings(tmp_path / "at once", *overrides)))
    wait, save = BackgroundCheckpointIO.wait, BackgroundCheckpointIO.save_checkpoint
    waited: list[bool] = []

    def open_and_wait(self: BackgroundCheckpointIO) -> None:
        waited.append(gate.is_set())
        gate.set()
        wait(self)

    def close_and_save(self: BackgroundCheckpointIO, *arguments: Any, **options: Any) -> None:
        gate.set()
        wait(self)
        gate.clear()
        with monkeypatch.context() as patch:
            patch.setattr(BackgroundCheckpointIO, "wait", wait)
            save(self, *arguments, **options)

    monkeypatch.setattr(BackgroundCheckpointIO, "save_checkpoint", close_and_save)
    monkeypatch.setattr(BackgroundCheckpointIO, "wait", open_and_wait)
    found = files(train(make_settings(tmp_path / "late", *overrides)))
    assert waited.count(False) >= 3
    for name in (BEST, LAST):
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
            assert same(found[name].get(part), expected[name].get(part)), (name, part)


def test_no_second_copy_of_the_weights(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, copied = BackgroundCheckpointIO.save_checkpoint, list[int]()

    def save_and_count(
        self: BackgroundCheckpointIO,
        checkpoint: dict[str, Any],
        path: Any,
        storage_options: Any = None,
    ) -> None:
        own = {p.data_ptr() for p in trained[0].parameters()}
        state = checkpoint["state_dict"].values()
        copied.append(sum(t.numel() for t in state if t.data_ptr() not in own))
        save(self, checkpoint, path, storage_options)

    trained: list[Any] = []
    start = StageModule.on_train_start
    monkeypatch.setattr(
        StageModule, "on_train_start", lambda self: (trained.append(self.model), start(self))[1]
    )
    monkeypatch.setattr(BackgroundCheckpointIO, "save_checkpoint", save_and_count)
    train(make_settings(tmp_path, ALONE, "training.reload_check=false"))
    buffers = sum(buffer.numel() for buffer in trained[0].buffers())
    assert copied and max(copied) <= buffers
