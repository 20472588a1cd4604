"""The smallest experiment, on scenes that are rendered once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from panovlm.cli.quiet import quiet_trainer
from panovlm.config.load import load_settings
from panovlm.config.schema import Settings
from panovlm.data.synthetic import write_scenes
from panovlm.models.language.tokenizer import word_tokenizer

SMALL = Path(__file__).parent.parent / "small.yaml"

MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums have the same order in every run only on one thread."""
    torch.set_num_threads(1)
    quiet_trainer()


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
def make_settings(small_file: Path) -> MakeSettings:
    """Settings of the experiment in a folder of its own, with overrides."""

    def make(runs: Path, *overrides: str) -> Settings:
        return load_settings(small_file, [f"paths.runs_dir={runs}", *overrides])

    return make


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small experiment's backbones, each saved in a folder as a published one is."""
    root = tmp_path_factory.mktemp("backbones")
    models = load_settings(SMALL).models
    torch.manual_seed(1)
    tower = AutoModel.from_config(AutoConfig.for_model(**models.vision_config or {}))
    tower.save_pretrained(root / "tower")
    tokenizer = word_tokenizer(["what is left of the red ball ? You are a helpful assistant ."])
    config = {**(models.language_config or {}), "vocab_size": len(tokenizer)}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(root / "lm")
    tokenizer.save_pretrained(root / "lm")
    return {"vision": root / "tower", "language": root / "lm"}
