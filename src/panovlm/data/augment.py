"""Colour jitter of the views of a panorama."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

STRENGTH = 0.2
"""Brightness, contrast and saturation are each multiplied by a factor from 1 ± this."""

_LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the grey value (ITU-R BT.601)."""


def jitter(views: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change brightness, contrast and saturation, the same for all views of a panorama.

    The three are affine in RGB, so that they are one matrix: with factors b, c, s, the grey mean m
    of all views, and the grey value g of a pixel x, first ``b x``, then ``c x + (1 - c) m``, then
    ``s x + (1 - s) g``. Hue stays, because answers name colours, and so does the place of every
    pixel, because answers name directions.

    Args:
        views: uint8 [V, h, w, 3], RGB.
        rng: Source of the three factors.

    Returns:
        New views of the same shape, rounded and clipped to 0..255.
    """
    brightness, contrast, saturation = rng.uniform(1 - STRENGTH, 1 + STRENGTH, 3)
    grey_mean = brightness * float(views.reshape(-1, 3).mean(0) @ _LUMA)
    matrix = np.empty((3, 4))
    matrix[:, :3] = saturation * np.eye(3) + (1 - saturation) * _LUMA
    matrix[:, :3] *= contrast * brightness
    matrix[:, 3] = (1 - contrast) * grey_mean
    count, height, width, _ = views.shape
    stacked = views.reshape(count * height, width, 3)
    return cv2.transform(stacked, matrix).reshape(views.shape).astype(np.uint8, copy=False)
