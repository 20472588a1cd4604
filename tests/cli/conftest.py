"""The smallest experiment as a user has it: a file, scenes, and a trained stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from panovlm.cli.main import main
from panovlm.config.load import load_settings
from panovlm.data.synthetic import write_scenes

SMALL = Path(__file__).parent.parent / "small.yaml"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small") / "scenes"
    synthetic = load_settings(SMALL).data.synthetic
    assert synthetic is not None
    write_scenes(synthetic.model_copy(update={"root": str(root)}))
    return root


@pytest.fixture(scope="session")
def small_file(scenes: Path) -> Path:
    """The experiment's file, its tables in place."""
    file = scenes.parent / "small.yaml"
    file.write_text(SMALL.read_text().replace("SCENES", str(scenes)))
    return file


@pytest.fixture(scope="session")
def trained(small_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a trained stage; tests copy what they change."""
    runs = tmp_path_factory.mktemp("runs")
    one_epoch = "training.stage_configs.vision.epochs=1"
    arguments = ["-c", str(small_file), "--stage", "vision", f"paths.runs_dir={runs}", one_epoch]
    assert main(["train", *arguments]) == 0
    return runs / "small" / "vision" / "anyres-e2p_bimamba"
