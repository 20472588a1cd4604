"""The exact geometry of a view: which direction every place of its picture shows, and back.

A place is given by two numbers, ``across`` and ``down``: 0 at the left and upper edge of the
picture that the tower sees, 1 at the right and lower edge. Edges are those of the outermost pixels,
not their centres, so that resizing a picture does not move places. Everything is float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from panovlm.panorama.cuts import Box
from panovlm.panorama.geometry import Camera, ray_angles, rotation

Doubles = NDArray[np.float64]


class Places(NamedTuple):
    """Where directions lie in a picture; shapes are those of the directions without the last axis.

    ``across`` and ``down`` mean nothing where ``inside`` is false: there the picture does not show
    the direction.
    """

    across: Doubles
    down: Doubles
    inside: NDArray[np.bool_]


class Lens(ABC):
    """The geometry of one view."""

    @property
    def closed(self) -> bool:
        """Whether the picture goes once around, so that its right edge is its left one."""
        return False

    @abstractmethod
    def rays(self, across: Doubles, down: Doubles) -> Doubles:
        """Return the unit directions [..., 3] of places; NaN where a picture shows nothing."""

    @abstractmethod
    def places(self, directions: Doubles) -> Places:
        """Return where directions [..., 3], of any length, lie in the picture."""


@dataclass(frozen=True)
class Pinhole(Lens):
    """A perspective view of which rows above and below may have been dropped.

    The field of view reaches from the centre of the first rendered pixel to that of the last one,
    so the picture itself is half a pixel larger on every side.

    Attributes:
        camera: Where it looks.
        size: (height, width) of the rendered picture in pixels.
        margin: Rows dropped above and below.
    """

    camera: Camera
    size: tuple[int, int]
    margin: int = 0

    def rays(self, across: Doubles, down: Doubles) -> Doubles:
        """See :meth:`Lens.rays`."""
        (height, width), kept = self.size, self.size[0] - 2 * self.margin
        rays = np.ones((*np.broadcast_shapes(across.shape, down.shape), 3))
        rays[..., 0] = _on_plane(across * width - 0.5, self.camera.hfov, width)
        rays[..., 1] = -_on_plane(down * kept + self.margin - 0.5, self.camera.vfov, height)
        return unit(rays @ rotation(self.camera.yaw, self.camera.pitch))

    def places(self, directions: Doubles) -> Places:
        """See :meth:`Lens.places`."""
        (height, width), kept = self.size, self.size[0] - 2 * self.margin
        rays = directions @ rotation(self.camera.yaw, self.camera.pitch).T
        ahead = rays[..., 2] > 0
        depth = np.where(ahead, rays[..., 2], 1.0)
        column = _from_plane(rays[..., 0] / depth, self.camera.hfov, width)
        row = _from_plane(-rays[..., 1] / depth, self.camera.vfov, height)
        across, down = (column + 0.5) / width, (row + 0.5 - self.margin) / kept
        return Places(across, down, ahead & _within(across) & _within(down))


@dataclass(frozen=True)
class Rectangle(Lens):
    """A rectangle of the panorama itself, or the whole of it.

    Attributes:
        box: Its pixels; they may go on beyond the right edge, at the left one.
        panorama: (height, width) of the panorama in pixels.
    """

    box: Box
    panorama: tuple[int, int]

    @property
    def closed(self) -> bool:
        """See :attr:`Lens.closed`."""
        return self.box.right - self.box.left == self.panorama[1]

    def rays(self, across: Doubles, down: Doubles) -> Doubles:
        """See :meth:`Lens.rays`."""
        height, width = self.panorama
        x = self.box.left + across * (self.box.right - self.box.left)
        y = self.box.top + down * (self.box.bottom - self.box.top)
        return directions_of((x / width - 0.5) * 2 * np.pi, (0.5 - y / height) * np.pi)

    def places(self, directions: Doubles) -> Places:
        """See :meth:`Lens.places`."""
        height, width = self.panorama
        longitude, latitude = ray_angles(directions)
        x = (longitude / (2 * np.pi) + 0.5) * width
        y = (0.5 - latitude / np.pi) * height
        wide, high = self.box.right - self.box.left, self.box.bottom - self.box.top
        across, down = (x - self.box.left) % width / wide, (y - self.box.top) / high
        return Places(across, down, _within(across) & _within(down))


@dataclass(frozen=True)
class Framed(Lens):
    """A part of another picture, or that picture with something empty around it.

    Attributes:
        lens: The other picture.
        top: Where the frame begins and ends, in places of the other picture.
        left: See ``top``.
        bottom: See ``top``.
        right: See ``top``.
    """

    lens: Lens
    top: float
    left: float
    bottom: float
    right: float

    def rays(self, across: Doubles, down: Doubles) -> Doubles:
        """See :meth:`Lens.rays`."""
        x = self.left + across * (self.right - self.left)
        y = self.top + down * (self.bottom - self.top)
        shown = _within(x) & _within(y)
        return np.where(shown[..., None], self.lens.rays(x, y), np.nan)

    def places(self, directions: Doubles) -> Places:
        """See :meth:`Lens.places`."""
        x, y, inside = self.lens.places(directions)
        across = (x - self.left) / (self.right - self.left)
        down = (y - self.top) / (self.bottom - self.top)
        return Places(across, down, inside & _within(across) & _within(down))


def directions_of(longitude: Doubles, latitude: Doubles) -> Doubles:
    """Return the unit directions [..., 3] of angles in radians."""
    flat = np.cos(latitude)
    parts = (flat * np.sin(longitude), np.sin(latitude), flat * np.cos(longitude))
    return np.stack(np.broadcast_arrays(*parts), axis=-1)


def unit(directions: Doubles) -> Doubles:
    """Return directions [..., 3] with length 1."""
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def cell_centres(rows: int, columns: int) -> tuple[Doubles, Doubles]:
    """Return ``across`` and ``down``, [rows, columns] each, of the cells of a regular grid."""
    down, across = np.meshgrid(
        (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij"
    )
    return across, down


def _on_plane(pixel: Doubles, fov: float, count: int) -> Doubles:
    """Return where pixel coordinates lie on the plane at distance 1 before the camera."""
    edge = np.tan(np.deg2rad(fov) / 2)
    return pixel * (2 * edge / max(count - 1, 1)) - edge


def _from_plane(position: Doubles, fov: float, count: int) -> Doubles:
    """Undo :func:`_on_plane`."""
    edge = np.tan(np.deg2rad(fov) / 2)
    return (position + edge) / (2 * edge / max(count - 1, 1))


def _within(share: Doubles) -> NDArray[np.bool_]:
    return (share >= 0) & (share <= 1)
