"""The exact geometry of views, against formulas of its own and against rendered pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.config.schema import ImageProcessing
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.sphere import SphereViews, symmetry
from panovlm.panorama.views import STRATEGIES, views_of

ALL = sorted(STRATEGIES)
CLIP = {
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def setting(strategy: str, size: int = 64, **changes) -> ImageProcessing:
    shape = (size, 2 * size) if strategy == "erp" else (size, size)
    return ImageProcessing(crop_strategy=strategy, image_size=shape, **changes)


def spherical(yaw: float, pitch: float) -> np.ndarray:
    return np.array(
        [
            math.cos(pitch) * math.sin(yaw),
            math.sin(pitch),
            math.cos(pitch) * math.cos(yaw),
        ]
    )


def plain_direction(view, fov: float, x: float, y: float) -> np.ndarray:
    """A pinhole ray by its angles: base vectors of the camera, no matrices.

    x and y, -1 to 1, are shares of the field of view to the right and upwards.
    """
    yaw, pitch = math.radians(view.yaw), math.radians(view.pitch)
    edge = math.tan(math.radians(fov) / 2)
    ahead = spherical(yaw, pitch)
    right = np.array([math.cos(yaw), 0.0, -math.sin(yaw)])
    up = spherical(yaw, pitch + math.pi / 2)
    ray = ahead + x * edge * right + y * edge * up
    return ray / np.linalg.norm(ray)


@pytest.mark.parametrize("strategy", ["e2p", "cubemap", "anyres_e2p", "e2p_sphere", "icosahedral"])
@pytest.mark.parametrize("size", [16, 65])
def test_every_pixel_of_a_perspective_view_has_its_direction(strategy, size):
    """The field of view reaches from the first pixel's centre to the last one's."""
    recipe = setting(strategy, size, poles=True, pitch_rows=2, fov_deg=80)
    sphere = SphereViews.of(recipe).tiles()
    fov = 90 if strategy == "cubemap" else 80
    margin = int(size * (1 - 0.9) / 2) if strategy == "e2p" else 0
    kept = size - 2 * margin
    rays = sphere.rays(kept, size)
    for number, view in enumerate(sphere.views):
        for row in (0, 1, kept // 2, kept - 1):
            for column in (0, 3, size - 1):
                x = 2 * column / (size - 1) - 1
                y = 1 - 2 * (row + margin) / (size - 1)
                expected = plain_direction(view, fov, x, y)
                assert np.abs(rays[number, row, column] - expected).max() < 1e-9


@pytest.mark.parametrize("strategy", ALL)
def test_places_are_where_the_pixels_show_what_lies_there(strategy):
    """Brightness linear in the three coordinates of a direction comes out in every pixel."""
    height, width = 1024, 2048
    longitude = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    latitude = (0.5 - (np.arange(height)[:, None] + 0.5) / height) * np.pi
    world = np.stack(
        np.broadcast_arrays(
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
            np.cos(latitude) * np.cos(longitude),
        ),
        axis=-1,
    )
    erp = np.rint(127.5 + 127.5 * world).astype(np.uint8)
    recipe = setting(strategy, 48, poles=True, anyres_max_patches=14)
    views = ViewPipeline(recipe).render(erp)
    rays = SphereViews.of(recipe, panorama=(height, width)).rays(*views.shape[1:3])
    shown = ~np.isnan(rays[..., 0])
    seen = views.astype(float)[shown] / 127.5 - 1
    # A step of the brightness is 1/128; the filters blur the coarse whole pictures more.
    wrong = np.linalg.norm(seen - rays[shown], axis=-1)
    assert np.quantile(wrong, 0.99) < 0.02
    assert (views[~shown] == 0).all()


@pytest.mark.parametrize("strategy", ["e2p", "cubemap6", "sliding_window", "resize"])
def test_the_geometry_knows_what_the_towers_processor_crops(strategy):
    recipe = ImageProcessing(
        crop_strategy=strategy, image_size=40, use_vision_processor=True, vision_processor=CLIP
    )
    height, width = 512, 1024
    row = np.linspace(0, 255, height)[:, None, None]
    erp = np.broadcast_to(row, (height, width, 3)).astype(np.uint8)
    views = ViewPipeline(recipe).render(erp)
    rays = SphereViews.of(recipe, panorama=(height, width)).rays(*views.shape[1:3])
    latitude = np.degrees(np.arcsin(rays[..., 1]))
    assert np.abs((90 - latitude) / 180 * 255 - views[..., 0])[:, 1:-1].max() < 2.5


@settings(max_examples=60, deadline=None)
@given(
    strategy=st.sampled_from(ALL),
    fov=st.floats(30, 90),
    overlap=st.floats(0, 0.7),
    across=st.floats(0.001, 0.999),
    down=st.floats(0.001, 0.999),
)
def test_rays_and_places_undo_each_other(strategy, fov, overlap, across, down):
    recipe = setting(strategy, fov_deg=fov, overlap_ratio=overlap, poles=True)
    for lens in SphereViews.of(recipe).lenses:
        ray = lens.rays(np.array(across), np.array(down))
        if np.isnan(ray).any():
            continue
        assert np.linalg.norm(ray) == pytest.approx(1)
        place = lens.places(7 * ray)
        assert place.inside
        assert (place.across, place.down) == pytest.approx((across, down), abs=1e-6)


def test_nothing_behind_a_camera_is_inside():
    sphere = SphereViews.of(setting("cubemap6"))
    for centre, place in zip(sphere.centres, sphere.places(-sphere.centres), strict=True):
        assert not place.inside[np.abs(sphere.centres @ centre - 1) < 1e-9].any()


@pytest.mark.parametrize(
    ("strategy", "changes", "expected"),
    [
        ("e2p", {}, 8),
        ("e2p", {"fov_deg": 100, "overlap_ratio": 0.2}, 1),  # the stride does not divide the circle
        ("anyres_e2p", {"fov_deg": 60}, 12),
        ("e2p_sphere", {"poles": True, "pitch_rows": 3}, 8),
        ("cubemap6", {}, 4),
        ("icosahedral", {}, 5),
        ("erp", {}, 1),
    ],
)
def test_symmetry(strategy, changes, expected):
    recipe = setting(strategy, **changes)
    assert symmetry(SphereViews.of(recipe).tiles().views) == expected


def test_a_turn_by_one_step_takes_every_ray_to_that_of_another_view():
    for strategy in ("e2p", "e2p_sphere", "cubemap6", "icosahedral"):
        recipe = setting(strategy, poles=True, pitch_rows=2)
        sphere = SphereViews.of(recipe)
        angle = 2 * math.pi / symmetry(sphere.views)
        turn = np.array(
            [
                [math.cos(angle), 0, -math.sin(angle)],
                [0, 1, 0],
                [math.sin(angle), 0, math.cos(angle)],
            ]
        )
        rays = sphere.rays(4, 4).reshape(len(sphere.views), -1)
        turned = (sphere.rays(4, 4) @ turn).reshape(len(sphere.views), -1)
        at_poles = np.abs([view.pitch for view in sphere.views]) == 90
        apart = np.abs(turned[:, None] - rays[None]).max(axis=2)
        assert (apart.min(axis=1)[~at_poles] < 1e-9).all()
        assert len(set(apart.argmin(axis=1)[~at_poles])) == (~at_poles).sum()


def test_overlaps_are_those_of_the_angles():
    """Square views around the horizon overlap when they are less than one field of view apart."""
    for fov, overlap in ((90, 0.5), (60, 0.4), (90, 0.0), (70, 0.1)):
        recipe = setting("e2p", fov_deg=fov, overlap_ratio=overlap, size=512)
        found = SphereViews.of(recipe).overlaps
        yaws = np.array([view.yaw for view in views_of(recipe)])
        apart = np.abs((yaws[:, None] - yaws + 180) % 360 - 180)
        clear = np.abs(apart - fov) > 1.5  # the 64 places of a view tell no less
        assert np.array_equal(found[clear], (apart < fov)[clear])
