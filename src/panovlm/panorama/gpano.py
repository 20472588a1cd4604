"""Pictures of a part of the panorama, by the GPano metadata (XMP) that cameras write."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from panovlm.config.image_input import ImageInput
from panovlm.panorama.partial import placed

_AREA = (
    "FullPanoWidthPixels",
    "FullPanoHeightPixels",
    "CroppedAreaImageWidthPixels",
    "CroppedAreaImageHeightPixels",
    "CroppedAreaLeftPixels",
    "CroppedAreaTopPixels",
)


def complete(pixels: NDArray[np.uint8], xmp: bytes) -> NDArray[np.uint8]:
    """Put a picture where its metadata says that it lies in the whole panorama; the rest is black.

    A picture that was made smaller or larger after its metadata were written keeps its proportions
    of the panorama.

    Args:
        pixels: [h, w, 3].
        xmp: Its XMP packet; one without GPano metadata leaves the picture as it is.

    Returns:
        Pixels [H, W, 3] of the whole panorama.

    Raises:
        ValueError: The metadata are of another projection, incomplete or impossible.
    """
    place = _place(xmp, (pixels.shape[0], pixels.shape[1]))
    if place is None:
        return pixels
    height, width, row, column = place
    return placed(pixels, (height, width), row, column)


def is_part(xmp: bytes, size: tuple[int, int]) -> bool:
    """Tell whether :func:`complete` adds something to a picture of (height, width) pixels.

    Raises:
        ValueError: As there.
    """
    return _place(xmp, size) is not None


def _place(xmp: bytes, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return height and width of the whole panorama, and the picture's first row and column in it.

    ``None``: the picture is the whole.
    """
    text = xmp.decode("utf-8", "replace")
    projection = _value(text, "ProjectionType")
    if projection not in (None, "equirectangular"):
        raise ValueError(f"its GPano metadata say {projection}, not equirectangular")
    stated = [_value(text, name) for name in _AREA]
    if not any(stated):
        return None
    missing = [name for name, value in zip(_AREA, stated, strict=True) if value is None]
    if missing:
        raise ValueError(f"its GPano metadata lack {', '.join(missing)}")
    full_width, full_height, width, height, left, top = (float(value or "nan") for value in stated)
    possible = 0 < width <= full_width - left and 0 < height <= full_height - top
    if not possible or left < 0 or top < 0:
        raise ValueError(
            f"its GPano metadata put {width:g} x {height:g} pixels at {left:g}, {top:g} of a "
            f"panorama of {full_width:g} x {full_height:g}"
        )
    scale = size[1] / width, size[0] / height
    full = round(full_height * scale[1]), round(full_width * scale[0])
    if full == size:
        return None
    column = min(round(left * scale[0]), full[1] - size[1])
    row = min(round(top * scale[1]), full[0] - size[0])
    return *full, row, column


def refuse_beside(xmp: bytes, declared: ImageInput) -> None:
    """Refuse metadata that say something of their own where the layout is declared.

    Raises:
        ValueError: The metadata give an extent, or call a cube's faces equirectangular.
    """
    text = xmp.decode("utf-8", "replace")
    whole = declared.layout != "erp" and _value(text, "ProjectionType") == "equirectangular"
    if whole or any(_value(text, name) is not None for name in _AREA):
        raise ValueError(
            f"{declared} is declared, but the picture has GPano metadata of its own, which may "
            "say otherwise; take one of the two away"
        )


def _value(text: str, name: str) -> str | None:
    """Return a GPano property, written as an attribute or as an element."""
    found = re.search(rf"GPano:{name}\s*(?:=\s*[\"']|>)\s*([^\"'<]*?)\s*[\"'<]", text)
    return found[1] if found else None
