"""Pixels of every strategy, against Pillow, numpy and py360convert."""

from __future__ import annotations

import itertools

import numpy as np
import py360convert
import pytest
from PIL import Image

from panovlm.config.schema import ImageProcessing
from panovlm.errors import ConfigError, DataError
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.views import STRATEGIES, views_of

LANCZOS = Image.Resampling.LANCZOS
NOISE = np.random.default_rng(1).integers(0, 256, (151, 300, 3), dtype=np.uint8)
LONGITUDE, LATITUDE = np.meshgrid(
    ((np.arange(300) + 0.5) / 150 - 1) * np.pi, (0.5 - (np.arange(150) + 0.5) / 150) * np.pi
)
SMOOTH = np.stack(
    [
        128 + 90 * np.cos(LATITUDE) * np.sin(LONGITUDE),
        128 + 90 * np.sin(LATITUDE),
        128 + 90 * np.cos(LATITUDE) * np.cos(LONGITUDE),
    ],
    axis=-1,
).astype(np.uint8)


def render(strategy: str, erp: np.ndarray = NOISE, **settings) -> np.ndarray:
    return ViewPipeline(ImageProcessing(crop_strategy=strategy, **settings)).render(erp)


def fit(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize as the original system does."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((size[1], size[0]), LANCZOS))


def perspective(yaw: float, size: tuple[int, int], keep: float = 1, fov: float = 90) -> np.ndarray:
    """A view of the noise, without the rows of a given fraction at top and bottom."""
    view = py360convert.e2p(NOISE, fov, yaw, 0, size)
    cut = int(size[0] * (1 - keep) / 2)
    return fit(view[cut : size[0] - cut], size)


def assert_close(views: np.ndarray, expected: list[np.ndarray], tolerance: int = 1) -> None:
    assert views.dtype == np.uint8
    assert views.shape == (len(expected), *expected[0].shape)
    assert np.abs(views.astype(int) - np.stack(expected)).max() <= tolerance


@pytest.mark.parametrize("size", [(64, 64), (240, 100)])
def test_e2p(size):
    expected = [perspective(45 * n, size, keep=0.9) for n in range(8)]
    assert_close(render("e2p", image_size=size), expected)


@pytest.mark.parametrize(
    ("size", "fov", "rows", "columns"),
    [
        # 300 x 151: rows 12..139 remain, a slice is 75 px wide and steps by 37
        ((64, 64), 90, (38, 113), (0, 75)),  # cut to 75 rows
        ((128, 75), 90, (12, 139), (0, 75)),  # ratio fits: 75/127
        ((127, 25), 90, (12, 139), (25, 50)),  # cut to 25 columns
    ],
)
def test_sliding_window(size, fov, rows, columns):
    expected = [
        fit(NOISE[slice(*rows)][:, (np.arange(*columns) + 37 * n) % 300], size) for n in range(8)
    ]
    assert_close(render("sliding_window", image_size=size, fov_deg=fov), expected, tolerance=0)


def test_sliding_window_whose_kept_part_lies_past_the_seam():
    """300 px, 170 degrees, no overlap: the last slice starts at 282 and goes on at the left."""
    views = render("sliding_window", image_size=(120, 20), fov_deg=170, overlap_ratio=0.0)
    middle = np.arange(60, 60 + 127 // 6)  # of 141 columns, for a view six times as high as wide
    expected = [fit(NOISE[12:139][:, (middle + 141 * n) % 300], (120, 20)) for n in range(3)]
    assert_close(views, expected, tolerance=0)


@pytest.mark.parametrize("size", [(48, 48), (30, 60)])
def test_cubemap(size):
    faces = py360convert.e2c(SMOOTH, face_w=size[1], cube_format="dict")
    expected = [fit(faces[face], size) for face in "FRBL"]
    assert_close(render("cubemap", SMOOTH, image_size=size), expected, tolerance=2)


def test_resize():
    assert_close(render("resize", image_size=(40, 56)), [fit(NOISE, (40, 56))], tolerance=0)


def test_anyres():
    size = (32, 40)
    edges = [0, 50, 100, 150, 200, 250, 300]
    bands = list(itertools.pairwise(edges))
    expected = [fit(NOISE, size)]
    expected += [fit(NOISE[75 - 37 : 75 + 37, left:right], size) for left, right in bands]
    expected += [fit(NOISE[:, left:right], size) for left, right in bands]
    expected += [perspective(yaw, size, keep=0.8) for yaw in (0, 157.5, 315)]
    assert_close(render("anyres", image_size=size, anyres_max_patches=15), expected)


def test_anyres_max():
    size = (32, 40)
    expected = [fit(NOISE, size)]
    expected += [
        fit(NOISE[75 * row : 75 * row + 75, 60 * column : 60 * column + 60], size)
        for row in range(2)
        for column in range(5)
    ]
    expected += [perspective(0, size, fov=70)]
    found = render("anyres_max", image_size=size, anyres_max_patches=11, fov_deg=70)
    assert_close(found, expected)


@pytest.mark.parametrize("size", [(64, 64), (48, 64)])
def test_anyres_e2p_without_processor(size):
    """Tiles as py360convert shows them where the panorama is smooth; the panorama letterboxed."""
    views = render("anyres_e2p", SMOOTH, image_size=size, fov_deg=80)
    steps = [0, 40, 80, 120, 160, -160, -120, -80, -40]
    expected = [py360convert.e2p(SMOOTH, 80, yaw, pitch, size) for pitch in (-5,) for yaw in steps]
    assert_close(views[1:], expected, tolerance=2)
    bar = size[0] // 4
    assert not views[0, :bar].any()
    assert not views[0, -bar:].any()
    whole = Image.fromarray(SMOOTH).resize((64, size[0] // 2), Image.Resampling.BICUBIC)
    assert_close(views[:1, bar:-bar], [np.asarray(whole)], tolerance=2)


def test_anyres_e2p_averages_what_is_finer_than_a_pixel():
    """Columns that alternate between black and white are grey at a quarter of the resolution."""
    stripes = np.zeros((512, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    views = render("anyres_e2p", stripes, image_size=64)
    centre = views[1:, 28:36, 28:36].astype(int)
    assert np.abs(centre - 127.5).max() < 20
    assert np.abs(views[0, 16:48].astype(int) - 127.5).max() < 4


def test_the_seam_is_nowhere_visible():
    """A panorama whose brightness rises to the east and falls again: no jump in any view."""
    longitude = (np.arange(512) + 0.5) / 512 * 2 * np.pi
    erp = np.tile((127 + 100 * np.cos(longitude))[None, :, None], (256, 1, 3)).astype(np.uint8)
    for strategy in ("e2p", "sliding_window", "cubemap", "anyres_e2p"):
        views = render(strategy, erp, image_size=64)[strategy == "anyres_e2p" :]
        assert np.abs(np.diff(views[:, 10:-10].astype(int), axis=2)).max() <= 6


def disc(yaw: float, pitch: float, radius: float) -> np.ndarray:
    """A panorama of 90 x 180 pixels, white within ``radius`` degrees of a direction."""
    longitude = np.radians((np.arange(180) + 0.5) * 2 - 180)
    latitude = np.radians(90 - (np.arange(90)[:, None] + 0.5) * 2)
    east, up = np.radians([yaw, pitch])
    cosine = np.sin(latitude) * np.sin(up) + np.cos(latitude) * np.cos(up) * np.cos(
        longitude - east
    )
    return np.where(cosine > np.cos(np.radians(radius)), 255, 0).astype(np.uint8)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_pixels_come_in_the_order_of_the_views(strategy):
    size = (24, 48) if strategy == "erp" else (24, 32)
    pipeline = ViewPipeline(ImageProcessing(crop_strategy=strategy, image_size=size))
    values = pipeline(NOISE)
    assert values.shape == (len(pipeline.views), 3, *size)
    assert values.dtype == np.float32
    assert np.array_equal(values, pipeline.normalise(pipeline.render(NOISE)))
    # a panorama that is white around each view's centre and black half a turn away
    for index, view in enumerate(pipeline.views):
        if view.is_global:
            continue
        if strategy in ("cubemap6", "icosahedral"):  # a disc, since columns meet at the poles
            erp = np.repeat(disc(view.yaw, view.pitch, 20)[..., None], 3, axis=2)
            rendered = pipeline.render(erp)[index]
            assert rendered[10:14, 14:18].min() > 200
            assert rendered[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 50
            opposite = pipeline.render(255 - erp)[index]
            assert opposite[10:14, 14:18].max() < 50
            continue
        erp = np.zeros((90, 180, 3), np.uint8)
        column = round((view.yaw + 180) / 2)
        erp[:, np.arange(column - 5, column + 6) % 180] = 255
        rendered = pipeline.render(erp)[index]
        assert rendered[8:16, 15:17].min() > 200
        opposite = pipeline.render(np.roll(erp, 90, axis=1))[index]
        assert opposite[:, 12:20].max() < 50


def normalised(**settings) -> np.ndarray:
    pipeline = ViewPipeline(ImageProcessing(crop_strategy="resize", image_size=50, **settings))
    return pipeline.normalise(pipeline.render(NOISE))[0]


def test_normalisation_prefers_explicit_then_processor_then_imagenet():
    pixels = render("resize", image_size=50)[0].transpose(2, 0, 1) / 255
    processor = {
        "size": {"height": 50, "width": 50},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.3, 0.4, 0.5],
    }

    def expected(mean, std):
        return (pixels - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))

    imagenet = expected([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    own = expected([0.5, 0.4, 0.3], [0.3, 0.4, 0.5])
    explicit = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.9, 0.8, 0.7)}
    given = expected(*explicit.values())
    assert np.allclose(normalised(), imagenet, atol=1e-5)
    assert np.allclose(normalised(vision_processor=processor), own, atol=1e-5)
    assert np.allclose(normalised(vision_processor=processor, **explicit), given, atol=1e-5)
    assert np.allclose(normalised(normalize=False, **explicit), pixels, atol=1e-6)


def test_siglip_statistics_give_minus_one_to_one():
    white = np.full((1, 2, 2, 3), 255, np.uint8)
    half = (0.5, 0.5, 0.5)
    pipeline = ViewPipeline(ImageProcessing(image_size=2, image_mean=half, image_std=half))
    assert np.allclose(pipeline.normalise(white), 1)
    assert np.allclose(pipeline.normalise(white * 0), -1)


def test_image_size_is_needed():
    with pytest.raises(ConfigError, match="image_size is unset"):
        ViewPipeline(ImageProcessing())


def test_a_processor_without_configuration_is_an_error():
    with pytest.raises(ConfigError, match="vision_processor is unset"):
        ViewPipeline(ImageProcessing(image_size=32, use_vision_processor=True))


@pytest.mark.parametrize(
    "erp", [NOISE.astype(np.float32), NOISE[..., 0], np.zeros((60, 120, 4), np.uint8)]
)
def test_other_arrays_are_an_error(erp):
    with pytest.raises(DataError, match=r"must be uint8 of shape \[height, width, 3\]"):
        render("e2p", erp, image_size=32)


def test_windows_less_than_a_pixel_apart_are_an_error():
    with pytest.raises(DataError, match="100 pixels wide is too small"):
        render("sliding_window", NOISE[:60, :100], image_size=32, fov_deg=5)


def test_the_native_panorama_has_no_seam_in_its_filter():
    """Turning the panorama turns its view, also across the edges and over the poles."""
    erp = np.random.default_rng(8).integers(0, 256, (96, 192, 3), dtype=np.uint8)
    pipeline = ViewPipeline(ImageProcessing(crop_strategy="erp", image_size=(24, 48)))
    view = pipeline.render(erp)[0]
    for step in (1, 24, 47):
        turned = pipeline.render(np.roll(erp, 4 * step, axis=1))[0]
        assert np.abs(turned.astype(int) - np.roll(view, step, axis=1)).max() <= 1
    upside_down = pipeline.render(erp[::-1])[0]
    assert np.abs(upside_down.astype(int) - view[::-1]).max() <= 1
    assert np.array_equal(
        ViewPipeline(ImageProcessing(crop_strategy="erp", image_size=(96, 192))).render(erp)[0], erp
    )


def test_the_native_panorama_keeps_its_proportions():
    with pytest.raises(ConfigError, match=r"image_size is \[32, 32\].*such as \[32, 64\]"):
        ViewPipeline(ImageProcessing(crop_strategy="erp", image_size=32))
    with pytest.raises(ConfigError, match="use_vision_processor is on"):
        views_of(ImageProcessing(crop_strategy="erp", use_vision_processor=True))
