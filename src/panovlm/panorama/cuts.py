"""The kinds of pictures that crop strategies cut out of a panorama, and how they are cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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

    def trim(self, picture: Pixels) -> Pixels:
        """Drop the rows above and below the kept part.

        The original system rounds in just this order: 240 rows lose 11 on each side, not 12.
        """
        margin = int(self.size[0] * (1 - self.kept_rows) / 2)
        return picture[margin : self.size[0] - margin]


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
    """

    size: tuple[int, int]
    quick: bool = False

    def take(self, erp: Pixels) -> Pixels:
        """Fit a panorama [H, W, 3] into the rectangle."""
        longest = max(erp.shape[:2])
        height = max(round(self.size[0] * erp.shape[0] / longest), 1)
        width = max(round(self.size[1] * erp.shape[1] / longest), 1)
        if self.quick:
            erp = shrink(erp, erp.shape[1] / width, rest=4)
        top, left = (self.size[0] - height) // 2, (self.size[1] - width) // 2
        picture = np.zeros((*self.size, 3), np.uint8)
        picture[top : top + height, left : left + width] = resize(
            erp, (height, width), Image.Resampling.BICUBIC
        )
        return picture


Cut = Perspective | Region | Letterbox


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


def resize(picture: Pixels, size: tuple[int, int], resample: Image.Resampling) -> Pixels:
    """Resize a picture to (height, width) with one of Pillow's filters."""
    if picture.shape[:2] == size:
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture))
    height, width = size
    return np.asarray(image.resize((width, height), resample))
