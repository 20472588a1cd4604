"""A run whose checkpoints would not load stops before it has trained anything."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import panovlm.training.run
from panovlm.checkpoint.documents.metadata import EMBEDDED
from panovlm.config.schema import Settings
from panovlm.errors import CheckpointError, ConfigError
from panovlm.training.background import AtomicCheckpointIO
from panovlm.training.run import train
from panovlm.training.rundir import LAST, stage_folder

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")

ON = "training.reload_check=true"
VISION = ("training.stages=[vision]", "training.stage_configs.vision.epochs=1")


def run(settings: Settings) -> tuple[Path, str]:
    told = io.StringIO()
    return train(settings, console=Console(file=told, width=200)), told.getvalue()


def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test the new process where it is about something else."""
    monkeypatch.setattr(
        panovlm.training.run,
        "check_before",
        lambda module, runs, fresh_process: check(module, runs, fresh_process=False),
    )


check = panovlm.training.run.check_before


def test_a_run_like_one_without_the_check(make_settings: Any, tmp_path: Path) -> None:
    """Once in a new process, later here; nothing is left behind, and training goes the same way."""
    stages = "training.stages=[vision, resampler]"
    epochs = [f"training.stage_configs.{stage}.epochs=1" for stage in ("vision", "resampler")]
    plain, said = run(make_settings(tmp_path / "plain", stages, *epochs))
    assert "checkpoints load" not in said
    checked, said = run(make_settings(tmp_path / "checked", stages, *epochs, ON))
    told = [line for line in said.splitlines() if "its checkpoints load" in line]
    assert told == [
        "stage vision: its checkpoints load (in a new process, before the first step)",
        "stage resampler: its checkpoints load (here, before the first step)",
    ]
    one, other = (torch.load(folder / LAST, weights_only=True) for folder in (plain, checked))
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, other["state_dict"][name]), name
    random = [state["callbacks"]["CheckpointWriter"]["random"][0]["cpu"] for state in (one, other)]
    assert torch.equal(*random)
    left = [
        {path.relative_to(root) for path in root.rglob("*") if "logs" not in path.parts}
        for root in (tmp_path / "plain", tmp_path / "checked")
    ]
    assert left[0] == left[1]


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose recipe is not the one that it was built from."""
    build = panovlm.training.run.stage_model

    def built(*arguments: Any) -> Any:
        model = build(*arguments)
        models = {**model.recipe.models.model_dump(), "overlap_ratio": 0.25}
        model.set_recipe(model.recipe.model_copy(update={"models": models}))
        return model

    monkeypatch.setattr(panovlm.training.run, "stage_model", built)


@pytest.mark.usefixtures("lying")
@pytest.mark.parametrize("fresh_process", [True, False])
def test_a_model_that_would_come_back_as_another_one(
    fresh_process: bool, make_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fresh_process:
        here(monkeypatch)
    runs = tmp_path / "some" / "runs"
    with pytest.raises(CheckpointError) as error:
        run(make_settings(runs, *VISION, ON))
    text = str(error.value)
    assert "the checkpoints of stage vision would not load" in text
    assert "the checkpoint: the projector does not compute what it computed" in text
    assert "  models.overlap_ratio = 0.25 (" in text
    assert "Nothing was trained. training.reload_check: false switches this check off." in text
    assert list(tmp_path.iterdir()) == []
    run(make_settings(runs, *VISION))


@pytest.mark.parametrize("program", ["exit 3", "echo out of order >&2; exit 1"])
def test_a_process_that_does_not_answer(
    program: str, make_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(CheckpointError, match=r"ended with status (3: it said nothing|1: out of)"):
        run(make_settings(tmp_path / "runs", *VISION, ON))


def test_an_earlier_run_stays_where_it_is(
    make_settings: Any, tmp_path: Path, lying: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = run(make_settings(tmp_path, *VISION))
    before = (folder / LAST).stat()
    here(monkeypatch)
    with pytest.raises(CheckpointError):
        run(make_settings(tmp_path, *VISION, ON))
    assert (folder / LAST).stat() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "small_stage_state.json"]


def damaged(checkpoint: dict[str, Any], how: str) -> dict[str, Any]:
    """Return what a faulty writer would put on the disk."""
    state = dict(checkpoint["state_dict"])
    name = "model.projector.linear.weight"
    match how:
        case "lost":
            del state[name]
        case "other values":
            state[name] = state[name] + 1
        case _:
            return {**checkpoint, EMBEDDED: checkpoint[EMBEDDED].replace("0.5", "0.25")}
    return {**checkpoint, "state_dict": state}


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("lost", "the projection to the language model is missing"),
        ("other values", "model.projector.linear.weight has other values in the file"),
        ("other settings", "overlap_ratio: 0.5 (checkpoint_metadata.json) against 0.25"),
    ],
)
def test_a_save_that_went_wrong_stops_the_run(
    how: str, told: str, make_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before the first step passed; the third file is not what it should be."""
    here(monkeypatch)
    write, written = AtomicCheckpointIO.save_checkpoint, list[Path]()

    def save(self: Any, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        written.append(Path(path))
        write(self, damaged(checkpoint, how) if len(written) == 3 else checkpoint, path)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
    settings = make_settings(tmp_path, *VISION, ON)
    with pytest.raises(CheckpointError) as error:
        run(settings)
    assert len(written) == 3
    assert f"{written[2]} was just written and cannot be used" in str(error.value)
    assert told in str(error.value)
    assert written[2].parent == stage_folder(settings, "vision")


def test_where_nothing_can_be_written(
    make_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"paths\.runs_dir"):
        run(make_settings(tmp_path / "file" / "runs", *VISION, ON))
