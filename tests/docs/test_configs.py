"""The ready experiments load, and say nothing that has no effect."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from panovlm.config.load import load_settings
from panovlm.panorama.views import views_of

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


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
