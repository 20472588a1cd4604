"""Projection against py360convert, against exact formulas, and against properties of the sphere."""

from __future__ import annotations

import math

import numpy as np
import py360convert
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.errors import DataError
from panovlm.panorama import projection
from panovlm.panorama.geometry import Camera
from panovlm.panorama.projection import project, shrink

NOISE = np.random.default_rng(0).integers(0, 256, (128, 256, 3), dtype=np.uint8)


def smooth(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """A picture defined on the whole sphere, without seam or singular poles: [..., 3], 0..255."""
    x = np.cos(latitude) * np.sin(longitude)
    y = np.sin(latitude)
    z = np.cos(latitude) * np.cos(longitude)
    return np.stack(
        [128 + 70 * x + 40 * y * z, 120 + 60 * y - 50 * x * z, 128 - 80 * z + 30 * x * y], axis=-1
    )


def smooth_erp(height: int, width: int) -> np.ndarray:
    """The smooth picture at the pixel centres of a panorama, float32 [height, width, 3]."""
    longitude = (np.arange(width) + 0.5) / width * 2 * math.pi - math.pi
    latitude = math.pi / 2 - (np.arange(height) + 0.5) / height * math.pi
    return smooth(*np.meshgrid(longitude, latitude)).astype(np.float32)


def seen(camera: Camera, size: tuple[int, int]) -> np.ndarray:
    """What a pinhole camera with true pixel centres sees of the smooth picture, in float64."""
    yaw, pitch = math.radians(camera.yaw), math.radians(camera.pitch)
    forward = np.array(
        [math.cos(pitch) * math.sin(yaw), math.sin(pitch), math.cos(pitch) * math.cos(yaw)]
    )
    right = np.array([math.cos(yaw), 0, -math.sin(yaw)])
    up = np.cross(forward, right)
    view = np.empty((*size, 3))
    for i in range(size[0]):
        for j in range(size[1]):
            a = (2 * (j + 0.5) / size[1] - 1) * math.tan(math.radians(camera.hfov) / 2)
            b = (1 - 2 * (i + 0.5) / size[0]) * math.tan(math.radians(camera.vfov) / 2)
            ray = forward + a * right + b * up
            ray /= np.linalg.norm(ray)
            view[i, j] = smooth(np.arctan2(ray[0], ray[2]), np.arcsin(ray[1]))
    return view


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def reference(erp: np.ndarray, camera: Camera, size: tuple[int, int]) -> np.ndarray:
    return py360convert.e2p(erp, (camera.hfov, camera.vfov), camera.yaw, camera.pitch, size)


@pytest.mark.parametrize(
    "erp", [NOISE, smooth_erp(128, 256).astype(np.uint8)], ids=["noise", "smooth"]
)
@pytest.mark.parametrize("yaw", [0, 37.5, 90, 179.9, 180, -180, -135])
@pytest.mark.parametrize("pitch", [0, 45, -67.5, 90, -90])
@pytest.mark.parametrize(
    ("hfov", "vfov", "size"), [(90, 90, (32, 32)), (120, 60, (30, 64)), (4, 4, (10, 10))]
)
def test_corner_equals_py360convert(erp, yaw, pitch, hfov, vfov, size):
    camera = Camera(yaw, pitch, hfov, vfov)
    assert largest_difference(project(erp, (camera,), size)[0], reference(erp, camera, size)) <= 1


@settings(max_examples=60, deadline=None)
@given(
    camera=st.builds(
        Camera,
        yaw=st.floats(-360, 360),
        pitch=st.floats(-90, 90),
        hfov=st.floats(1, 150),
        vfov=st.floats(1, 150),
    ),
    # An odd number of pixels can put one exactly on a pole, where no longitude is right or wrong.
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)).map(lambda s: (2 * s[0], 2 * s[1])),
    erp_size=st.tuples(st.integers(50, 90), st.integers(100, 180)),
)
def test_corner_equals_py360convert_anywhere(camera, size, erp_size):
    erp = NOISE[: erp_size[0], : erp_size[1]]
    assert largest_difference(project(erp, (camera,), size)[0], reference(erp, camera, size)) <= 1


def test_corner_of_a_large_panorama_equals_py360convert():
    erp = np.tile(NOISE, (8, 8, 1))
    cameras = tuple(Camera(yaw, 0, 90, 90) for yaw in range(0, 360, 45))
    views = project(erp, cameras, (96, 96))
    for view, camera in zip(views, cameras, strict=True):
        assert largest_difference(view, reference(erp, camera, (96, 96))) <= 1


@pytest.mark.parametrize("width", [96, 94, 95])  # 4, 2, 1 pixels stay together
def test_a_panorama_read_row_by_row_equals_py360convert(width):
    erp = np.random.default_rng(1).integers(0, 256, (1024, 2048, 3), dtype=np.uint8)
    assert erp[..., 0].size >= projection._LARGE
    cameras = tuple(Camera(yaw, 0, 90, 60) for yaw in (-180, 0, 45, 170))
    views = project(erp, cameras, (60, width))
    for view, camera in zip(views, cameras, strict=True):
        assert np.array_equal(view, reference(erp, camera, (60, width)))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid", ["corner", "centre"])
@pytest.mark.parametrize("pixels", [NOISE, NOISE[..., 0], NOISE[..., :2].astype(np.float32)])
@settings(max_examples=15, deadline=None)
@given(
    camera=st.builds(
        Camera,
        yaw=st.floats(-360, 360),
        pitch=st.floats(-90, 90),
        hfov=st.floats(1, 150),
        vfov=st.floats(1, 150),
    ),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_the_order_of_reading_changes_nothing(pixels, grid, antialias, camera, size):
    cameras = (camera, Camera(0, 0, 90, 90))
    views = []
    for large in (2**30, 0):
        projection._maps.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(projection, "_LARGE", large)
            views.append(project(pixels, cameras, size, grid=grid, antialias=antialias))
    projection._maps.cache_clear()
    assert np.array_equal(*views)


@pytest.mark.parametrize("yaw", [0, 101.3, 180, -180])
@pytest.mark.parametrize("pitch", [0, 30, -62, 89.9, 90, -90])
def test_centre_equals_the_exact_formula(yaw, pitch):
    camera = Camera(yaw, pitch, 100, 70)
    view = project(smooth_erp(512, 1024), (camera,), (21, 30), grid="centre")[0]
    assert largest_difference(view, seen(camera, (21, 30))) < 0.05


def test_grids_differ_by_what_their_names_say():
    """The outermost pixel centres of ``corner`` lie on the border of the field of view."""
    longitude = np.tile((np.arange(720) + 0.5) / 2 - 180, (360, 1)).astype(np.float32)
    corner = project(longitude, (Camera(0, 0, 90, 90),), (3, 9))[0, 1]
    centre = project(longitude, (Camera(0, 0, 90, 90),), (3, 9), grid="centre")[0, 1]
    assert corner[0] == pytest.approx(-45, abs=0.05)
    assert corner[-1] == pytest.approx(45, abs=0.05)
    assert centre[-1] == pytest.approx(math.degrees(math.atan(8 / 9)), abs=0.05)


@pytest.mark.parametrize("grid", ["corner", "centre"])
@given(columns=st.integers(-256, 256), pitch=st.sampled_from([0, 40, -75]))
@settings(max_examples=30, deadline=None)
def test_rolling_the_panorama_turns_the_camera(grid, columns, pitch):
    erp = smooth_erp(128, 256).astype(np.uint8)
    still = project(erp, (Camera(20, pitch, 90, 80),), (24, 24), grid=grid)
    turned = Camera(20 + columns * 360 / 256, pitch, 90, 80)
    rolled = project(np.roll(erp, columns, axis=1), (turned,), (24, 24), grid=grid)
    assert largest_difference(still, rolled) <= 1


def test_turning_at_the_zenith_turns_the_picture():
    """What was at the top edge is at the right edge after a quarter turn to the east."""
    erp = smooth_erp(256, 512)
    north = project(erp, (Camera(0, 90, 100, 100),), (32, 32), grid="centre")[0]
    east = project(erp, (Camera(90, 90, 100, 100),), (32, 32), grid="centre")[0]
    assert largest_difference(np.rot90(north, -1), east) < 0.05


@pytest.mark.parametrize("grid", ["corner", "centre"])
def test_antialias_comes_close_to_the_mean_over_each_pixel(grid):
    erp = np.tile(NOISE, (4, 4, 1))
    camera = Camera(30, -20, 80, 80)
    if grid == "centre":
        exact = project(erp, (camera,), (16 * 24, 16 * 24), grid="centre")[0].astype(np.float64)
    else:  # a pixel of ``corner`` is 80 degrees / 23 gaps wide, and half of one lies outside
        wide = math.degrees(2 * math.atan(math.tan(math.radians(40)) * 24 / 23))
        larger = Camera(30, -20, wide, wide)
        exact = project(erp, (larger,), (16 * 24, 16 * 24), grid="centre")[0].astype(np.float64)
    exact = exact.reshape(24, 16, 24, 16, 3).mean((1, 3))
    point = project(erp, (camera,), (24, 24), grid=grid)[0]
    area = project(erp, (camera,), (24, 24), grid=grid, antialias=True)[0]
    error_of_points = np.sqrt(np.mean((point - exact) ** 2))
    error_of_areas = np.sqrt(np.mean((area - exact) ** 2))
    assert error_of_points > 30
    assert error_of_areas < error_of_points / 8


@pytest.mark.parametrize("grid", ["corner", "centre"])
def test_antialias_moves_nothing(grid):
    """Where the picture is smooth, the mean over a pixel is its value in the middle."""
    erp = smooth_erp(512, 1024)
    cameras = (Camera(100, 25, 60, 60),)
    point = project(erp, cameras, (24, 24), grid=grid)
    area = project(erp, cameras, (24, 24), grid=grid, antialias=True)
    assert largest_difference(point, area) < 0.1


def test_antialias_leaves_a_coarse_panorama_alone():
    cameras = (Camera(170, 30, 60, 60),)
    plain = project(NOISE, cameras, (64, 64))
    assert np.array_equal(project(NOISE, cameras, (64, 64), antialias=True), plain)


def test_shrink_keeps_at_least_the_rest():
    assert shrink(NOISE, 3.9).shape == (128, 256, 3)
    assert shrink(NOISE, 4.0).shape == (64, 128, 3)
    assert shrink(NOISE, 31.0, rest=4).shape == (32, 64, 3)
    assert np.array_equal(
        shrink(NOISE, 4.0), np.rint(NOISE.reshape(64, 2, 128, 2, 3).mean((1, 3)) + 1e-9)
    )


def test_more_views_than_one_call_can_hold():
    cameras = tuple(Camera(yaw, 0, 60, 60) for yaw in range(300))
    views = project(NOISE, cameras, (128, 4))
    assert views.shape == (300, 128, 4, 3)
    assert projection.SIDE_LIMIT < 300 * 128
    for index in (0, 254, 255, 256, 299):
        alone = project(NOISE, cameras[index : index + 1], (128, 4))[0]
        assert np.array_equal(views[index], alone)


@pytest.mark.parametrize("channels", [(), (1,), (4,)])
@pytest.mark.parametrize("antialias", [False, True])
def test_channels_are_kept(channels, antialias):
    erp = np.full((100, 200, *channels), 7, np.float32)
    views = project(erp, (Camera(0, 90, 90, 90),), (8, 9), antialias=antialias)
    assert views.shape == (1, 8, 9, *channels)
    assert views.dtype == np.float32
    assert np.allclose(views, 7)


def test_a_mirrored_array_is_read_as_it_looks():
    cameras = (Camera(30, 0, 90, 90),)
    mirrored = NOISE[:, ::-1]
    assert np.array_equal(
        project(mirrored, cameras, (8, 8)), project(mirrored.copy(), cameras, (8, 8))
    )


def test_too_wide_a_panorama_is_an_error():
    with pytest.raises(DataError, match=r"32765 x 50 .* at most 32764"):
        project(np.zeros((50, 32765), np.uint8), (Camera(0, 0, 90, 90),), (8, 8))
