"""Files are written whole or not at all; the state of the random generators travels with them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from panovlm.errors import CheckpointError
from panovlm.training.background import AtomicCheckpointIO
from panovlm.training.random_state import random_state, set_random_state

STATE = {"weights": torch.arange(100_000.0), "step": 3}


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Let no file grow over ``room`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    return path


def test_what_was_written_is_read(file: Path) -> None:
    found = AtomicCheckpointIO().load_checkpoint(file, weights_only=True)
    assert found["step"] == 3
    assert torch.equal(found["weights"], STATE["weights"])
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("room", [0, 1000, 300_000])
def test_a_full_disk_leaves_the_old_file(room: int, file: Path) -> None:
    before = file.read_bytes()
    with full_disk(room), pytest.raises(CheckpointError, match=r"cannot write .*last\.ckpt: "):
        AtomicCheckpointIO().save_checkpoint({**STATE, "step": 4}, file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]


def test_what_cannot_be_written_leaves_the_old_file(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({**STATE, "callback": lambda: None}, file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]


CPU = torch.device("cpu")


def test_random_state(tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.rand(3)
    torch.save(random_state(CPU), tmp_path / "state.pt")
    expected = torch.rand(3)
    torch.rand(7)
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True), CPU)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_random_state_of_an_accelerator(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept and put back where one trains, and not touched elsewhere."""
    generator = torch.Generator().manual_seed(5)
    module = torch.get_device_module(kind)
    monkeypatch.setattr(module, "get_rng_state", generator.get_state)
    monkeypatch.setattr(module, "set_rng_state", generator.set_state)
    there = torch.device(kind)
    torch.save(random_state(there), tmp_path / "state.pt")
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    expected = torch.rand(3, generator=generator)
    set_random_state(states, CPU)
    assert not torch.equal(torch.rand(3, generator=generator), expected)
    set_random_state(states, there)
    assert torch.equal(torch.rand(3, generator=generator), expected)
    assert random_state(CPU)[0].keys() == {"cpu"}
