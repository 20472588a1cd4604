"""Ray casting of a synthetic scene into an equirectangular picture.

Pixel (row, column) of a picture of height H and width W looks along
``yaw = 360 ((column + 0.5) / W - 0.5)`` and ``pitch = 180 (0.5 - (row + 0.5) / H)``. In these
coordinates the walls of a room separate into a function of the column (distance to the wall) and
one of the row (tangent of the pitch), so a whole room costs a few array operations; every solid is
intersected only with the rays of the window around it, whose columns wrap round the seam.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from panovlm.data.synthetic.scene import (
    COLOURS,
    CUBE_EDGE,
    CYLINDER_HEIGHT,
    CYLINDER_RADIUS,
    Room,
    Scene,
    Solid,
)

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

_SUPERSAMPLE = 2
_CEILING = (0.90, 0.89, 0.86)
_LAMP_RADIUS = 0.32
_BASEBOARD = 0.11
_PLANK = 0.32


class Rays(NamedTuple):
    """Directions of all pixels, as their separate parts."""

    sin_yaw: Array
    """[W]"""
    cos_yaw: Array
    """[W]"""
    sin_pitch: Array
    """[H]"""
    cos_pitch: Array
    """[H]"""


@lru_cache(maxsize=4)
def _rays(height: int, width: int) -> Rays:
    yaw = 2 * np.pi * ((np.arange(width) + 0.5) / width - 0.5)
    pitch = np.pi * (0.5 - (np.arange(height) + 0.5) / height)
    parts = (np.sin(yaw), np.cos(yaw), np.sin(pitch), np.cos(pitch))
    return Rays(*(part.astype(np.float32) for part in parts))


def render(scene: Scene, width: int) -> NDArray[np.uint8]:
    """Ray-cast a scene.

    Args:
        scene: What to show.
        width: Pixels of the picture's width; its height is half of that, rounded down.

    Returns:
        uint8 [width // 2, width, 3], RGB.
    """
    height = width // 2
    rays = _rays(height * _SUPERSAMPLE, width * _SUPERSAMPLE)
    picture = _render_room(scene, rays)
    light = _light(scene.room)
    for solid in scene.solids:
        _paint(picture, solid, rays, light)
    small = [cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA) for plane in picture]
    return (np.clip(np.stack(small, axis=-1), 0, 1) * 255 + 0.5).astype(np.uint8)


def _light(room: Room) -> tuple[float, float, float]:
    """Return the position of the lamp, which hangs in the middle of the room."""
    yaw = math.radians(room.yaw)
    x, z = -room.camera[0], -room.camera[1]
    return (
        x * math.cos(yaw) + z * math.sin(yaw),
        room.height - room.eye - 0.2,
        z * math.cos(yaw) - x * math.sin(yaw),
    )


def _render_room(scene: Scene, rays: Rays) -> Array:
    """Return the empty room as separate colour planes, [3, H, W]."""
    room = scene.room
    cos, sin = math.cos(math.radians(room.yaw)), math.sin(math.radians(room.yaw))
    # Horizontal directions in the room's own axes, [W].
    dx = rays.sin_yaw * np.float32(cos) - rays.cos_yaw * np.float32(sin)
    dz = rays.cos_yaw * np.float32(cos) + rays.sin_yaw * np.float32(sin)
    tints, corner, reach = _walls(room, dx, dz)
    tangent = rays.sin_pitch / rays.cos_pitch  # [H]
    level = reach * tangent[:, None] + np.float32(room.eye)  # height on the wall, [H, W]
    shade = _wall_shade(level, room) * corner

    horizon = len(tangent) // 2
    top, bottom = slice(None, horizon), slice(horizon, None)
    above, under = level[top] > room.height, level[bottom] < 0
    up = np.float32(room.height - room.eye) / tangent[top, None]
    down = -np.float32(room.eye) / tangent[bottom, None]  # horizontal distance to the floor
    np.copyto(shade[top], _ceiling_shade(room, up * dx, up * dz), where=above)
    np.copyto(shade[bottom], _floor_shade(scene, down * dx, down * dz), where=under)

    picture = np.empty((3, *level.shape), np.float32)
    for channel in range(3):
        plane = picture[channel]
        ceiling, floor = np.float32(_CEILING[channel]), np.float32(room.floor[channel])
        wall = tints[:, channel]
        np.multiply(shade[top], np.where(above, ceiling, wall), out=plane[top])
        np.multiply(shade[bottom], np.where(under, floor, wall), out=plane[bottom])
    return picture


def _walls(room: Room, dx: Array, dz: Array) -> tuple[Array, Array, Array]:
    """Find the wall that each column shows.

    Returns:
        Its colour [W, 3], the darkening towards its corners [W], its horizontal distance [W].
    """
    to_x = (np.copysign(room.half[0], dx) - room.camera[0]) / dx
    to_z = (np.copysign(room.half[1], dz) - room.camera[1]) / dz
    reach = np.minimum(to_x, to_z)
    index = np.where(to_x < to_z, np.where(dx > 0, 0, 1), np.where(dz > 0, 2, 3))
    along = np.where(to_x < to_z, room.camera[1] + reach * dz, room.camera[0] + reach * dx)
    extent = np.where(to_x < to_z, room.half[1], room.half[0])
    edge = np.maximum(extent - np.abs(along), 0)
    corner = 1 - 0.16 * np.exp(-edge / 0.5)
    tints = np.asarray(room.walls, np.float32)[index]
    return tints, corner.astype(np.float32), reach.astype(np.float32)


def _wall_shade(level: Array, room: Room) -> Array:
    """Return the brightness at a height on the wall: darker towards floor and ceiling."""
    centred = level * np.float32(2 / room.height) - np.float32(1.1)
    shade = np.float32(1.03) - np.float32(0.14) * centred * centred
    horizon = len(level) // 2
    shade[horizon:][level[horizon:] < _BASEBOARD] *= np.float32(0.78)
    return shade


def _ceiling_shade(room: Room, x: Array, z: Array) -> Array:
    """Return the brightness of the ceiling, with its lamp, at (x, z) from the camera."""
    lamp = (x + np.float32(room.camera[0])) ** 2 + (z + np.float32(room.camera[1])) ** 2
    glow = np.float32(0.90) + np.float32(0.16) / (1 + lamp)
    glow[lamp < _LAMP_RADIUS**2] = 1.2
    return glow


def _floor_shade(scene: Scene, x: Array, z: Array) -> Array:
    """Return the brightness of the floor, with boards and shadows, at (x, z) from the camera."""
    room = scene.room
    x_room, z_room = x + np.float32(room.camera[0]), z + np.float32(room.camera[1])
    boards = np.asarray(room.planks, np.float32)
    board = np.clip(x_room, -room.half[0], room.half[0]) / np.float32(_PLANK)
    shade = boards[np.floor(board).astype(np.int32) % len(boards)]
    lamp = x_room * x_room + z_room * z_room
    shade *= np.float32(0.86) + np.float32(0.22) / (1 + np.float32(0.12) * lamp)
    light = _light(room)
    for solid in scene.solids:
        shade *= 1 - _shadow(solid, room, light, x, z)
    return shade


def _shadow(
    solid: Solid, room: Room, light: tuple[float, float, float], x: Array, z: Array
) -> Array:
    """Return the darkness [h, W] of the soft shadow that the lamp throws on the floor."""
    cx, cy, cz = solid.centre
    # The lamp's ray through the centre, continued to the floor.
    share = (light[1] + room.eye) / (light[1] - cy)
    px, pz = light[0] + share * (cx - light[0]), light[2] + share * (cz - light[2])
    yaw = math.radians(room.yaw)
    sx = px * math.cos(yaw) - pz * math.sin(yaw)
    sz = pz * math.cos(yaw) + px * math.sin(yaw)
    gap = max(0.0, cy - solid.half_height + room.eye)
    size = solid.radius * share * (1.25 + 0.3 * gap)
    near = (x - np.float32(sx)) ** 2 + (z - np.float32(sz)) ** 2
    core = np.maximum(1 - near / np.float32(size * size), 0)
    return np.float32(0.62 / (1 + 0.6 * gap)) * core * (2 - core)


def _paint(picture: Array, solid: Solid, rays: Rays, light: tuple[float, float, float]) -> None:
    """Draw one solid into the colour planes, in place."""
    rows, columns = _window(solid, len(rays.sin_pitch), len(rays.sin_yaw))
    cos_pitch = rays.cos_pitch[rows, None]
    direction = np.stack(
        (
            cos_pitch * rays.sin_yaw[columns],
            np.broadcast_to(rays.sin_pitch[rows, None], (len(rows), len(columns))),
            cos_pitch * rays.cos_yaw[columns],
        ),
        axis=-1,
    ).reshape(-1, 3)
    hit, depth, normal = _HIT[solid.shape](direction, solid)
    direction = direction[hit]
    colour = _shade(solid, direction * depth[hit, None], normal[hit], direction, light)
    row, column = np.divmod(np.flatnonzero(hit), len(columns))
    picture[:, rows[row], columns[column]] = colour.T


def _window(solid: Solid, height: int, width: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows and columns around a solid; columns wrap round the seam."""
    reach = math.degrees(math.asin(solid.bounding_radius / solid.distance))
    rows = _around((90 - solid.pitch) * height / 180, reach * height / 180)
    columns = _around((solid.yaw + 180) * width / 360, solid.reach * width / 360)
    return rows[(rows >= 0) & (rows < height)], columns % width


def _around(centre: float, reach: float) -> NDArray[np.intp]:
    return np.arange(math.floor(centre - reach) - 1, math.ceil(centre + reach) + 1)


def _shade(
    solid: Solid,
    point: Array,
    normal: Array,
    direction: Array,
    light: tuple[float, float, float],
) -> Array:
    """Return the colours [n, 3] of points on a solid: ambient, diffuse and a soft highlight."""
    to_light = np.asarray(light, np.float32) - point
    to_light /= np.linalg.norm(to_light, axis=1, keepdims=True)
    diffuse = np.maximum((normal * to_light).sum(1), 0)
    ambient = 0.60 + 0.12 * normal[:, 1] - 0.10 * (normal * direction).sum(1)
    halfway = to_light - direction
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    highlight = 0.28 * np.maximum((normal * halfway).sum(1), 0) ** 32
    base = np.asarray(COLOURS[solid.colour], np.float32)
    return base * (ambient + 0.42 * diffuse)[:, None] + highlight[:, None]


class Hit(NamedTuple):
    """Where n rays meet a solid; depth and normal count only where ``hit`` is true."""

    hit: Mask
    """[n]"""
    depth: Array
    """[n], metres along the ray"""
    normal: Array
    """[n, 3], unit vectors"""


def _hit_sphere(direction: Array, solid: Solid) -> Hit:
    centre = np.asarray(solid.centre, np.float32)
    along = direction @ centre
    inside = along * along - np.float32(solid.distance**2 - solid.radius**2)
    depth = along - np.sqrt(np.maximum(inside, 0))
    normal = (direction * depth[:, None] - centre) / np.float32(solid.radius)
    return Hit(inside > 0, depth, normal)


def _hit_cube(direction: Array, solid: Solid) -> Hit:
    """Intersect with the three pairs of planes (slab method, Kay and Kajiya 1986)."""
    spin = math.radians(solid.spin)
    cos, sin = math.cos(spin), math.sin(spin)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], np.float32)  # local axes to ours
    local = direction @ turn
    origin = -np.asarray(solid.centre, np.float32) @ turn
    half = np.float32(CUBE_EDGE * solid.radius)
    step = np.where(np.abs(local) < 1e-9, np.float32(1e-9), local)
    first, second = (-half - origin) / step, (half - origin) / step
    enter, leave = np.minimum(first, second), np.maximum(first, second)
    depth = enter.max(1)
    face = enter.argmax(1)
    rows = np.arange(len(direction))
    normal = np.zeros_like(direction)
    normal[rows, face] = -np.sign(local[rows, face])
    return Hit(depth < leave.min(1), depth, normal @ turn.T)


def _hit_cylinder(direction: Array, solid: Solid) -> Hit:
    """Intersect with the mantle and with the cap that faces the camera."""
    cx, cy, cz = solid.centre
    radius = np.float32(CYLINDER_RADIUS * solid.radius)
    half = np.float32(CYLINDER_HEIGHT * solid.radius)
    dx, dy, dz = direction.T
    # |t d - c|^2 = r^2 in the horizontal plane.
    a = dx * dx + dz * dz
    b = dx * np.float32(cx) + dz * np.float32(cz)
    inside = b * b - a * np.float32(cx * cx + cz * cz - radius * radius)
    depth = (b - np.sqrt(np.maximum(inside, 0))) / a
    mantle = (inside > 0) & (np.abs(depth * dy - cy) <= half)
    normal = np.stack(
        ((dx * depth - cx) / radius, np.zeros_like(dx), (dz * depth - cz) / radius), axis=1
    )
    side = np.float32(-math.copysign(1, cy))
    lid = np.float32(cy) + side * half
    to_lid = lid / np.where(np.abs(dy) < 1e-9, np.float32(1e-9), dy)
    on_lid = (dx * to_lid - cx) ** 2 + (dz * to_lid - cz) ** 2 <= radius * radius
    cap = ~mantle & on_lid & (to_lid > 0) & (side * lid < 0)
    depth = np.where(cap, to_lid, depth).astype(np.float32)
    normal[cap] = (0, side, 0)
    return Hit(mantle | cap, depth, normal.astype(np.float32))


_HIT = {"sphere": _hit_sphere, "cube": _hit_cube, "cylinder": _hit_cylinder}
