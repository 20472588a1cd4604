"""The record of an experiment's stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from panovlm.config.schema import Settings
from panovlm.errors import ConfigError
from panovlm.training.state import StateFile


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    settings = Settings.model_validate(
        {
            "experiment": {"name": "x"},
            "paths": {"runs_dir": str(tmp_path / "runs")},
            "training": {"stages": ["vision"], "stage_configs": {"vision": {}}},
        }
    )
    return StateFile(settings)


def test_nothing_begun(file: StateFile, tmp_path: Path) -> None:
    assert file.path == tmp_path / "runs" / "x_stage_state.json"
    assert file.read().stages == {}
    assert not file.read().is_completed("vision")
    file.forget(["vision"])
    assert not file.path.parent.exists()


def test_begin_and_complete(file: StateFile, tmp_path: Path) -> None:
    file.begin("vision", tmp_path / "v")
    begun = file.read().stages["vision"]
    assert (begun.status, begun.folder, begun.completed_at) == ("running", f"{tmp_path}/v", None)
    assert not file.read().is_completed("vision")
    file.complete("vision")
    file.begin("resampler", tmp_path / "r")
    state = file.read()
    assert state.is_completed("vision") and not state.is_completed("resampler")
    assert state.stages["vision"].started_at == begun.started_at
    assert state.stages["vision"].completed_at is not None


def test_a_continued_stage_keeps_its_start(file: StateFile, tmp_path: Path) -> None:
    file.begin("vision", tmp_path)
    raw = json.loads(file.path.read_text())
    raw["stages"]["vision"]["started_at"] = "2020-01-01T00:00:00+00:00"
    file.path.write_text(json.dumps(raw))
    file.begin("vision", tmp_path)
    assert file.read().stages["vision"].started_at == "2020-01-01T00:00:00+00:00"
    file.forget(["vision"])
    file.begin("vision", tmp_path)
    assert file.read().stages["vision"].started_at > "2020-01-01"


def test_forgetting(file: StateFile, tmp_path: Path) -> None:
    for stage in ("vision", "resampler"):
        file.begin(stage, tmp_path)
    file.forget(["vision", "finetune"])
    assert list(file.read().stages) == ["resampler"]
    file.forget(["resampler"])
    assert not file.path.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', '{"stages": {"vision": {}}}'])
def test_a_damaged_file_is_named(file: StateFile, text: str) -> None:
    file.path.parent.mkdir()
    file.path.write_text(text)
    with pytest.raises(ConfigError, match=r"x_stage_state\.json cannot be read .*; remove it"):
        file.read()
