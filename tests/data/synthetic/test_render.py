"""Pictures show the ground truth where the formula of the projection says."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from panovlm.data.synthetic.render import render
from panovlm.data.synthetic.scene import COLOURS, SHAPES, Room, Scene, Shape, Solid, draw_scene

WIDTH = 512
SCENES = [draw_scene(Random(f"test/{i}")) for i in range(25)]


def saturation(picture: np.ndarray) -> np.ndarray:
    """Chroma relative to brightness; muted walls and floor stay below 0.36."""
    values = picture.astype(np.float64)
    return (values.max(-1) - values.min(-1)) / np.maximum(values.max(-1), 1)


def pixel(yaw: float, pitch: float, picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    row = round((90 - pitch) / 180 * height - 0.5)
    return picture[row, round((yaw + 180) / 360 * width - 0.5) % width]


def colour_name(rgb: np.ndarray) -> str | None:
    """Name the colour of a solid; None for walls, floor and ceiling."""
    if saturation(rgb) < 0.36:
        return None
    seen = rgb.astype(np.float64)
    likeness = {
        name: np.dot(seen, tint) / np.linalg.norm(seen) / np.linalg.norm(tint)
        for name, tint in COLOURS.items()
    }
    return max(likeness, key=lambda name: likeness[name])


def directions(height: int, width: int) -> np.ndarray:
    """Unit vectors [height, width, 3] of the pixel centres, straight from the definition."""
    yaw = np.radians(((np.arange(width) + 0.5) / width - 0.5) * 360)
    pitch = np.radians((0.5 - (np.arange(height) + 0.5) / height) * 180)[:, None]
    parts = (np.cos(pitch) * np.sin(yaw), np.sin(pitch) + 0 * yaw, np.cos(pitch) * np.cos(yaw))
    return np.stack(parts, -1)


def test_form_and_determinism() -> None:
    picture = render(SCENES[0], WIDTH)
    assert picture.shape == (WIDTH // 2, WIDTH, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, render(SCENES[0], WIDTH))


def test_every_solid_shows_its_colour_at_its_place() -> None:
    for scene in SCENES:
        picture = render(scene, WIDTH)
        for solid in scene.solids:
            assert colour_name(pixel(solid.yaw, solid.pitch, picture)) == solid.colour


def test_nothing_else_is_colourful() -> None:
    for scene in SCENES[:8]:
        picture = render(scene, WIDTH)
        rays = directions(*picture.shape[:2])
        near = np.zeros(picture.shape[:2], bool)
        for solid in scene.solids:
            cosine = rays @ (np.array(solid.centre) / solid.distance)
            bound = math.asin(solid.bounding_radius / solid.distance) + math.radians(2)
            near |= cosine > math.cos(bound)
        assert saturation(picture)[~near].max() < 0.36


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("yaw", [0.0, 90.0, -137.0, 180.0, 179.0])
@pytest.mark.parametrize("pitch", [-28.0, 0.5, 14.0])
def test_silhouettes_match_a_brute_force_ray_march(shape: Shape, yaw: float, pitch: float) -> None:
    """Compare with points stepped along every ray, which shares no code with the renderer."""
    spin = 33.0
    solid = Solid("red", shape, yaw, pitch, 2.4, 0.5, spin)
    width = 192
    seen = saturation(render(Scene(SCENES[0].room, (solid,)), width)) > 0.5
    rays = directions(width // 2, width)
    depths = np.linspace(solid.distance - 0.7, solid.distance + 0.7, 300)
    close = rays @ np.array(solid.centre) > 0.93 * solid.distance
    points = rays[close][:, None] * depths[None, :, None] - np.array(solid.centre)
    inside = np.zeros(seen.shape, bool)
    inside[close] = is_inside(points, shape, solid.radius, math.radians(spin)).any(1)
    assert inside.sum() > 90
    neighbours = [np.roll(inside, shift, axis) for axis in (0, 1) for shift in (-1, 1)]
    outline = np.any([inside != other for other in neighbours], axis=0)
    assert np.array_equal(seen[~outline], inside[~outline])


def is_inside(points: np.ndarray, shape: Shape, radius: float, spin: float) -> np.ndarray:
    x, y, z = np.moveaxis(points, -1, 0)
    if shape == "sphere":
        return x**2 + y**2 + z**2 < radius**2
    if shape == "cylinder":
        return (x**2 + z**2 < (0.55 * radius) ** 2) & (abs(y) < 1.05 * radius)
    along = x * math.cos(spin) - z * math.sin(spin)
    across = x * math.sin(spin) + z * math.cos(spin)
    return np.maximum(np.maximum(abs(along), abs(across)), abs(y)) < 0.72 * radius


GREY = (0.5, 0.5, 0.5)
GREY_ROOM = Room(0.0, (4.0, 4.0), (0.0, 0.0), 1.2, 3.6, (GREY, GREY, GREY, GREY), GREY, (1.0,))


@pytest.mark.parametrize("yaw", [0.0, 180.0, 45.0, -90.0])
def test_places_are_exact_to_a_fraction_of_a_pixel(yaw: float) -> None:
    """A sphere at pitch 0 is symmetric about its centre; half a pixel off is seen."""
    picture = render(Scene(GREY_ROOM, (Solid("red", "sphere", yaw, 0.0, 2.4, 0.6, 0.0),)), 256)
    rows, columns = np.nonzero(saturation(picture) > 0.4)
    offset = ((columns + 0.5) / 256 * 360 - 180 - yaw + 180) % 360 - 180
    assert abs(np.mean(offset)) < 0.1
    assert abs(np.mean(90 - (rows + 0.5) / 128 * 180)) < 0.1


def test_a_solid_on_the_seam_is_seen_on_both_edges() -> None:
    crossing = [
        s
        for s in SCENES + [draw_scene(Random(f"more/{i}")) for i in range(20)]
        if any(solid.straddles_seam for solid in s.solids)
    ]
    assert crossing
    for scene in crossing:
        [solid] = [solid for solid in scene.solids if solid.straddles_seam]
        picture = render(scene, 256)
        for yaw in (-179.5, 179.5):
            assert colour_name(pixel(yaw, solid.pitch, picture)) == solid.colour


def test_a_turn_of_the_whole_scene_rolls_the_picture() -> None:
    scene = SCENES[3]
    turned = Scene(
        replace(scene.room, yaw=scene.room.yaw + 90),
        tuple(
            replace(s, yaw=(s.yaw + 90 + 180) % 360 - 180, spin=s.spin + 90) for s in scene.solids
        ),
    )
    rolled = np.roll(render(scene, 256), 64, axis=1).astype(int)
    difference = np.abs(rolled - render(turned, 256).astype(int))
    assert np.quantile(difference, 0.999) <= 2


def test_walls_stand_where_the_room_says() -> None:
    """Cast single rays at a bare room with a formula of planes."""
    walls = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0))
    room = Room(30.0, (4.0, 5.0), (0.5, -0.3), 1.2, 3.6, walls, (0.5, 0.4, 0.3), (1.0,))
    picture = render(Scene(room, ()), WIDTH)
    turn = math.radians(room.yaw)
    for yaw in range(-179, 180, 7):
        own = math.radians(yaw) - turn
        x, z = math.sin(own), math.cos(own)
        times = [(4 - 0.5) / x, (-4 - 0.5) / x, (5 + 0.3) / z, (-5 + 0.3) / z]
        reach, wall = min((t, i) for i, t in enumerate(times) if t > 0)
        next_reach = sorted(t for t in times if t > 0)[1]
        if next_reach - reach < 0.3:
            continue  # a corner
        seen = pixel(yaw, 5, picture)
        assert np.array_equal(seen > 60, np.array(walls[wall]) > 0.5)
        floor_edge = -math.degrees(math.atan2(room.eye, reach))
        assert (pixel(yaw, floor_edge - 3, picture) > 20).all()  # the floor is no pure colour
        assert not (pixel(yaw, floor_edge + 6, picture) > 20).all()
