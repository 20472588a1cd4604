"""Which views every strategy gives, against numbers worked out by hand and the published rules."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.config.schema import CropStrategy, ImageProcessing
from panovlm.errors import ConfigError
from panovlm.panorama.views import STRATEGIES, View, leading_global, views_of

WHOLE = View(0, 0, 360, 180, is_global=True)


def views(strategy: str, **settings) -> tuple[View, ...]:
    return views_of(ImageProcessing(crop_strategy=strategy, **settings))


def test_every_strategy_of_the_settings_is_registered():
    assert set(STRATEGIES) == set(get_args(CropStrategy))


@settings(max_examples=60, deadline=None)
@given(
    strategy=st.sampled_from(sorted(STRATEGIES)),
    fov=st.floats(20, 90),
    overlap=st.floats(0, 0.8),
    patches=st.integers(2, 40),
    processor=st.booleans(),
)
def test_views_are_on_the_sphere_and_global_ones_marked(strategy, fov, overlap, patches, processor):
    recipe = ImageProcessing(
        crop_strategy=strategy,
        fov_deg=fov,
        overlap_ratio=overlap,
        anyres_max_patches=patches,
        use_vision_processor=processor,
    )
    if strategy == "erp" and processor:
        return
    found = views_of(recipe)
    for view in found:
        assert -180 <= view.yaw <= 180
        assert abs(view.pitch) <= 90
        assert 0 < view.hfov <= 360
        assert 0 < view.vfov <= 180
        assert view == WHOLE or not view.is_global
    around = math.ceil(360 / (fov * (1 - overlap)))
    rows = 1 + sum(
        -45 + fov / 2 + n * fov * (1 - overlap) <= 45 - fov / 2 + 1e-9 for n in range(1, 99)
    )
    columns = min(6, patches // 2)
    expected = {
        "e2p": around,
        "sliding_window": around,
        "cubemap": 4,
        "resize": 1,
        "anyres": 1 + (columns if processor else patches),
        "anyres_max": 1 + patches,
        "anyres_e2p": 1 + rows * around,
        "e2p_sphere": around,
        "cubemap6": 6,
        "icosahedral": 20,
        "erp": 1,
    }
    assert len(found) == expected[strategy]
    assert leading_global(recipe) == strategy.startswith("anyres")


def test_e2p():
    found = views("e2p")
    assert [view.yaw for view in found] == [0, 45, 90, 135, 180, -135, -90, -45]
    assert {(view.pitch, view.hfov) for view in found} == {(0, 90)}
    # tan(half the height) shrinks to 0.9 of tan(45 degrees)
    assert all(view.vfov == pytest.approx(83.9744, abs=1e-3) for view in found)


def test_e2p_keeps_the_stride_where_it_does_not_divide_the_circle():
    found = views("e2p", fov_deg=100, overlap_ratio=0.2)
    assert [view.yaw for view in found] == [0, 80, 160, -120, -40]


def test_sliding_window_starts_at_the_left_edge():
    found = views("sliding_window")
    assert [view.yaw for view in found] == [-135, -90, -45, 0, 45, 90, 135, -180]
    assert {(view.hfov, view.vfov) for view in found} == {(90, 90)}


@pytest.mark.parametrize(
    ("image_size", "fov", "extent"),
    [
        ((160, 96), 90, (90, 150)),  # already 90 : 150
        ((100, 100), 150, (150, 150)),
        ((100, 40), 90, (60, 150)),  # too wide
        ((50, 100), 90, (90, 45)),  # too high
    ],
)
def test_sliding_window_is_cropped_to_the_aspect_of_a_view(image_size, fov, extent):
    view = views("sliding_window", image_size=image_size, fov_deg=fov)[0]
    assert (view.hfov, view.vfov) == pytest.approx(extent)


def test_cubemap():
    assert views("cubemap") == tuple(View(yaw, 0, 90, 90) for yaw in (0, 90, 180, -90))


def test_resize_is_global_but_leads_nothing():
    assert views("resize") == (WHOLE,)
    assert not leading_global(ImageProcessing(crop_strategy="resize"))


def test_anyres_e2p():
    assert views("anyres_e2p") == (
        WHOLE,
        *(View(yaw, 0, 90, 90) for yaw in (0, 45, 90, 135, -180, -135, -90, -45)),
    )


def test_anyres_e2p_goes_up_in_rows():
    found = views("anyres_e2p", fov_deg=45)
    assert found[0] == WHOLE
    assert [(view.pitch, view.yaw) for view in found[1:]] == [
        (pitch, yaw)
        for pitch in (-22.5, 0, 22.5)
        for yaw in (*(22.5 * n for n in range(8)), *(22.5 * n - 180 for n in range(8)))
    ]


def test_anyres_e2p_evens_its_steps_out():
    found = views("anyres_e2p", fov_deg=70, overlap_ratio=0.3)[1:]  # 360 / 49 = 7.3
    assert [view.yaw for view in found] == [0, 45, 90, 135, -180, -135, -90, -45]
    assert {view.pitch for view in found} == {-10}


def test_anyres():
    slices = [-150, -90, -30, 30, 90, 150]
    assert views("anyres") == (
        WHOLE,
        *(View(yaw, 0, 60, 90) for yaw in slices),
        *(View(yaw, 0, 60, 180) for yaw in slices),
    )
    further = views("anyres", anyres_max_patches=15)[13:]
    assert [view.yaw for view in further] == [0, 157.5, -45]
    assert further[0].vfov == pytest.approx(2 * math.degrees(math.atan(0.8)))


def test_anyres_through_the_processor_has_no_other_views():
    assert views("anyres", use_vision_processor=True) == views("anyres")[:7]


def test_anyres_max():
    found = views("anyres_max", anyres_max_patches=9)
    assert found == (
        WHOLE,
        *(View(yaw, pitch, 90, 90) for pitch in (45, -45) for yaw in (-135, -45, 45, 135)),
        View(0, 0, 90, 90),
    )
    assert views("anyres_max", anyres_max_patches=9, use_vision_processor=True) == found


@pytest.mark.parametrize("strategy", ["anyres", "anyres_max"])
def test_a_single_patch_is_an_error(strategy):
    with pytest.raises(ConfigError, match=f"anyres_max_patches is 1; crop_strategy {strategy} "):
        views(strategy, anyres_max_patches=1)


def test_tiles_that_do_not_fit_are_an_error():
    with pytest.raises(ConfigError, match=r"fov_deg is 100.*at most 90"):
        views("anyres_e2p", fov_deg=100)


def test_cubemap6():
    found = views("cubemap6")
    assert [(view.yaw, view.pitch) for view in found] == [
        (0, 0), (90, 0), (-180, 0), (-90, 0), (0, 90), (0, -90),
    ]  # fmt: skip
    assert {(view.hfov, view.vfov) for view in found} == {(90, 90)}


def test_rows_and_poles():
    found = views("e2p_sphere", fov_deg=60, overlap_ratio=0.25, pitch_rows=3, poles=True)
    assert [view.pitch for view in found] == [-90, *[-45] * 8, *[0] * 8, *[45] * 8, 90]
    assert [view.yaw for view in found[1:9]] == [0, 45, 90, 135, -180, -135, -90, -45]
    assert [view.pitch for view in views("e2p_sphere", pitch_rows=2)] == [-22.5] * 8 + [22.5] * 8
    with pytest.raises(ConfigError, match=r"pitch_rows is 5.*at pitch 90"):
        views("e2p_sphere", pitch_rows=5)


@pytest.mark.parametrize(("count", "nearest"), [(12, 63.4349), (20, 41.8103)])
def test_icosahedral_views_are_spread_evenly(count, nearest):
    """Every view has its nearest neighbours (5 at a corner, 3 at a face) equally far away."""
    found = views("icosahedral", icosahedral_views=count)
    yaw, pitch = np.radians([(view.yaw, view.pitch) for view in found]).T
    towards = np.stack(
        [np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)], axis=1
    )
    angles = np.degrees(np.arccos(np.clip(towards @ towards.T, -1, 1)))
    neighbours = 5 if count == 12 else 3
    assert np.allclose(np.sort(angles, axis=1)[:, 1 : neighbours + 1], nearest, atol=1e-3)
    assert len(found) == count
    assert [view.pitch for view in found] == sorted(view.pitch for view in found)
