"""Colour jitter of the views of a panorama."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

STRENGTH = 0.2
"""Brightness, contrast and saturation are each multiplied by a factor from 1 ± this."""

_LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the grey value (ITU-R BT.601)."""


class Tint(NamedTuple):
    """By what the colours of a panorama's views are multiplied."""

    brightness: float
    contrast: float
    saturation: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Tint:
        """Draw one by chance."""
        return cls(*rng.uniform(1 - STRENGTH, 1 + STRENGTH, 3).tolist())

    def matrix(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the matrix [3, 4] of views with this mean of red, green and blue."""
        brightness, contrast, saturation = self
        matrix = np.empty((3, 4))
        matrix[:, :3] = saturation * np.eye(3) + (1 - saturation) * _LUMA
        matrix[:, :3] *= contrast * brightness
        matrix[:, 3] = (1 - contrast) * (brightness * float(mean @ _LUMA))
        return matrix


def jitter(views: NDArray[np.uint8], tint: Tint) -> NDArray[np.uint8]:
    """Change brightness, contrast and saturation, the same for all views of a panorama.

    The three are affine in RGB, so that they are one matrix: with factors b, c, s, the grey mean m
    of all views, and the grey value g of a pixel x, first ``b x``, then ``c x + (1 - c) m``, then
    ``s x + (1 - s) g``. Hue stays, because answers name colours, and so does the place of every
    pixel, because answers name directions.

    Args:
        views: uint8 [V, h, w, 3], RGB.
        tint: The three factors.

    Returns:
        New views of the same shape, rounded and clipped to 0..255.
    """
    count, height, width, _ = views.shape
    stacked = views.reshape(count * height, width, 3)
    return (
        cv2.transform(stacked, tint.matrix(views.reshape(-1, 3).mean(0)))
        .reshape(views.shape)
        .astype(np.uint8, copy=False)
    )
