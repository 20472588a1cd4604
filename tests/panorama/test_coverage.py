"""Coverage and density against areas worked out by hand."""

from __future__ import annotations

import math

import pytest

from panovlm.config.schema import ImageProcessing
from panovlm.panorama.coverage import coverage


def measured(strategy: str, size: int = 1024, **changes):
    shape = (size, 2 * size) if strategy == "erp" else (size, size)
    return coverage(ImageProcessing(crop_strategy=strategy, image_size=shape, **changes))


def test_a_cube_shows_everything_once():
    found = measured("cubemap6")
    assert found.share == 1
    assert found.times == pytest.approx(1, abs=2e-3)  # and the outer halves of edge pixels
    assert found.overlapping == 0
    assert found.latitudes == (-90, 90)
    assert measured("cubemap").share == pytest.approx(4 / 6, abs=2e-3)


def test_a_pinhole_view_covers_its_solid_angle():
    """A square field of view covers 4 asin(sin^2(fov / 2)) steradians."""
    found = measured("e2p_sphere", fov_deg=60, overlap_ratio=0)
    solid = 4 * math.asin(math.sin(math.radians(30)) ** 2)
    assert found.share == pytest.approx(6 * solid / (4 * math.pi), abs=2e-3)
    low, high = found.latitudes
    # Where two neighbours meet, half a field of view aside.
    corner = math.degrees(math.atan(math.tan(math.radians(30)) * math.cos(math.radians(30))))
    assert (-low, high) == pytest.approx((corner, corner), abs=0.5)


@pytest.mark.parametrize("count", [12, 20])
def test_an_icosahedron_leaves_nothing_out(count):
    assert measured("icosahedral", icosahedral_views=count, fov_deg=75).share == 1
    narrow = measured("icosahedral", icosahedral_views=count, fov_deg=50)
    assert narrow.share < 1


def test_poles_and_rows_close_the_sphere():
    ring = measured("e2p_sphere")
    assert ring.share < 0.8
    assert measured("e2p_sphere", poles=True).share > ring.share
    assert measured("e2p_sphere", poles=True, pitch_rows=3).share == 1


def test_density_of_a_pinhole_view():
    """tan(45) per half a view in the middle; the cube of the cosine less area in the corners."""
    lowest, _, highest = measured("cubemap6").densities
    middle = 1023 / 2 * math.pi / 180
    assert lowest == pytest.approx(middle, rel=1e-3)
    assert highest == pytest.approx(middle * 3**0.75, rel=1e-2)


def test_density_of_the_panorama():
    """1024 rows over 180 degrees; towards the poles the columns come together."""
    lowest, middle, _ = measured("erp").densities
    assert lowest == pytest.approx(1024 / 180, rel=1e-3)
    assert middle == pytest.approx(1024 / 180 / math.sqrt(math.cos(math.pi / 6)), rel=1e-2)
