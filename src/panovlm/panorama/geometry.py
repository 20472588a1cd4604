"""Geometry of the sphere: cameras, viewing rays, and where a direction lies in a panorama.

World axes: x to the right (east), y up, z forward, through the centre column of the panorama.
A direction has a longitude (yaw, positive to the east) and a latitude (pitch, positive upwards).
Pixel i of an equirectangular panorama of width W covers the longitudes [i, i+1)/W*360-180 degrees;
row j of H covers the latitudes 90-[j, j+1)/H*180. Pixel coordinates count pixel centres: the
centre of pixel i has coordinate i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Grid = Literal["corner", "centre"]
"""Where the pixels of a view lie in its field of view.

``corner``: the field of view reaches from the centre of the first pixel to the centre of the last
one. This is the convention of py360convert's ``e2p``, and so of every model that was trained on its
views; its float32 arithmetic is kept too, so that the same pixels come out.
``centre``: the field of view reaches from the outer edge of the first pixel to the outer edge of
the last one, as in a pinhole camera. Computed in float64.
"""

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in the centre of the sphere; all angles in degrees.

    Attributes:
        yaw: Longitude of the optical axis; 0 is the centre column of the panorama, positive east.
        pitch: Latitude of the optical axis, -90 to 90, positive upwards.
        hfov: Horizontal field of view, above 0 and below 180.
        vfov: Vertical field of view, above 0 and below 180.
    """

    yaw: float
    pitch: float
    hfov: float
    vfov: float


def wrap_degrees(angle: float) -> float:
    """Return the angle that points the same way, in [-180, 180)."""
    return (angle + 180.0) % 360.0 - 180.0


def rotation(yaw: float, pitch: float) -> NDArray[np.float64]:
    """Return the matrix R [3, 3] that turns camera rays into world rays: ``world = ray @ R``.

    The camera is first tilted up by ``pitch``, then turned east by ``yaw`` (degrees).
    """
    a, b = np.deg2rad(yaw), np.deg2rad(pitch)
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turn = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    return tilt @ turn


def plane_positions(fov: float, count: int, grid: Grid, supersample: int = 1) -> Floats:
    """Place the samples of one image axis on the plane at distance 1 before the camera.

    Args:
        fov: Field of view along this axis in degrees.
        count: Pixels along this axis.
        grid: Where the pixels lie in the field of view.
        supersample: Samples per pixel, spread evenly over the pixel.

    Returns:
        Positions [count * supersample], increasing; float32 for ``corner``, float64 for ``centre``.
    """
    edge = np.tan(np.deg2rad(fov) / 2)
    if grid == "corner":
        positions = np.linspace(-edge, edge, count, dtype=np.float32)
        gap = 2 * edge / max(count - 1, 1)
    else:
        gap = 2 * edge / count
        positions = (np.arange(count) + 0.5) * gap - edge
    if supersample == 1:
        return positions
    offsets = ((np.arange(supersample) + 0.5) / supersample - 0.5) * gap
    return (positions[:, None] + offsets).astype(positions.dtype).reshape(-1)


def camera_rays(camera: Camera, size: tuple[int, int], grid: Grid, supersample: int = 1) -> Floats:
    """Return the world direction of every sample of a view, not normalised.

    Args:
        camera: The camera.
        size: (height, width) of the view in pixels.
        grid: Where the pixels lie in the field of view.
        supersample: Samples per pixel along each axis.

    Returns:
        Directions [height * supersample, width * supersample, 3].
    """
    right = plane_positions(camera.hfov, size[1], grid, supersample)
    down = plane_positions(camera.vfov, size[0], grid, supersample)
    rays = np.ones((len(down), len(right), 3), right.dtype)
    rays[..., 0] = right
    rays[..., 1] = -down[:, None]
    return (rays @ rotation(camera.yaw, camera.pitch)).astype(right.dtype)


def ray_angles(rays: Floats) -> tuple[Floats, Floats]:
    """Return longitude [-pi, pi] and latitude [-pi/2, pi/2] of directions [..., 3], in radians."""
    x, y, z = rays[..., 0], rays[..., 1], rays[..., 2]
    return np.arctan2(x, z), np.arctan2(y, np.hypot(x, z))


def erp_coordinates(
    longitude: Floats, latitude: Floats, height: int, width: int
) -> tuple[Floats, Floats]:
    """Return the pixel coordinates (x, y) of directions in a panorama of ``height`` x ``width``.

    x lies in [-0.5, width - 0.5] and y in [-0.5, height - 0.5], in the precision of the angles.
    """
    x = (longitude / (2 * np.pi) + 0.5) * width - 0.5
    y = (0.5 - latitude / np.pi) * height - 0.5
    return x, y
