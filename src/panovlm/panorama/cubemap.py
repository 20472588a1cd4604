"""Pictures of the six faces of a cube, turned into equirectangular panoramas."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from panovlm.config.image_input import FACES, ImageInput, Layout
from panovlm.panorama.geometry import Floats
from panovlm.panorama.projection import SIDE_LIMIT

_GRIDS: dict[Layout, tuple[str, ...]] = {
    "cubemap_cross": (".U..", "LFRB", ".D.."),
    "cubemap_cross_upright": (".U.", "LFR", ".D.", ".B."),
}
"""Which face stands in which cell."""

_AXES = {
    "F": ((1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "R": ((0, 0, -1), (0, -1, 0), (1, 0, 0)),
    "B": ((-1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "L": ((0, 0, 1), (0, -1, 0), (-1, 0, 0)),
    "U": ((1, 0, 0), (0, 0, 1), (0, 1, 0)),
    "D": ((1, 0, 0), (0, 0, -1), (0, -1, 0)),
}
"""Face → where its picture's right, its picture's down and the face itself lie, in the axes right,
up and front."""

Pixels = NDArray[np.uint8]


def cube_to_erp(pixels: Pixels, given: ImageInput) -> Pixels:
    """Turn a picture of the faces of a cube, n pixels wide each, into a panorama.

    Args:
        pixels: [h, w, 3].
        given: The layout of the picture and the order of its faces.

    Returns:
        Pixels [2n, 4n, 3], as fine as the middle of a face; interpolation goes on over the edges.

    Raises:
        ValueError: The picture does not have the shape of its layout, or is too large.
    """
    side = face_size(given, pixels.shape[1], pixels.shape[0])
    stack = np.stack([_face(pixels, given, name, side) for name in FACES])
    longitude = (np.arange(4 * side) + 0.5) / (4 * side) * 2 * np.pi - np.pi
    latitude = np.pi / 2 - (np.arange(2 * side) + 0.5) / (2 * side) * np.pi
    padded = _padded(stack)
    # A few rows at a time: coordinates take eight times the memory of the pixels.
    parts = [
        _look_up(padded, _rays(longitude, latitude[first : first + 256]), margin=1)
        for first in range(0, 2 * side, 256)
    ]
    return np.concatenate(parts)


def face_size(given: ImageInput, width: int, height: int) -> int:
    """Return the pixels of a face's side in a picture of this size.

    Raises:
        ValueError: The picture does not have the shape of its layout, or is too large.
    """
    rows = _grid(given)
    side = height // len(rows)
    if side < 1 or (width, height) != (side * len(rows[0]), side * len(rows)):
        raise ValueError(
            f"it has {width} x {height} pixels, but a {given.layout} has {len(rows[0])} x "
            f"{len(rows)} square faces; mend the declared layout (image_layout of the row, "
            "data.input.layout)"
        )
    if 6 * (side + 2) > SIDE_LIMIT:
        raise ValueError(
            f"its faces have {side} pixels a side, at most {SIDE_LIMIT // 6 - 2} can be read: "
            "shrink the picture first"
        )
    return side


def _grid(given: ImageInput) -> tuple[str, ...]:
    if given.layout == "cubemap_row":
        return (given.faces,)
    if given.layout == "cubemap_column":
        return tuple(given.faces)
    return _GRIDS[given.layout]


def _face(pixels: Pixels, given: ImageInput, name: str, side: int) -> Pixels:
    """Cut a face [n, n, 3] out of the picture."""
    row, cells = next((at, cells) for at, cells in enumerate(_grid(given)) if name in cells)
    column = cells.index(name)
    face = pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]
    upside_down = given.layout == "cubemap_cross_upright" and name == "B"
    return face[::-1, ::-1] if upside_down else face


def _padded(faces: Pixels) -> Pixels:
    """Add a pixel on every side of the faces [6, n, n, 3], taken from their neighbours."""
    side = faces.shape[1]
    padded = np.pad(faces, ((0, 0), (1, 1), (1, 1), (0, 0)))
    line = np.arange(-1.0, side + 1)
    for face, name in zip(padded, FACES, strict=True):
        for edge, end in ((0, -1.0), (-1, float(side))):
            across = np.full_like(line, end)
            face[edge] = _look_up(faces, _face_rays(name, line, across, side)[None], margin=0)[0]
            face[:, edge] = _look_up(faces, _face_rays(name, across, line, side)[None], margin=0)[0]
    return padded


def _face_rays(name: str, x: Floats, y: Floats, side: int) -> Floats:
    """Return the directions [..., 3] of places on a face, in pixels from its first one's middle."""
    right, down, front = (np.array(axis, np.float64) for axis in _AXES[name])
    u, v = (2 * (place + 0.5) / side - 1 for place in (x, y))
    return u[..., None] * right + v[..., None] * down + front


def _rays(longitude: Floats, latitude: Floats) -> Floats:
    """Return the directions [rows, columns, 3] of a panorama's pixels."""
    up = np.sin(latitude)[:, None]
    level = np.cos(latitude)[:, None]
    across = np.broadcast_arrays(level * np.sin(longitude), up, level * np.cos(longitude))
    return np.stack(across, axis=-1)


def _look_up(faces: Pixels, rays: Floats, *, margin: int) -> Any:
    """Read faces [6, n, n, 3], which have a margin, in directions [rows, columns, 3]."""
    size = faces.shape[1]
    side = size - 2 * margin
    frames = np.array([_AXES[name] for name in FACES], np.float64)
    face = np.argmax(rays @ frames[:, 2].T, axis=-1)
    own = np.einsum("...ka,...a->...k", frames[face], rays)
    place = (own[..., :2] / own[..., 2:] + 1) / 2 * side - 0.5 + margin
    place = np.clip(place, 0, size - 1).astype(np.float32)
    stacked = np.ascontiguousarray(faces.reshape(6 * size, size, 3))
    x, y = place[..., 0], place[..., 1] + (face * size).astype(np.float32)
    return cv2.remap(stacked, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
