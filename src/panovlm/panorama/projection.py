"""Projection of an equirectangular panorama onto pinhole views, seamless and right at the poles.

The coordinates that a set of cameras looks at are computed once and kept; projecting is then one
``cv2.remap`` for all views together. A large panorama is read row by row, and what was read is put
into its place in the views afterwards: in the order of the views, memory would be waited for at
almost every pixel.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from panovlm.errors import DataError
from panovlm.panorama.geometry import (
    Camera,
    Floats,
    Grid,
    camera_rays,
    erp_coordinates,
    ray_angles,
)

SIDE_LIMIT = 32766
"""Longest side in pixels that cv2.remap reads or writes."""

_LARGE = 2**20
"""Pixels of a panorama that no longer stays near the processor while it is read in any order."""
_BAND = 8
"""Rows of a large panorama that are read together, from left to right."""
_RUN = 4
"""Pixels of a view that are read together there, and put into their place together."""

Array = NDArray[Any]


def project(
    erp: Array,
    cameras: tuple[Camera, ...],
    size: tuple[int, int],
    *,
    grid: Grid = "corner",
    antialias: bool = False,
) -> Array:
    """Show a panorama through pinhole cameras, with bilinear interpolation.

    Args:
        erp: Panorama [H, W] or [H, W, C], C at most 4, uint8 or float32, at most 32764 px wide.
        cameras: One camera per view.
        size: (height, width) of every view in pixels.
        grid: Where the pixels of a view lie in its field of view.
        antialias: Average over the area of every pixel where the panorama is finer than the view,
            instead of reading one point of it.

    Returns:
        Views [V, height, width] or [V, height, width, C] of the panorama's type.

    Raises:
        DataError: The panorama is too large for cv2.
    """
    channels = erp.shape[2:]
    erp, supersample = read_at(np.ascontiguousarray(erp), cameras, size, grid, antialias=antialias)
    at_once = max(SIDE_LIMIT // (size[0] * supersample), 1)
    stacks = [
        project_stack(erp, cameras[first : first + at_once], size, grid, supersample)
        for first in range(0, len(cameras), at_once)
    ]
    stacked = stacks[0] if len(stacks) == 1 else np.concatenate(stacks)
    return stacked.reshape(len(cameras), *size, *channels)


def read_at(
    erp: Array,
    cameras: tuple[Camera, ...],
    size: tuple[int, int],
    grid: Grid = "corner",
    *,
    antialias: bool = False,
) -> tuple[Array, int]:
    """Return the panorama that views are read from, and how often along each side of a pixel.

    See :func:`project` for the arguments.

    Raises:
        DataError: The panorama is too large for cv2.
    """
    supersample = 1
    if antialias:
        density = density_of(erp.shape, cameras, size, grid)
        supersample = 2 if density > 1 else 1
        erp = shrink(erp, density)
    if max(erp.shape[:2]) + 2 > SIDE_LIMIT:
        raise DataError(
            f"the panorama has {erp.shape[1]} x {erp.shape[0]} pixels, but a side can have at most "
            f"{SIDE_LIMIT - 2}: shrink the picture first"
        )
    return erp, supersample


def project_stack(
    erp: Array, cameras: tuple[Camera, ...], size: tuple[int, int], grid: Grid, supersample: int
) -> Array:
    """Project views that fit into one call of cv2, stacked into one picture [V * height, width]."""
    maps = _maps(cameras, size, grid, supersample, (erp.shape[0], erp.shape[1]))
    source = _extend_over_poles(erp) if maps.poles else erp
    stack = cv2.remap(source, maps.first, maps.second, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    if supersample > 1:
        target = (size[1], size[0] * len(cameras))
        stack = cv2.resize(stack, target, interpolation=cv2.INTER_AREA)
    if maps.places is None:
        return stack
    return stack.reshape(len(maps.places), -1).take(maps.places, axis=0)


class Maps(NamedTuple):
    """Coordinates for cv2.remap."""

    first: NDArray[Any]
    second: NDArray[Any]
    places: NDArray[np.intp] | None
    """Where each run of pixels of the views is in what is read; None: in its place."""
    poles: bool
    """Whether some lie beyond the first or last row's centre."""


@lru_cache(maxsize=4)
def _angles(
    cameras: tuple[Camera, ...], size: tuple[int, int], grid: Grid, supersample: int
) -> tuple[Floats, Floats]:
    """Return the longitudes and latitudes of all samples, [V * height * k, width * k] each."""
    angles = [ray_angles(camera_rays(camera, size, grid, supersample)) for camera in cameras]
    longitude, latitude = (np.concatenate(part) for part in zip(*angles, strict=True))
    return longitude, latitude


def maps_of(
    cameras: tuple[Camera, ...],
    size: tuple[int, int],
    grid: Grid,
    supersample: int,
    erp_size: tuple[int, int],
    *,
    in_place: bool = False,
) -> Maps:
    """Return the coordinates in a panorama of ``erp_size``; ``in_place``: in the views' own order.

    ``corner`` gets cv2's fixed-point coordinates (1/32 px), as py360convert uses them: faster, and
    equal in every pixel. py360convert rounds them in a panorama padded by one pixel on every side;
    the pixel is added before the rounding and taken away afterwards. ``centre`` keeps float32.
    """
    x, y = erp_coordinates(*_angles(cameras, size, grid, supersample), *erp_size)
    poles = bool(y.min() < 0 or y.max() > erp_size[0] - 1)
    places = None
    if not in_place and erp_size[0] * erp_size[1] >= _LARGE:
        block = supersample, supersample * math.gcd(size[1], _RUN)
        corners = np.s_[:: block[0], :: block[1]]
        order = _reading_order(x[corners], y[corners], erp_size[1])
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        x, y = _reordered(x, order, block), _reordered(y, order, block)
    if grid == "corner":
        whole, fraction = cv2.convertMaps(x + 1, y + 1, cv2.CV_16SC2)
        whole -= np.array([1, 0 if poles else 1], np.int16)
        return Maps(whole, fraction, places, poles)
    return Maps(x.astype(np.float32), (y + poles).astype(np.float32), places, poles)


_maps = lru_cache(maxsize=8)(maps_of)  # panoramas of a data set come in several sizes


def _reading_order(x: Floats, y: Floats, width: int) -> NDArray[np.intp]:
    """Return the numbers of places in a panorama: band for band, from left to right in each."""
    band = (y.astype(np.int64) // _BAND).ravel()
    return np.argsort(band * width + x.astype(np.int64).ravel(), kind="stable")


def _reordered(values: Floats, order: NDArray[np.intp], block: tuple[int, int]) -> Floats:
    """Put the blocks of an array [H, W] into another order; ``block`` is their (height, width)."""
    height, width = values.shape[0] // block[0], values.shape[1] // block[1]
    blocks = values.reshape(height, block[0], width, block[1]).swapaxes(1, 2)
    moved = blocks.reshape(height * width, -1).take(order, axis=0).reshape(blocks.shape)
    return moved.swapaxes(1, 2).reshape(values.shape)


def _extend_over_poles(erp: Array) -> Array:
    """Add a row above and below: beyond a pole the panorama goes on half a turn away."""
    half = erp.shape[1] // 2
    return np.concatenate(
        [np.roll(erp[:1], half, axis=1), erp, np.roll(erp[-1:], half, axis=1)], axis=0
    )


def density_of(
    erp_shape: tuple[int, ...],
    cameras: tuple[Camera, ...],
    size: tuple[int, int],
    grid: Grid = "corner",
) -> float:
    """Return the panorama pixels per view pixel in the centre of a view, along the finer axis."""
    gaps = [pixels - 1 if grid == "corner" else pixels for pixels in size]
    return max(
        2 * np.tan(np.deg2rad(fov) / 2) / max(gap, 1) * pixels / sphere
        for camera in cameras
        for fov, gap, pixels, sphere in (
            (camera.vfov, gaps[0], erp_shape[0], np.pi),
            (camera.hfov, gaps[1], erp_shape[1], 2 * np.pi),
        )
    )


def halving(density: float, rest: float) -> int:
    """Return the largest power of two by which :func:`shrink` divides a panorama."""
    return 2 ** max(int(np.floor(np.log2(density / rest))), 0)


def shrink(erp: Array, density: float, *, rest: float = 2) -> Array:
    """Halve a panorama, averaging areas, while it stays ``rest`` times as fine as needed.

    Args:
        erp: Panorama [H, W] or [H, W, C].
        density: How many times finer than needed it is.
        rest: Factor that is left over at least, for the interpolation that follows.

    Returns:
        The panorama, smaller by a power of two.
    """
    factor = halving(density, rest)
    if factor == 1:
        return erp
    target = (max(erp.shape[1] // factor, 1), max(erp.shape[0] // factor, 1))
    return cv2.resize(erp, target, interpolation=cv2.INTER_AREA)
