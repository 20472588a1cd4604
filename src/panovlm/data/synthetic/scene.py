"""What stands where in a synthetic room: the ground truth of pictures and questions.

The camera is the origin: x to the right (yaw 90), y up, z ahead (yaw 0). Lengths are metres,
angles degrees. The floor lies :attr:`Room.eye` below the camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Literal

Shape = Literal["sphere", "cube", "cylinder"]
RGB = tuple[float, float, float]

SHAPES: tuple[Shape, ...] = ("sphere", "cube", "cylinder")
COLOURS: dict[str, RGB] = {
    "red": (0.84, 0.13, 0.12),
    "orange": (0.97, 0.52, 0.07),
    "yellow": (0.98, 0.86, 0.16),
    "green": (0.15, 0.62, 0.24),
    "cyan": (0.20, 0.80, 0.85),
    "blue": (0.14, 0.28, 0.82),
    "purple": (0.56, 0.15, 0.64),
    "pink": (0.97, 0.50, 0.74),
}
"""Names and sRGB values in [0, 1] of the solids' colours."""

DIRECTIONS = (
    "in front of you",
    "ahead and to your right",
    "to your right",
    "behind and to your right",
    "behind you",
    "behind and to your left",
    "to your left",
    "ahead and to your left",
)
"""Eight sectors of 45 degrees, clockwise; the first is centred on yaw 0."""

BEHIND = DIRECTIONS.index("behind you")

FEWEST, MOST = 3, 5
"""Solids in a scene that is asked about in full."""

CYLINDER_RADIUS, CYLINDER_HEIGHT, CUBE_EDGE = 0.55, 1.05, 0.72
"""Half extents of the shapes in units of :attr:`Solid.radius`, chosen to look equally large."""
_BOUND: dict[Shape, float] = {
    "sphere": 1.0,
    "cube": CUBE_EDGE * math.sqrt(3),
    "cylinder": math.hypot(CYLINDER_RADIUS, CYLINDER_HEIGHT),
}
_CORE: dict[Shape, float] = {"sphere": 1.0, "cube": CUBE_EDGE, "cylinder": CYLINDER_RADIUS}
_HALF_HEIGHT: dict[Shape, float] = {
    "sphere": 1.0,
    "cube": CUBE_EDGE,
    "cylinder": CYLINDER_HEIGHT,
}

_JITTER = 20.0
"""Largest yaw between a solid and the centre of its sector; 22.5 would be the border."""
_JITTER_ALIKE = 5.0
"""The same where there is a solid in every sector."""
_GAP = 3.0
"""Smallest yaw between the bounding spheres of two solids."""
_SEAM_SHARE = 0.4
"""Probability that a solid in the sector behind straddles the seam. Half of the scenes have a
solid there, so a fifth of all scenes have one on the seam."""


@dataclass(frozen=True)
class Solid:
    """A coloured sphere, cube or cylinder."""

    colour: str
    shape: Shape
    yaw: float
    """Of its centre, in (-180, 180]."""
    pitch: float
    distance: float
    """From the camera to its centre."""
    radius: float
    """Of the sphere; the other shapes scale with it."""
    spin: float
    """Rotation about the vertical axis."""

    @property
    def direction(self) -> str:
        """Words for the sector that its centre is in."""
        return DIRECTIONS[self.sector]

    @property
    def sector(self) -> int:
        """Index into :data:`DIRECTIONS`."""
        return round(self.yaw / 45) % 8

    @property
    def reach(self) -> float:
        """Half of the yaw that its bounding sphere covers."""
        return _half_yaw(_BOUND[self.shape] * self.radius / self.distance, self.pitch)

    @property
    def bounding_radius(self) -> float:
        """Radius of the smallest sphere around it, in metres."""
        return _BOUND[self.shape] * self.radius

    @property
    def half_height(self) -> float:
        """Half of its vertical extent, in metres."""
        return _HALF_HEIGHT[self.shape] * self.radius

    @property
    def straddles_seam(self) -> bool:
        """Whether the picture's left and right edge (yaw ±180) cut it into two parts."""
        core = _half_yaw(_CORE[self.shape] * self.radius / self.distance, self.pitch)
        return 180 - abs(self.yaw) < core

    @property
    def centre(self) -> tuple[float, float, float]:
        """Its centre (x, y, z)."""
        yaw, pitch = math.radians(self.yaw), math.radians(self.pitch)
        level = self.distance * math.cos(pitch)
        return level * math.sin(yaw), self.distance * math.sin(pitch), level * math.cos(yaw)


@dataclass(frozen=True)
class Room:
    """A box around the camera, turned by :attr:`yaw`; x and z below are its own axes."""

    yaw: float
    half: tuple[float, float]
    """Half of its extent along x and z."""
    camera: tuple[float, float]
    """Where the camera stands, (x, z) from the middle of the room."""
    eye: float
    """Height of the camera above the floor."""
    height: float
    """From floor to ceiling."""
    walls: tuple[RGB, RGB, RGB, RGB]
    """Colours of the walls at +x, -x, +z, -z."""
    floor: RGB
    planks: tuple[float, ...]
    """Brightness of the floor boards, repeated along x."""


@dataclass(frozen=True)
class Scene:
    """A room and the solids in it, one at most in each of the eight sectors."""

    room: Room
    solids: tuple[Solid, ...]
    """Clockwise from the sector in front."""


def draw_scene(rng: Random, fewest: int = FEWEST) -> Scene:
    """Draw a scene.

    Sectors are equally probable; every solid is at least 2.5 degrees of yaw inside its sector and
    clear of the next solid. A solid either straddles the seam with a good part on each side or
    does not touch it. All colours differ.

    Args:
        rng: Source of chance; its state alone decides the scene.
        fewest: Fewest solids.
    """
    count = rng.randint(fewest, MOST)
    sectors = sorted(rng.sample(range(8), count))
    colours = rng.sample(sorted(COLOURS), count)
    # Not while they are placed: rejections favour slim shapes.
    shapes = rng.choices(SHAPES, k=count)
    return _place_solids(rng, list(zip(sectors, colours, shapes, strict=True)), _JITTER)


def draw_alike(rng: Random) -> Scene:
    """Draw a scene with a solid in each of the eight sectors, all of one colour and one shape."""
    colour, shape = rng.choice(sorted(COLOURS)), rng.choice(SHAPES)
    return _place_solids(rng, [(sector, colour, shape) for sector in range(8)], _JITTER_ALIKE)


def _place_solids(rng: Random, what: list[tuple[int, str, Shape]], jitter: float) -> Scene:
    """Draw a room and, until they keep their distance, the places of solids in it.

    Args:
        rng: source of chance.
        what: sector, colour and shape of each, clockwise.
        jitter: largest yaw between a solid and the centre of its sector.
    """
    room = _draw_room(rng)
    while True:
        solids = tuple(_draw_solid(rng, room, jitter, *which) for which in what)
        if _apart(solids):
            return Scene(room, solids)


def _draw_solid(
    rng: Random, room: Room, jitter: float, sector: int, colour: str, shape: Shape
) -> Solid:
    distance = rng.uniform(2.0, 2.7)
    radius = distance * math.sin(math.radians(rng.uniform(11.5, 13.8)))
    lowest = _HALF_HEIGHT[shape] * radius - room.eye
    floats = rng.random() < 0.3
    y = rng.uniform(lowest + 0.2, max(lowest + 0.2, 0.1)) if floats else lowest
    pitch = math.degrees(math.asin(y / distance))
    centred = Solid(colour, shape, 0.0, pitch, distance, radius, rng.uniform(0, 90))
    if sector == BEHIND and jitter == _JITTER:
        offset = _behind_offset(rng, centred)
    else:
        offset = rng.uniform(-jitter, jitter)
    yaw = (45 * sector + offset + 180) % 360 - 180
    return Solid(colour, shape, yaw, pitch, distance, radius, centred.spin)


def _behind_offset(rng: Random, solid: Solid) -> float:
    """Draw the yaw from the seam: clearly across it or clearly beside it."""
    core = _half_yaw(_CORE[solid.shape] * solid.radius / solid.distance, solid.pitch)
    if rng.random() < _SEAM_SHARE:
        return rng.uniform(-0.5, 0.5) * core
    return rng.choice((-1, 1)) * rng.uniform(solid.reach + 1, _JITTER)


def _apart(solids: tuple[Solid, ...]) -> bool:
    neighbours = zip(solids, (*solids[1:], solids[0]), strict=True)
    return len(solids) == 1 or all(
        (right.yaw - left.yaw) % 360 >= left.reach + right.reach + _GAP
        for left, right in neighbours
    )


def _half_yaw(sine: float, pitch: float) -> float:
    """Return half the yaw covered by a sphere whose angular radius has this sine."""
    return math.degrees(math.asin(min(1.0, sine / math.cos(math.radians(pitch)))))


_WALL_TINTS: tuple[RGB, ...] = (
    (0.80, 0.77, 0.72),
    (0.68, 0.73, 0.72),
    (0.73, 0.71, 0.78),
    (0.79, 0.71, 0.66),
    (0.70, 0.75, 0.67),
    (0.66, 0.71, 0.79),
)
_FLOOR_TINTS: tuple[RGB, ...] = ((0.58, 0.48, 0.39), (0.50, 0.44, 0.40), (0.63, 0.56, 0.47))


def _draw_room(rng: Random) -> Room:
    """Draw a room that leaves space for the farthest solid on every side."""
    return Room(
        yaw=rng.uniform(0, 90),
        half=(rng.uniform(4.1, 4.9), rng.uniform(4.1, 4.9)),
        camera=(rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6)),
        eye=rng.uniform(1.05, 1.25),
        height=rng.uniform(3.4, 4.2),
        walls=_four(rng.sample(_WALL_TINTS, 4)),
        floor=rng.choice(_FLOOR_TINTS),
        planks=tuple(rng.uniform(0.94, 1.05) for _ in range(16)),
    )


def _four(tints: list[RGB]) -> tuple[RGB, RGB, RGB, RGB]:
    return tints[0], tints[1], tints[2], tints[3]
