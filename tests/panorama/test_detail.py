"""Views of panoramas that are read no finer than needed, against means over areas and formulas."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from panovlm.config.schema import ImageProcessing
from panovlm.errors import ConfigError
from panovlm.panorama.geometry import Camera
from panovlm.panorama.image import read_panorama
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.projection import project
from panovlm.panorama.views import SLICED, STRATEGIES

RENDERINGS = ["good", "fast"]
SIZE = {"erp": (32, 64)}


def smooth(width: int) -> np.ndarray:
    """A picture without seam or singular poles."""
    longitude = ((np.arange(width) + 0.5) / width * 2 - 1) * np.pi
    latitude = (0.5 - (np.arange(width // 2) + 0.5) / (width // 2)) * np.pi
    x = np.cos(latitude)[:, None] * np.sin(longitude)
    z = np.cos(latitude)[:, None] * np.cos(longitude)
    y = np.broadcast_to(np.sin(latitude)[:, None], x.shape)
    return np.rint(128 + 90 * np.stack([x, y, z], axis=-1)).astype(np.uint8)


SMOOTH = smooth(1024)
GRAIN = np.random.default_rng(0).integers(0, 256, (512, 1024, 3), dtype=np.uint8)


def pipeline(strategy: str = "anyres_e2p", **settings) -> ViewPipeline:
    size = SIZE.get(strategy, (32, 32))
    given = {"crop_strategy": strategy, "image_size": size, "poles": True, **settings}
    return ViewPipeline(ImageProcessing.model_validate(given))


def jpeg(path: Path, picture: np.ndarray, **options) -> Path:
    Image.fromarray(picture).save(path, quality=100, subsampling=0, **options)
    return path


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - SLICED))
def test_every_strategy_shows_the_same(strategy, rendering, tmp_path):
    """Where the picture is smooth, the mean over an area is its value in the middle."""
    exact = pipeline(strategy).render(SMOOTH).astype(int)
    views = pipeline(strategy, rendering=rendering)
    found = views.render(SMOOTH)
    assert np.abs(found - exact).max() <= 6 and np.abs(found - exact).mean() < 1
    values = views.load(jpeg(tmp_path / "a.jpg", SMOOTH))
    assert np.abs(values - views.normalise(found)).max() < 0.1


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_files_are_decoded_no_finer_than_needed(rendering, tmp_path):
    """A view of 32 pixels over 90 degrees reads 10.5 of the panorama's per pixel in its middle."""
    views = pipeline(rendering=rendering)
    factor = {"good": 4, "fast": 8}[rendering]
    assert views.reduction(512, 1024) == factor
    path = jpeg(tmp_path / "a.jpg", GRAIN)
    assert read_panorama(path, views.reduction).shape == (512 // factor, 1024 // factor, 3)
    assert read_panorama(path, pipeline().reduction).shape == (512, 1024, 3)
    # What a file brings too much of is averaged away: PNG is always decoded in full.
    Image.fromarray(GRAIN).save(tmp_path / "a.png")
    assert read_panorama(tmp_path / "a.png", views.reduction).shape == (512, 1024, 3)
    assert np.array_equal(views.load(tmp_path / "a.png"), views.normalise(views.render(GRAIN)))


@pytest.mark.parametrize("coarse", [100, 160])
@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_coarse_panorama_is_read_in_full(coarse, rendering):
    assert pipeline(rendering=rendering).reduction(coarse // 2, coarse) == 1


def test_good_is_nearer_to_the_mean_over_each_pixel_than_exact():
    """Truth: a tile of ``cubemap`` from 16 x 16 samples per pixel."""
    grain = cv2.GaussianBlur(GRAIN, (0, 0), 1.0)
    fine = np.degrees(2 * np.arctan(32 / 31))  # half of the outermost pixels lies outside
    samples = project(grain, (Camera(0, 0, fine, fine),), (512, 512), grid="centre")[0]
    truth = samples.reshape(32, 16, 32, 16, 3).mean((1, 3))
    error = {
        rendering: np.sqrt(
            np.mean((pipeline("cubemap", rendering=rendering).render(grain)[0] - truth) ** 2)
        )
        for rendering in ("exact", *RENDERINGS)
    }
    assert error["good"] < error["exact"] / 4
    assert error["fast"] < error["exact"] / 1.5


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_turning_the_panorama_turns_the_tiles(rendering):
    """Over the seam as well: one of eight tiles' steps is a whole number of small pixels."""
    views = pipeline("e2p_sphere", rendering=rendering)
    still, turned = views.render(GRAIN), views.render(np.roll(GRAIN, 128, axis=1))
    assert np.array_equal(turned[1:9], np.roll(still[1:9], 1, axis=0))


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_sides_that_no_scale_divides(rendering, tmp_path):
    """No pixel may lie partly beyond the seam, which a decoder's rounding up would do."""
    views = pipeline(rendering=rendering)
    picture = cv2.resize(SMOOTH, (1026, 513), interpolation=cv2.INTER_AREA)
    path = jpeg(tmp_path / "a.jpg", picture)
    assert read_panorama(path, views.reduction).shape[:2] == (513, 1026)
    assert np.abs(views.load(path) - views.normalise(views.render(picture))).max() < 0.1


def test_pictures_that_lie_on_their_side(tmp_path):
    views = pipeline(rendering="fast")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    path = jpeg(tmp_path / "a.jpg", np.rot90(SMOOTH), exif=exif)
    assert read_panorama(path, views.reduction).shape == (64, 128, 3)
    assert np.abs(views.load(path) - views.normalise(views.render(SMOOTH))).max() < 0.1


def test_parts_of_a_panorama_are_decoded_in_full(tmp_path):
    """How small the whole may be is not known from its part."""
    names = ("FullPanoWidth", "FullPanoHeight", "CroppedAreaImageWidth", "CroppedAreaImageHeight")
    numbers = dict(zip((f"{name}Pixels" for name in names), (1024, 512, 1024, 256), strict=True))
    numbers |= {"CroppedAreaLeftPixels": 0, "CroppedAreaTopPixels": 128}
    fields = " ".join(f'GPano:{name}="{value}"' for name, value in numbers.items())
    xmp = f'<x GPano:ProjectionType="equirectangular" {fields}/>'.encode()
    path = jpeg(tmp_path / "a.jpg", SMOOTH[128:384], xmp=xmp)
    views = pipeline(rendering="fast")
    assert read_panorama(path, views.reduction).shape == (512, 1024, 3)
    whole = np.zeros_like(SMOOTH)
    whole[128:384] = SMOOTH[128:384]
    assert np.abs(views.load(path) - views.normalise(views.render(whole))).max() < 0.1


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_the_towers_processor_makes_views_small_itself(rendering):
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [1] * 3}
    with pytest.raises(ConfigError, match=f"rendering is {rendering}, but use_vision_processor"):
        pipeline(rendering=rendering, use_vision_processor=True, vision_processor=processor)


@pytest.mark.parametrize("strategy", sorted(SLICED))
def test_slices_are_cut_in_pixels_of_the_whole_panorama(strategy):
    with pytest.raises(ConfigError, match=f"{strategy} cuts slices in whole pixels"):
        pipeline(strategy, rendering="good")
