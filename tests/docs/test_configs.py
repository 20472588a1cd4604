"""The ready experiments load, and say nothing that has no effect."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

import pytest

from panovlm.checkpoint.saving.extract import extract_backbones
from panovlm.checkpoint.saving.save import save_checkpoint
from panovlm.config.load import load_settings
from panovlm.config.model_recipe import CropStrategy
from panovlm.models.assemble import new_model
from panovlm.models.resamplers import recipes
from panovlm.panorama.views import views_of
from panovlm.sweep.cells import check_cells, read_cells
from panovlm.sweep.schema import read_sweep

FILES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SWEEPS = [path for path in FILES if path.stem == "ablation"]
CONFIGS = [path for path in FILES if path not in SWEEPS]


def test_there_are_experiments() -> None:
    assert {path.stem for path in CONFIGS} >= {"tiny", "siglip2-qwen3-bimamba"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_experiment_loads(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        settings = load_settings(path)
    assert not caplog.records
    assert settings.experiment.name == path.stem
    # The model's geometry is that of the pixels.
    assert settings.models.overlap_ratio == settings.image_processing.overlap_ratio
    assert len(views_of(settings.image_processing)) > 1


@pytest.fixture
def backbones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders that the ablations name, as they are made from the demonstration."""
    settings = load_settings(next(path for path in CONFIGS if path.stem == "tiny"))
    save_checkpoint(new_model(settings, ["red"]), tmp_path / "best.ckpt")
    extract_backbones(tmp_path / "best.ckpt", tmp_path / "sweeps" / "backbones")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("backbones")
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep_can_be_run(path: Path) -> None:
    sweep = read_cells(path, read_sweep(path))
    check_cells(sweep.cells)


def test_the_ablations_try_everything() -> None:
    (path,) = SWEEPS
    cells = read_cells(path, read_sweep(path)).cells
    models = [cell.settings.models for cell in cells]
    images = [cell.settings.image_processing for cell in cells]
    # The tower of the demonstration reads squares only.
    assert {image.crop_strategy for image in images} == set(get_args(CropStrategy)) - {"erp"}
    assert {model.resampler_type for model in models} == set(recipes())
    assert {model.pe_type for model in models} == {"columns", "directions"}
    stitching = {model.stitching_mode for model in models}
    assert stitching == {"drop_overlap", "concat", "resample", "sphere"}
    losses = [c.settings.models for c in cells if "vision" in c.settings.training.stages]
    assert {(model.overlap_loss, model.vicreg_mode) for model in losses} == {
        ("vicreg", "pairwise"),
        ("vicreg", "batchwise"),
        ("info_nce", "pairwise"),
        ("dense_cl", "pairwise"),
        ("barlow_twins", "pairwise"),
    }
