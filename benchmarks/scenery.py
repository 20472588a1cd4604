"""A panorama with the edges and the spectrum of photographs, for measurements that need one.

It is made of leaves that lie over each other, small ones far more often than large ones, and of
noise with falling amplitudes, seen through a lens (the dead leaves model of Lee, Mumford and Huang,
2001).
"""

from __future__ import annotations

import cv2
import numpy as np

LEAVES = 400_000
LENS = 0.6
"""Blur in pixels."""


def scenery(width: int) -> np.ndarray:
    """Return a picture with the edges and the spectrum of photographs, closed over the seam."""
    picture = leaves(width) + 0.25 * (noise(width).astype(np.float32) - 128)
    around = cv2.copyMakeBorder(picture, 0, 0, 8, 8, cv2.BORDER_WRAP)
    seen = cv2.GaussianBlur(around, (0, 0), LENS)[:, 8:-8]
    return np.clip(seen, 0, 255).astype(np.uint8)


def leaves(width: int) -> np.ndarray:
    """Return discs over each other whose radii r have a density that falls with r ** -3."""
    rng = np.random.default_rng(0)
    at_random = rng.random(LEAVES)
    smallest, largest = width / 2048, width / 8
    radii = 1 / np.sqrt(at_random / largest**2 + (1 - at_random) / smallest**2)
    places = rng.uniform(0, (width, width // 2), (LEAVES, 2))
    colours = rng.normal(128, 50, (LEAVES, 1)) + rng.normal(0, 18, (LEAVES, 3))
    picture = np.full((width // 2, width, 3), 128, np.uint8)
    fixed = 16  # cv2 takes sixteenths of pixels
    for (x, y), radius, colour in zip(places, radii, np.clip(colours, 0, 255), strict=True):
        for turn in (-width, 0, width):
            if -radius <= x + turn <= width + radius:
                centre = (int((x + turn) * fixed), int(y * fixed))
                cv2.circle(picture, centre, int(radius * fixed), colour.tolist(), -1, cv2.LINE_8, 4)
    return picture


def noise(width: int) -> np.ndarray:
    """Return a picture whose amplitudes fall with the frequency, closed over the seam."""
    rng = np.random.default_rng(0)
    shape = (width // 2, width)
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    frequency[0, 0] = np.inf
    picture = np.empty((*shape, 3), np.float32)
    for channel in range(3):
        waves = np.fft.rfft2(rng.standard_normal(shape, np.float32)) / frequency
        field = np.fft.irfft2(waves, shape)
        picture[..., channel] = field / field.std()
    grey = picture.mean(axis=2, keepdims=True)
    return np.clip(128 + 45 * (grey + 0.3 * picture), 0, 255).astype(np.uint8)
