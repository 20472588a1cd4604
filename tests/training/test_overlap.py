"""Stage vision is refused where it could not learn anything."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from panovlm.cli.main import main
from panovlm.errors import ConfigError
from panovlm.training.dry_run import plan
from panovlm.training.overlap import check_overlap
from panovlm.training.run import train

REFUSED = [
    ("models.vicreg_loss_weight=0", "vicreg_loss_weight is 0"),
    ("image_processing.crop_strategy=resize", "crop_strategy resize gives no two views"),
    ("image_processing.crop_strategy=cubemap", r"0 \(yaw 0, pitch 0\) and 1 \(yaw 90, pitch 0\)"),
    ("image_processing.crop_strategy=anyres", "show nothing in common"),
    ("image_processing.crop_strategy=anyres_max", "show nothing in common"),
    ("image_processing.overlap_ratio=0", "show nothing in common"),
    (
        "image_processing={crop_strategy: cubemap6, image_size: 16}",
        "show nothing in common",
    ),
    (
        "image_processing={crop_strategy: e2p_sphere, poles: true, image_size: 16}",
        r"0 \(yaw 0, pitch -90\) and 1 \(yaw 0, pitch 0\)",
    ),
]


@pytest.mark.parametrize(("override", "told"), REFUSED)
def test_refused_before_anything_is_written(
    make_settings: Any, tmp_path: Path, override: str, told: str
) -> None:
    settings = make_settings(tmp_path / "runs", override)
    with pytest.raises(ConfigError, match=told):
        train(settings, console=Console(file=io.StringIO()))
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match=told):
        plan(settings)


@pytest.mark.parametrize("override", [override for override, _ in REFUSED])
def test_other_stages_do_not_mind(make_settings: Any, tmp_path: Path, override: str) -> None:
    plan(make_settings(tmp_path, override), ["resampler"])


@pytest.mark.parametrize(
    "image",
    [
        "{crop_strategy: e2p}",
        "{crop_strategy: sliding_window}",
        "{crop_strategy: anyres_e2p}",
        "{crop_strategy: anyres_e2p, fov_deg: 60}",
        "{crop_strategy: e2p, fov_deg: 70, overlap_ratio: 0.1}",
        "{crop_strategy: e2p_sphere, pitch_rows: 2}",
    ],
)
def test_views_in_a_ring_are_accepted(make_settings: Any, tmp_path: Path, image: str) -> None:
    check_overlap(make_settings(tmp_path, f"image_processing={image}"))


def test_true_directions_need_any_two_views_that_overlap(
    make_settings: Any, tmp_path: Path
) -> None:
    def settings(strategy: str, resampler: str = "mlp") -> Any:
        models = f"models={{overlap_pairs: directions, resampler_type: {resampler}}}"
        return make_settings(tmp_path, models, f"image_processing.crop_strategy={strategy}")

    for strategy in ("icosahedral", "anyres", "e2p_sphere"):
        check_overlap(settings(strategy))
    with pytest.raises(ConfigError, match=r"no two views of .*cubemap6 show anything in common"):
        check_overlap(settings("cubemap6"))
    with pytest.raises(ConfigError, match="resampler qformer show no certain directions"):
        check_overlap(settings("icosahedral", "qformer"))


def test_panoramas_of_a_batch_of_one_cannot_be_told_apart(
    make_settings: Any, tmp_path: Path
) -> None:
    one = "training.stage_configs.vision.batch_size=1"
    settings = make_settings(tmp_path, "models.overlap_loss=dense_cl", one)
    with pytest.raises(ConfigError, match="batch_size is 1"):
        train(settings, console=Console(file=io.StringIO()))


def test_views_are_counted_by_the_command_line(
    make_settings: Any, small_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["views", "--config", str(small_file)]
    assert main([*own, "--tokens", "--set", "models.stitching_mode=concat"]) == 0
    assert "9 views of 4 tokens, 4 after the resampler; the language model reads 36" in (
        capsys.readouterr().out
    )
    # No stage is planned, so that none is refused.
    assert main([*own, "--stats", "--tokens", "--set", "crop_strategy=cubemap6"]) == 0
    told = capsys.readouterr().out
    assert "cubemap6:\n  tiles: 6" in told
    assert "6 views of 4 tokens" in told
    assert main(["views"]) == 2
    assert main(["views", "--tokens"]) == 2
    assert "name it with --config" in capsys.readouterr().err
