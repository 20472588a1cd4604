"""Pictures of a part of the panorama, put into their place in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from panovlm.config.image_input import ImageInput

LARGEST = 2**28
"""Most pixels of a whole panorama that is made of a part of it."""


def placed(
    pixels: NDArray[np.uint8], size: tuple[int, int], row: int, column: int
) -> NDArray[np.uint8]:
    """Put a picture [h, w, 3] into a black panorama of ``size`` (H, W).

    Args:
        pixels: The picture, no larger than the panorama.
        size: The panorama's height and width.
        row: Where its first row goes, so that the last one is inside.
        column: Where its first column goes; it may go on over the seam.

    Raises:
        ValueError: The panorama would be too large.
    """
    check_size(size)
    whole = np.zeros((*size, 3), np.uint8)
    whole[row : row + pixels.shape[0], : pixels.shape[1]] = pixels
    return np.roll(whole, column, axis=1)


def whole_of_part(pixels: NDArray[np.uint8], given: ImageInput) -> NDArray[np.uint8]:
    """Put a picture [h, w, 3] where its declared extent says; the rest is black.

    Raises:
        ValueError: The whole panorama would be too large.
    """
    height, width = pixels.shape[:2]
    size = whole_size(given, width, height)
    middle = (given.yaw / 360 + 0.5) * size[1], (0.5 - given.pitch / 180) * size[0]
    column = round(middle[0] - width / 2) % size[1]
    row = min(max(round(middle[1] - height / 2), 0), size[0] - height)
    return placed(pixels, size, row, column)


def whole_size(given: ImageInput, width: int, height: int) -> tuple[int, int]:
    """Return height and width of the panorama of which a picture of this size is a part.

    Raises:
        ValueError: It would be too large.
    """
    assert given.hfov is not None
    assert given.vfov is not None
    size = round(height * 180 / given.vfov), round(width * 360 / given.hfov)
    check_size(size)
    return size


def check_size(size: tuple[int, int]) -> None:
    """Refuse a panorama that would take too much memory."""
    if size[0] * size[1] > LARGEST:
        raise ValueError(f"its whole panorama would have {size[1]} x {size[0]} pixels")
