"""How finely a panorama must be read for the views that are cut out of it.

Views much coarser than the panorama need not all of its pixels. A picture that is made smaller by
a power of two, averaging areas, gives the same views with less work, and a JPEG file need not even
be decoded beyond that (:func:`~panovlm.panorama.image.read_panorama`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from panovlm.panorama.cuts import Cut, Letterbox, Panorama, Perspective, Region
from panovlm.panorama.projection import density_of

Rendering = Literal["exact", "good", "fast"]

REST: Mapping[Rendering, float] = {"good": 2.0, "fast": 1.0}
"""How many pixels of the smaller panorama a pixel of a view has at least, along each axis."""


def rendered(cut: Cut, rendering: Rendering) -> Cut:
    """Return a cut as it is made with ``rendering``."""
    if rendering == "exact":
        return cut
    match cut:
        case Perspective():
            return replace(cut, antialias=rendering == "good")
        case Letterbox():
            return replace(cut, areas=True)
        case _:
            return cut


def density(panorama: tuple[int, int], cuts: Sequence[Cut], size: tuple[int, int]) -> float:
    """Return how many pixels of a panorama the finest view has per pixel, along its coarser axis.

    Args:
        panorama: (height, width) in pixels.
        cuts: The views.
        size: (height, width) of every view in pixels.
    """
    return min(_density(panorama, cut, size) for cut in cuts)


def _density(panorama: tuple[int, int], cut: Cut, size: tuple[int, int]) -> float:
    height, width = panorama
    match cut:
        case Perspective():
            return density_of(panorama, (cut.camera,), cut.size)
        case Region():
            box = cut.box(width, height)
            return min((box.bottom - box.top) / size[0], (box.right - box.left) / size[1])
        case Letterbox():
            _, _, *picture = cut.picture(panorama)
        case Panorama():
            picture = cut.size or size
    return min(height / picture[0], width / picture[1])
