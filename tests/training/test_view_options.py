"""Every option of views, positions, stitching and overlap losses, from YAML to a reloaded model.

The grid is made of what the settings list, so that a new value is trained here without being
written down. Every value of every option is trained at least once, in changing company.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from itertools import cycle, product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from rich.console import Console

from panovlm.checkpoint.report.verify import verify
from panovlm.config.schema import CropStrategy, ModelSettings
from panovlm.models.model import PanoramaVLM
from panovlm.panorama.image import read_panorama
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.training.run import train
from panovlm.training.rundir import LAST

DINO = (
    "models.vision_config={model_type: dinov2, hidden_size: 16, num_hidden_layers: 2,"
    " num_attention_heads: 1, mlp_ratio: 2, image_size: 16, patch_size: 4, attention_dropout: 0.0}"
)
FINER = "models.vision_config={patch_size: 4, attention_dropout: 0.0}"
VIEWS = {
    "e2p_sphere": "{crop_strategy: e2p_sphere, pitch_rows: 2, poles: true}",
    "icosahedral": "{crop_strategy: icosahedral, icosahedral_views: 12}",
    "erp": "{crop_strategy: erp, image_size: [16, 32]}",
    "anyres_max": "{crop_strategy: anyres_max, anyres_max_patches: 4}",
    "anyres": "{crop_strategy: anyres, anyres_max_patches: 5}",
}


def values(field: str) -> tuple[str, ...]:
    """Return the values that a setting of the model lists."""
    return get_args(ModelSettings.model_fields[field].annotation)


def language_grid() -> Iterator[tuple[str, str, str]]:
    """Every crop strategy, with changing stitching modes and kinds of positions."""
    others = cycle(product(values("stitching_mode"), values("pe_type")))
    for strategy in get_args(CropStrategy):
        yield strategy, *next(others)
    yield "e2p_sphere", "sphere", "directions"
    yield "icosahedral", "sphere", "directions"


def overlap_grid() -> Iterator[tuple[str, str, str]]:
    """Every loss with every pairing, on strategies whose views overlap."""
    strategies = {
        "columns": cycle(("e2p", "anyres_e2p", "sliding_window")),
        "directions": cycle(("icosahedral", "e2p_sphere", "anyres_e2p", "anyres")),
    }
    for loss, pairs in product(values("overlap_loss"), values("overlap_pairs")):
        yield loss, pairs, next(strategies[pairs])


def trained(make_settings: Any, runs: Path, stage: str, strategy: str, *changes: str) -> Path:
    """Train two steps of a stage and return the run folder."""
    settings = make_settings(
        runs,
        "data.csv_val=[]",
        f"training.stages=[{stage}]",
        f"training.stage_configs.{stage}.epochs=1",
        f"training.stage_configs.{stage}.batch_size={4 if stage == 'vision' else 8}",
        f"training.stage_configs.{stage}.accumulate_grad_batches=1",
        f"training.stage_configs.{stage}.val_check_interval=1.0",
        "models.resampler_type=identity",
        "models.resampler_config={}",
        DINO if strategy == "erp" else FINER,
        f"image_processing={VIEWS.get(strategy, f'{{crop_strategy: {strategy}}}')}",
        *changes,
    )
    return train(settings, console=Console(file=io.StringIO()))


def test_the_grid_is_whole() -> None:
    language, overlap = list(language_grid()), list(overlap_grid())
    assert {row[0] for row in language} == set(get_args(CropStrategy))
    assert {row[1] for row in language} == set(values("stitching_mode"))
    assert {row[2] for row in language} == set(values("pe_type"))
    assert {row[0] for row in overlap} == set(values("overlap_loss"))


@pytest.mark.parametrize(("strategy", "stitching", "positions"), list(language_grid()))
def test_trained_saved_and_loaded(
    make_settings: Any,
    scenes: Path,
    tmp_path: Path,
    strategy: str,
    stitching: str,
    positions: str,
) -> None:
    changes = (f"models.stitching_mode={stitching}", f"models.pe_type={positions}")
    folder = trained(make_settings, tmp_path, "resampler", strategy, *changes)
    assert torch.load(folder / LAST, weights_only=True)["global_step"] == 2
    found = verify(folder, device=torch.device("cpu"), strict=True)
    assert found.holds, found.checks[-1].detail
    assert [check.outcome for check in found.checks] == ["passed"] * len(found.checks)
    model = PanoramaVLM.from_checkpoint(folder, strict=True)
    assert model.recipe.models.stitching_mode == stitching
    assert model.recipe.models.pe_type == positions
    panorama = read_panorama(next(scenes.glob("images/*")))
    pixels = torch.from_numpy(ViewPipeline(model.recipe.image_processing)(panorama))[None]
    with torch.no_grad():
        evaluated = model.vision_tokens(pixels)
        features = model.vision_features(pixels).shape[1]
        tokens, grid = model.resampled(pixels)
        assert torch.equal(model.train().vision_tokens(pixels), evaluated)
    assert tokens.shape[1] == features
    known = model.projector.num_tokens(pixels.shape[1], tokens.shape[1], grid)
    assert evaluated.shape == (1, known, 16)
    assert isinstance(model.eval().answer(panorama, "What is behind you?", max_new_tokens=1), str)


@pytest.mark.parametrize(("loss", "pairs", "strategy"), list(overlap_grid()))
def test_every_loss_trains_and_tells_its_statistics(
    make_settings: Any, tmp_path: Path, loss: str, pairs: str, strategy: str
) -> None:
    changes = (f"models.overlap_loss={loss}", f"models.overlap_pairs={pairs}")
    folder = trained(make_settings, tmp_path, "vision", strategy, *changes)
    assert torch.load(folder / LAST, weights_only=True)["global_step"] == 2
    found = verify(folder, device=torch.device("cpu"), strict=True)
    assert found.holds, found.checks[-1].detail
    recipe = PanoramaVLM.from_checkpoint(folder, strict=True).recipe
    assert (recipe.models.overlap_loss, recipe.models.overlap_pairs) == (loss, pairs)
    with next(folder.glob("logs/csv/version_0/metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train_loss")]
    assert len(rows) == 2
    for row in rows:
        assert float(row["train_loss"]) > 0
        assert float(row["train_overlap_std"]) > 0
        assert 1 < float(row["train_overlap_effective_rank"]) <= 16
        assert -1 <= float(row["train_overlap_cosine"]) <= 1
        assert 0 <= float(row["train_overlap_retrieval"]) <= 1
        assert all(math.isfinite(float(value)) for value in row.values() if value)
