"""The kinds of pictures that crop strategies cut out of a panorama, and how they are cut."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panovlm.panorama.geometry import Camera
from panovlm.panorama.projection import project, shrink

Pixels = NDArray[np.uint8]
"""One picture, uint8 [h, w, 3]."""


class Box(NamedTuple):
    """Pixels [top, bottom) x [left, right) of a panorama, at most as wide as it.

    Columns past its right edge are those at its left edge.
    """

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Perspective:
    """A pinhole view, of which a middle part of the rows may be kept.

    Attributes:
        camera: Where it looks; the field of view is that of the rendered picture.
        size: (height, width) in which it is rendered.
        kept_rows: Fraction of the rows that stays, in the middle.
        antialias: Average over pixel areas instead of reading points.
    """

    camera: Camera
    size: tuple[int, int]
    kept_rows: float = 1.0
    antialias: bool = False

    @property
    def margin(self) -> int:
        """Rows dropped above, and as many below.

        The original system rounds in just this order: 240 rows lose 11 on each side, not 12.
        """
        return int(self.size[0] * (1 - self.kept_rows) / 2)

    def trim(self, picture: Pixels) -> Pixels:
        """Drop the rows above and below the kept part."""
        return picture[self.margin : self.size[0] - self.margin]


@dataclass(frozen=True)
class Region:
    """A rectangle of the panorama itself.

    Attributes:
        box: Function of the panorama's (width, height) in pixels.
    """

    box: Callable[[int, int], Box]

    def take(self, erp: Pixels) -> Pixels:
        """Cut the rectangle out of a panorama [H, W, 3]."""
        height, width = erp.shape[:2]
        left, top, right, bottom = self.box(width, height)
        rows = erp[top:bottom]
        if right <= width:
            return rows[:, left:right]
        return np.concatenate(
            [rows[:, left:width], rows[:, max(left - width, 0) : right - width]], 1
        )


@dataclass(frozen=True)
class Letterbox:
    """The whole panorama, fitted into a rectangle with black bars around it.

    Attributes:
        size: (height, width) of the rectangle.
        quick: Average areas of a much larger panorama first; else bicubic in one step.
        areas: Average areas only.
    """

    size: tuple[int, int]
    quick: bool = False
    areas: bool = False

    def picture(self, panorama: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return where a panorama of (height, width) goes: top, left, height, width in pixels."""
        longest = max(panorama)
        height = max(round(self.size[0] * panorama[0] / longest), 1)
        width = max(round(self.size[1] * panorama[1] / longest), 1)
        return (self.size[0] - height) // 2, (self.size[1] - width) // 2, height, width

    def take(self, erp: Pixels) -> Pixels:
        """Fit a panorama [H, W, 3] into the rectangle."""
        top, left, height, width = self.picture((erp.shape[0], erp.shape[1]))
        if self.areas:
            fitted = resize_by_areas(erp, (height, width))
        else:
            if self.quick:
                erp = shrink(erp, erp.shape[1] / width, rest=4)
            fitted = resize(erp, (height, width), Image.Resampling.BICUBIC)
        picture = np.zeros((*self.size, 3), np.uint8)
        picture[top : top + height, left : left + width] = fitted
        return picture


@dataclass(frozen=True)
class Panorama:
    """The whole panorama, resized as the closed sphere that it is.

    The filter goes on over the seam and over the poles, where an ordinary one would take the edge
    of the picture for the edge of the world.

    Attributes:
        size: (height, width) of the picture; unset as long as only the geometry is asked for.
    """

    size: tuple[int, int] | None

    def take(self, erp: Pixels) -> Pixels:
        """Resize a panorama [H, W, 3] (Lanczos)."""
        if self.size is None or erp.shape[:2] == self.size:
            return erp
        height, width = erp.shape[:2]
        margin = _lanczos_reach(height, self.size[0]), _lanczos_reach(width, self.size[1])
        around = np.concatenate(
            [
                np.roll(erp[: margin[0]][::-1], width // 2, axis=1),
                erp,
                np.roll(erp[height - margin[0] :][::-1], width // 2, axis=1),
            ]
        )
        around = np.pad(around, ((0, 0), (margin[1], margin[1]), (0, 0)), mode="wrap")
        box = (margin[1], margin[0], margin[1] + width, margin[0] + height)
        image = Image.fromarray(around)
        target = (self.size[1], self.size[0])
        return np.asarray(image.resize(target, Image.Resampling.LANCZOS, box=box))


Cut = Perspective | Region | Letterbox | Panorama


def take_all(erp: Pixels, cuts: Sequence[Cut]) -> list[Pixels]:
    """Cut all pictures out of a panorama [H, W, 3]; perspective ones are projected together."""
    groups: dict[tuple[tuple[int, int], bool], list[Camera]] = defaultdict(list)
    for cut in cuts:
        if isinstance(cut, Perspective):
            groups[cut.size, cut.antialias].append(cut.camera)
    rendered = {
        key: iter(project(erp, tuple(cameras), key[0], antialias=key[1]))
        for key, cameras in groups.items()
    }
    return [
        cut.trim(next(rendered[cut.size, cut.antialias]))
        if isinstance(cut, Perspective)
        else cut.take(erp)
        for cut in cuts
    ]


def _lanczos_reach(given: int, wanted: int) -> int:
    """Return how many pixels beyond an edge the filter reads, at most a whole axis."""
    return min(math.ceil(3 * max(given / wanted, 1)) + 1, given)


def resize(picture: Pixels, size: tuple[int, int], resample: Image.Resampling) -> Pixels:
    """Resize a picture to (height, width) with one of Pillow's filters."""
    if picture.shape[:2] == size:
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture))
    height, width = size
    return np.asarray(image.resize((width, height), resample))


def resize_by_areas(picture: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize a picture to (height, width): mean over areas along sides that shrink, else cubic."""
    resized: NDArray[Any] = picture
    height, width = min(picture.shape[0], size[0]), min(picture.shape[1], size[1])
    if picture.shape[:2] != (height, width):
        resized = cv2.resize(resized, (width, height), interpolation=cv2.INTER_AREA)
    if (height, width) != size:
        resized = cv2.resize(resized, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return resized
