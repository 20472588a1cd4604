"""One trained experiment, made by the command line, that all tests of this folder share."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from panovlm.cli.main import main

SMALL = Path(__file__).parent.parent / "small.yaml"


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment's file, its scenes, and the runs of its three stages."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("experiment")
    file = folder / "small.yaml"
    file.write_text(SMALL.read_text().replace("SCENES", str(folder / "scenes")))
    changes = (f"paths.runs_dir={folder / 'runs'}", "training.reload_check=true")
    assert main(["train", "--config", str(file), *changes]) == 0
    return folder


@pytest.fixture(scope="session")
def run_folder(experiment: Path) -> Path:
    """The run folder of the last stage; tests copy what they change."""
    return experiment / "runs" / "small" / "finetune" / "anyres-e2p_bimamba"


@pytest.fixture(autouse=True)
def _no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Java, where METEOR is told to be not computed; Java takes seconds."""
    module = importlib.import_module("panovlm.evaluation.metrics.meteor")
    monkeypatch.setattr(module, "_java", lambda: None)
