"""A frozen tower's features from the disk train the same model, and are never those of another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from tests.training.test_resume import StoppedError, read, run, same, stop_at
from transformers import SiglipVisionModel

from panovlm.cli import eval as eval_command
from panovlm.cli.main import main
from panovlm.config.schema import Settings
from panovlm.data.kept_views import OnDisk
from panovlm.data.samples import one_per_image, read_tables
from panovlm.errors import ConfigError, DataError
from panovlm.evaluation.session import run_evaluation
from panovlm.models.model import PanoramaVLM
from panovlm.models.vision.backbone import VisionBackbone
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.training.features import tower_identity
from panovlm.training.rundir import LAST

FROZEN = (
    "training.augment=false",
    "training.stage_configs.vision.trainable={vision_blocks: 0}",
    "training.stage_configs.vision.epochs=1",
)
ALONE = "training.stages=[resampler]"
"""Two epochs of six batches, validated in the middle of each."""
PANORAMAS = 10
"""Of the training and the validation table."""


@pytest.fixture
def cached(make_settings: Any, tmp_path: Path) -> Any:
    """Settings of a run of some name that keeps features; all runs share one folder."""

    def make(name: str, *overrides: str) -> Settings:
        cache = ("training.cache_features=true", f"paths.cache_dir={tmp_path}/cache")
        return make_settings(tmp_path / name, *FROZEN, *cache, *overrides)

    return make


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "cache" / "features").rglob("*") if path.is_file())


def losses(stage: Path) -> list[str]:
    """All losses of a stage, as they were logged."""
    lines = next(stage.glob("logs/csv/version_0/metrics.csv")).read_text().splitlines()
    return [line for line in lines if line]


def assert_same_run(one: Path, other: Path) -> None:
    found, expected = read(one / LAST), read(other / LAST)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(found[part], expected[part]), part
    assert losses(one) == losses(other)


def test_three_stages_to_the_last_bit(
    cached: Any, make_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run neither reads a picture nor asks the tower, but for a checkpoint's probe."""
    plain, _ = run(make_settings(tmp_path / "plain", *FROZEN))
    cold, said = run(cached("cold"))
    assert said.count(f"features of {PANORAMAS} of {PANORAMAS} panoramas are to be computed") == 1
    assert f"features of {PANORAMAS} panoramas are read from {tmp_path}/cache" in said
    made = {path: path.read_bytes() for path in entries(tmp_path)}
    assert len(made) == PANORAMAS
    batches: list[int] = []
    forward = VisionBackbone.forward

    def counted(self: VisionBackbone, pixels: torch.Tensor) -> torch.Tensor:
        batches.append(len(pixels))
        return forward(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr("panovlm.data.cache.read_panorama", lambda *_: pytest.fail("read"))
        patch.setattr(VisionBackbone, "forward", counted)
        warm, said = run(cached("warm"))
    assert "to be computed" not in said
    assert set(batches) == {1}  # one view of noise per checkpoint; a panorama has nine
    assert {path: path.read_bytes() for path in entries(tmp_path)} == made
    for stage in ("vision", "resampler", "finetune"):
        own = plain.parents[1] / stage / plain.name
        for folder in (cold, warm):
            assert_same_run(folder.parents[1] / stage / folder.name, own)


def test_the_features_are_those_of_transformers(cached: Any, scenes: Path, tmp_path: Path) -> None:
    folder, said = run(cached("run", ALONE))
    assert "features take 2.25 KiB each, 22.50 KiB in all" in said
    model = PanoramaVLM.from_checkpoint(folder, strict=True)
    tower = SiglipVisionModel(model.vision_backbone.config).eval()
    tower.load_state_dict(model.vision_backbone.encoder.state_dict())
    norm = model.vision_backbone.norm
    pipeline = ViewPipeline(model.recipe.image_processing)
    expected: list[torch.Tensor] = []
    for split in ("train", "val"):
        for row in one_per_image(read_tables([scenes / f"{split}.csv"])):
            with torch.no_grad():
                hidden = tower(torch.from_numpy(pipeline.load(row.image))).last_hidden_state
            expected.append(
                torch.nn.functional.layer_norm(hidden, (16,), norm.weight, norm.bias, 1e-5)
            )
    stored = [load(path.read_bytes()[32:]) for path in entries(tmp_path)]
    assert all(entry["view_size"].tolist() == [16, 16] for entry in stored)
    for features in expected:
        near = [float((entry["features"] - features).abs().max()) for entry in stored]
        assert sorted(near)[0] < 1e-5 < 1e-3 < sorted(near)[1]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision(cached: Any, make_settings: Any, tmp_path: Path, precision: str) -> None:
    changes = (ALONE, f"environment.precision={precision}")
    plain, _ = run(make_settings(tmp_path / "plain", *FROZEN, *changes))
    kept, _ = run(cached("kept", *changes))
    assert_same_run(kept, plain)


def test_a_run_that_was_stopped(
    cached: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on exactly, also where its features are gone in the meantime."""
    whole, _ = run(cached("whole", ALONE))
    settings = cached("stopped", ALONE)
    with monkeypatch.context() as patch:
        stop_at(patch, "on_train_batch_start", 4)
        with pytest.raises(StoppedError):
            run(settings)
    for path in entries(tmp_path)[::2]:
        path.unlink()
    folder, said = run(settings, resume=True)
    assert "continues from" in said
    assert f"features of 5 of {PANORAMAS} panoramas are to be computed" in said
    found, expected = read(folder / LAST), read(whole / LAST)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step"):
        assert same(found[part], expected[part]), part


def test_damage_stops_training_and_is_mended(cached: Any, tmp_path: Path) -> None:
    whole, _ = run(cached("whole", ALONE))
    for path in entries(tmp_path):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    settings = cached("again", ALONE)
    with pytest.raises(DataError, match=r"csv:\d+.* was damaged and has been removed; continue"):
        run(settings)
    assert len(entries(tmp_path)) == PANORAMAS - 1
    for path in entries(tmp_path):
        path.unlink()
    folder, _ = run(settings, resume=True)
    assert same(read(folder / LAST)["state_dict"], read(whole / LAST)["state_dict"])


def test_another_tower_has_other_features(cached: Any, tmp_path: Path) -> None:
    """Two seeds give two towers, of one configuration."""
    for seed in (1, 2):
        _, said = run(cached(f"run{seed}", ALONE, f"environment.seed={seed}"))
        assert f"features of {PANORAMAS} of {PANORAMAS} panoramas are to be computed" in said
    assert len(entries(tmp_path)) == 2 * PANORAMAS


def test_the_identity_of_a_tower(make_settings: Any, tmp_path: Path) -> None:
    folder, _ = run(make_settings(tmp_path, *FROZEN, "training.stages=[vision]"))
    models = [PanoramaVLM.from_checkpoint(folder, probe=False) for _ in range(2)]
    one, other = (model.vision_backbone for model in models)
    assert tower_identity(one) == tower_identity(other)
    with torch.no_grad():
        other.norm.bias[3] += 1e-6
    assert tower_identity(one) != tower_identity(other)
    with torch.no_grad():
        other.norm.bias.copy_(one.norm.bias)
    other.config.num_attention_heads = 2  # no weight shows it
    assert tower_identity(one) != tower_identity(other)


class TestRefused:
    @pytest.mark.parametrize(
        ("stage", "blocks"), [("vision", 1), ("resampler", -1), ("finetune", 2)]
    )
    def test_a_tower_that_trains(self, cached: Any, stage: str, blocks: int) -> None:
        trained = f"training.stage_configs.{stage}.trainable={{vision_blocks: {blocks}}}"
        settings = cached("run", trained)
        with pytest.raises(ConfigError, match=rf"{stage} trains the tower .*blocks is {blocks}"):
            run(settings)
        assert not Path(settings.paths.runs_dir).exists()

    @pytest.mark.parametrize("change", ["augment=true", "yaw_turns=4", "cache_views=true"])
    def test_views_that_are_never_the_same(self, cached: Any, change: str) -> None:
        name = change.partition("=")[0]
        with pytest.raises(ConfigError, match=rf"cache_features keeps .* but {name} "):
            cached("run", f"training.{change}")

    def test_more_than_the_limit(self, cached: Any, tmp_path: Path) -> None:
        fits = 2304 * PANORAMAS / 2**30
        with pytest.raises(ConfigError, match=r"features of 10 panoramas take 22\.50 KiB on disk"):
            run(cached("run", ALONE, f"training.cache_limit={fits * 0.99}"))
        assert entries(tmp_path) == []
        run(cached("run", ALONE, f"training.cache_limit={fits * 1.01}"))

    def test_before_anything_is_planned(self, cached: Any, small_file: Path) -> None:
        asked = ["train", "-c", str(small_file), "--dry-run", "training.augment=false"]
        assert main([*asked, "training.cache_features=true"]) == 2


def test_views_from_the_disk(
    cached: Any,
    make_settings: Any,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training, features and evaluation share them."""
    disk = ("training.cache_views=disk", f"paths.cache_dir={tmp_path}/cache")
    plain, _ = run(make_settings(tmp_path / "plain", *FROZEN, ALONE))
    views, said = run(make_settings(tmp_path / "views", *FROZEN, ALONE, *disk))
    assert f"the views of 8 panoramas are kept in {tmp_path}/cache: 6.75 KiB each" in said
    assert_same_run(views, plain)
    with monkeypatch.context() as patch:
        # What the estimate is made of is rendered; no picture is.
        patch.setattr("panovlm.panorama.pipeline.read_panorama", lambda *_: pytest.fail("read"))
        features, _ = run(cached("features", ALONE, *disk))
    assert_same_run(features, plain)
    tables = {"tables": [str(scenes / "test.csv")], "data_dir": "", "metrics": {}}
    model = PanoramaVLM.from_checkpoint(plain, probe=False)
    answers = [
        run_evaluation(
            model,
            **tables,
            generation=model.recipe.generation,
            folder=tmp_path / f"results{number}",
            prefix="small",
            cache_views=cache,
            progress=False,
        ).answers
        for number, cache in enumerate((None, OnDisk(tmp_path / "cache", 1)))
    ]
    assert answers[0] == answers[1]
    kept = [path for path in (tmp_path / "cache" / "views").rglob("*") if path.is_file()]
    assert len(kept) == PANORAMAS + 3  # those of the test table


def test_where_an_evaluation_keeps_views(make_settings: Any, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    eval_command.add_arguments(parser)
    plain = parser.parse_args([])
    named = parser.parse_args(["--view-cache", "views"])
    settings = make_settings(
        tmp_path, "training.cache_views=disk", "training.cache_limit=3", "paths.cache_dir=cache"
    )
    for options, experiment, expected in (
        (plain, None, None),
        (plain, make_settings(tmp_path), None),
        (plain, settings, OnDisk(Path("cache"), 3)),
        (named, settings, OnDisk(Path("views"), 3)),
        (named, None, OnDisk(Path("views"), 100)),
    ):
        assert eval_command.view_cache(options, experiment) == expected
