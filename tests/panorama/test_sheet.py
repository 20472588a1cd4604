"""The contact sheet shows the very views, and draws their outlines where they lie."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from panovlm.config.schema import ImageProcessing
from panovlm.errors import ConfigError
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.sheet import contact_sheet
from panovlm.panorama.views import STRATEGIES

NOISE = np.random.default_rng(5).integers(0, 256, (100, 200, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("strategy", "size"), [("cubemap", 280), ("e2p", 280), ("anyres_e2p", 220)]
)
def test_every_view_stands_on_the_sheet_in_order(strategy, size):
    """Views of the size at which the sheet shows them are found again pixel by pixel."""
    settings = ImageProcessing(crop_strategy=strategy, image_size=size)
    sheet = np.asarray(contact_sheet(NOISE, settings))
    assert sheet.shape[1:] == (1200, 3)
    places = []
    for view in ViewPipeline(settings).render(NOISE):
        patch = view[size // 2 : size // 2 + 8, :8]
        _, _, place, _ = cv2.minMaxLoc(cv2.matchTemplate(sheet, patch, cv2.TM_SQDIFF))
        left, top = place[0], place[1] - size // 2
        assert np.array_equal(sheet[top : top + size, left : left + size], view)
        places.append((top, left))
    assert places == sorted(set(places))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_small_views_are_enlarged_without_interpolation(strategy):
    size = (8, 16 if strategy == "erp" else 8)
    settings = ImageProcessing(crop_strategy=strategy, image_size=size)
    sheet = np.asarray(contact_sheet(NOISE, settings))
    colours = {tuple(pixel) for pixel in ViewPipeline(settings).render(NOISE)[-1].reshape(-1, 3)}
    assert colours <= {tuple(pixel) for pixel in sheet[600:].reshape(-1, 3)}


def test_outlines_lie_where_the_views_look():
    """Faces of a cube meet at yaw +-45 and +-135: only there lines cross the horizon."""
    grey = np.full((300, 600, 3), 90, np.uint8)
    sheet = np.asarray(contact_sheet(grey, ImageProcessing(crop_strategy="cubemap", image_size=64)))
    overview = sheet[16 : 16 + 584, 16 : 16 + 1168].astype(int)
    row = np.abs(overview[292 - 40] - 90).max(axis=1)  # above the number marks
    drawn = np.flatnonzero(row > 20)
    degrees = (drawn + 0.5) / 1168 * 360 - 180
    assert all(np.abs(degrees - yaw).min() < 1 for yaw in (-135, -45, 45, 135))
    assert np.abs(np.abs(np.abs(degrees) - 90) - 45).max() < 1


def test_a_mark_on_the_seam_is_drawn_whole():
    """The third face of a cube looks at yaw 180; its mark is a full disc."""
    grey = np.full((300, 600, 3), 90, np.uint8)
    sheet = np.asarray(contact_sheet(grey, ImageProcessing(crop_strategy="cubemap", image_size=64)))
    overview = sheet[16 : 16 + 584, 16 : 16 + 1168].astype(int)
    marked = np.abs(overview - 90).max(axis=2) > 20
    # Down the middle of a mark of radius 11, and beside it, where no outline runs.
    assert marked[292 - 10 : 292 + 11, 1168 - 12].all()
    assert marked[292, 1168 - 22 : 1168 - 1].all()
    assert not marked[292 - 30, 1168 - 30 :].any()


def test_the_settings_must_be_complete():
    with pytest.raises(ConfigError, match="image_size"):
        contact_sheet(NOISE, ImageProcessing())
