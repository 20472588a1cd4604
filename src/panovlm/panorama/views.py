"""Crop strategies: which views of a panorama the model sees, and in which order.

A strategy is one function from the settings to its shots: what a view shows (:class:`View`) and
how its picture is cut. A new strategy is one function and one line in :data:`STRATEGIES`. No image
is needed to know the views. Angles are nominal where the cut is made in whole pixels, and, for
cuts out of the panorama itself, those of a panorama twice as wide as high.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from panovlm.config.schema import ImageProcessing
from panovlm.errors import ConfigError, DataError
from panovlm.panorama import covers
from panovlm.panorama.cuts import Box, Letterbox, Perspective, Region
from panovlm.panorama.geometry import Camera, wrap_degrees
from panovlm.panorama.shots import WHOLE, Shot, Strategy, View, turn_count

CUBE_FACE = 256
"""Side of a cube face that goes through the tower's processor, in pixels."""
TILE = 672
"""Side of an any-resolution tile that goes through the tower's processor, in pixels."""
PITCH_LIMIT = 45.0
"""Highest and lowest latitude that the tiles of ``anyres_e2p`` reach, in degrees."""
RATIO_TOLERANCE = 0.1
"""Difference of width-to-height ratios up to which a sliding window is stretched, not cropped."""


def views_of(settings: ImageProcessing) -> tuple[View, ...]:
    """Return the views in the order of the model's pixels.

    Args:
        settings: With ``image_size`` unset, views count as square.

    Raises:
        ConfigError: The strategy cannot work with these settings.
    """
    return tuple(shot.view for shot in shots_of(settings))


def leading_global(settings: ImageProcessing) -> bool:
    """Tell whether the first view shows the whole panorama and other views follow it.

    False for ``resize``: its only view shows the whole panorama, but there is nothing to stand
    apart from, so its tokens are positioned like those of any other view.
    """
    views = views_of(settings)
    return len(views) > 1 and views[0].is_global


def shots_of(settings: ImageProcessing) -> tuple[Shot, ...]:
    """Return the views together with the cuts that make their pictures; see :func:`views_of`."""
    return STRATEGIES[settings.crop_strategy](settings, settings.image_size or (1, 1))


def e2p(settings: ImageProcessing, size: tuple[int, int]) -> tuple[Shot, ...]:
    """Perspective views around the horizon from yaw 0 eastward; the middle 90 % of rows stays."""
    stride = settings.fov_deg * (1 - settings.overlap_ratio)
    return tuple(
        _perspective(index * stride, settings.fov_deg, size, kept_rows=0.9)
        for index in range(turn_count(settings))
    )


def sliding_window(settings: ImageProcessing, size: tuple[int, int]) -> tuple[Shot, ...]:
    """Slices of the panorama from its left edge eastward, without its top and bottom twelfth.

    A slice whose width-to-height ratio differs from that of a view by more than 0.1 is cropped to
    it about its centre.
    """
    fov, kept, target = settings.fov_deg, 180 * 10 / 12, size[1] / size[0]
    hfov, vfov = fov, kept
    if abs(fov / kept - target) > RATIO_TOLERANCE:
        hfov, vfov = min(fov, kept * target), min(kept, fov / target)
    stride = fov * (1 - settings.overlap_ratio)
    return tuple(
        Shot(
            View(wrap_degrees(index * stride + fov / 2 - 180), 0.0, hfov, vfov),
            Region(partial(_window, index, fov, settings.overlap_ratio, target)),
        )
        for index in range(turn_count(settings))
    )


def cubemap(settings: ImageProcessing, size: tuple[int, int]) -> tuple[Shot, ...]:
    """The four side faces of a cube: front, right, back, left."""
    face = CUBE_FACE if settings.use_vision_processor else size[1]
    return tuple(_perspective(yaw, 90.0, (face, face)) for yaw in (0.0, 90.0, 180.0, 270.0))


def resize(_settings: ImageProcessing, _size: tuple[int, int]) -> tuple[Shot, ...]:
    """The whole panorama as the only view."""
    return (_whole(),)


def anyres(settings: ImageProcessing, size: tuple[int, int]) -> tuple[Shot, ...]:
    """The whole panorama; slices of its middle half; slices of full height; perspective views.

    Through the tower's processor go the whole panorama and the slices of the middle half only.
    """
    count = min(6, _patches(settings) // 2)
    middle = [_cell(count, column, 90.0, _middle_slice) for column in range(count)]
    if settings.use_vision_processor:
        return _whole(), *middle
    full = [_cell(count, column, 180.0, _full_slice) for column in range(count)]
    rest = settings.anyres_max_patches - 2 * count
    yaws = np.linspace(0, 315, rest)  # eight of them are 45 degrees apart
    views = [_perspective(float(yaw), settings.fov_deg, size, kept_rows=0.8) for yaw in yaws]
    return _whole(), *middle, *full, *views


def anyres_max(settings: ImageProcessing, size: tuple[int, int]) -> tuple[Shot, ...]:
    """The whole panorama; its cells in a grid, row by row; perspective views all around."""
    columns = min(6, _patches(settings) // 2)
    rows = min(3, settings.anyres_max_patches // columns)
    cells = [
        Shot(
            View(
                yaw=(column + 0.5) * 360 / columns - 180,
                pitch=90 - (row + 0.5) * 180 / rows,
                hfov=360 / columns,
                vfov=180 / rows,
            ),
            Region(partial(_grid_cell, rows, columns, row, column)),
        )
        for row in range(rows)
        for column in range(columns)
    ]
    rest = settings.anyres_max_patches - rows * columns
    views = [_perspective(i * 360 / rest, settings.fov_deg, size) for i in range(rest)]
    return _whole(), *cells, *views


def anyres_e2p(settings: ImageProcessing, size: tuple[int, int]) -> tuple[Shot, ...]:
    """The letterboxed panorama; perspective tiles at even yaw steps, row by row from the lowest.

    Pictures for the tower's processor have the sizes of the original system (672 for tiles,
    ``anyres_patch_size`` for the panorama); otherwise they are made at once as large as the tower
    sees them, without aliasing.
    """
    fov = settings.fov_deg
    if fov > 2 * PITCH_LIMIT:
        raise ConfigError(
            f"image_processing.fov_deg is {fov:g}, but the tiles of anyres_e2p lie between pitch "
            f"-{PITCH_LIMIT:g} and {PITCH_LIMIT:g}: use at most {2 * PITCH_LIMIT:g}, or another "
            "crop_strategy"
        )
    direct = not settings.use_vision_processor
    tile = size if direct else (TILE, TILE)
    side = settings.anyres_patch_size
    yaws = turn_count(settings)
    step = fov * (1 - settings.overlap_ratio)
    pitches = math.floor((2 * PITCH_LIMIT - fov) / step + 1e-9) + 1
    tiles = [
        Shot(
            View(yaw, pitch, fov, fov),
            Perspective(Camera(yaw, pitch, fov, fov), tile, antialias=direct),
        )
        for pitch in (fov / 2 - PITCH_LIMIT + row * step for row in range(pitches))
        for yaw in (wrap_degrees(index * 360 / yaws) for index in range(yaws))
    ]
    return Shot(WHOLE, Letterbox(size if direct else (side, side), quick=direct)), *tiles


STRATEGIES: dict[str, Strategy] = {
    "e2p": e2p,
    "sliding_window": sliding_window,
    "cubemap": cubemap,
    "resize": resize,
    "anyres": anyres,
    "anyres_max": anyres_max,
    "anyres_e2p": anyres_e2p,
    "e2p_sphere": covers.e2p_sphere,
    "cubemap6": covers.cubemap6,
    "icosahedral": covers.icosahedral,
    "erp": covers.erp,
}
"""Every crop strategy by its name in the settings."""


SLICED = frozenset({"sliding_window", "anyres", "anyres_max"})
"""Strategies that cut slices out of the panorama, rounded to whole pixels of it."""


def _patches(settings: ImageProcessing) -> int:
    """Return the number of patches of the any-resolution strategies: two at least."""
    if settings.anyres_max_patches < 2:
        raise ConfigError(
            f"image_processing.anyres_max_patches is {settings.anyres_max_patches}; "
            f"crop_strategy {settings.crop_strategy} needs at least 2"
        )
    return settings.anyres_max_patches


def _perspective(yaw: float, fov: float, size: tuple[int, int], kept_rows: float = 1.0) -> Shot:
    """Return a view on the horizon, as wide as high; ``yaw`` is brought into (-180, 180]."""
    yaw = 180 - (180 - yaw) % 360
    vfov = math.degrees(2 * math.atan(kept_rows * math.tan(math.radians(fov / 2))))
    return Shot(
        View(yaw, 0.0, fov, vfov if kept_rows < 1 else fov),
        Perspective(Camera(yaw, 0.0, fov, fov), size, kept_rows),
    )


def _whole() -> Shot:
    """Return the whole panorama, stretched to the size of a view."""
    return Shot(WHOLE, Region(lambda width, height: Box(0, 0, width, height)))


def _cell(count: int, column: int, vfov: float, box: Callable[[int, int, int, int], Box]) -> Shot:
    """Return one of ``count`` slices side by side."""
    yaw = (column + 0.5) * 360 / count - 180
    return Shot(View(yaw, 0.0, 360 / count, vfov), Region(partial(box, count, column)))


def _middle_slice(count: int, column: int, width: int, height: int) -> Box:
    """Return a slice of the middle half of the height."""
    left, _, right, _ = _full_slice(count, column, width, height)
    return Box(left, height // 2 - height // 4, right, height // 2 + height // 4)


def _full_slice(count: int, column: int, width: int, height: int) -> Box:
    """Return a slice of the full height."""
    return Box(int(column * (width / count)), 0, int((column + 1) * (width / count)), height)


def _grid_cell(rows: int, columns: int, row: int, column: int, width: int, height: int) -> Box:
    """Return one of equal cells; what is left over at the right and bottom belongs to none."""
    w, h = width // columns, height // rows
    return Box(column * w, row * h, (column + 1) * w, (row + 1) * h)


def _window(index: int, fov: float, overlap: float, target: float, width: int, height: int) -> Box:
    """Return a slice of the sliding window, cropped to the ``target`` width-to-height ratio."""
    wide = int(width * fov / 360)
    step = int(wide * (1 - overlap))
    if step == 0:
        raise DataError(
            f"a panorama {width} pixels wide is too small for sliding windows of {fov:g} degrees "
            f"with overlap_ratio {overlap:g}: neighbours would be less than one pixel apart"
        )
    left, top = index * step, height // 12
    high = height - 2 * top
    if abs(wide / high - target) <= RATIO_TOLERANCE:
        return Box(left, top, left + wide, top + high)
    kept_wide = max(min(wide, int(high * target)), 1)
    kept_high = max(min(high, int(wide / target)), 1)
    left += (wide - kept_wide) // 2
    top += (high - kept_high) // 2
    return Box(left, top, left + kept_wide, top + kept_high)
