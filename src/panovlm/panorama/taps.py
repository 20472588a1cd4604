"""Pillow's way to resize 8-bit pictures, for pictures that lie on a device.

Pillow goes along one axis and then along the other, with weights rounded to 22 bits, and rounds to
8 bits after each. Sums of such numbers are exact in 32 bits, so that whoever adds them up, in
whatever order, gets Pillow's pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from panovlm.errors import ConfigError

BITS = 22
"""Of a weight's fraction."""

Doubles = NDArray[np.float64]


class Pass(NamedTuple):
    """One way along an axis: what each of its new pixels is made of."""

    axis: int
    """-3: from row to row; -2: from column to column."""
    places: Tensor
    """int32 [taps, pixels], which of the given pixels; some are named with weight 0."""
    weights: Tensor
    """int32 [taps, pixels], in units of 2 ** -BITS."""


def passes_between(
    given: tuple[int, int], wanted: tuple[int, int], resample: Image.Resampling
) -> tuple[Pass, ...]:
    """Return how Pillow resizes pictures of ``given`` (height, width) to ``wanted``.

    Which axis comes first depends on the sizes and on Pillow's version, so Pillow is asked.

    Raises:
        ConfigError: The Pillow that is installed does it otherwise.
    """
    sides = zip((-3, -2), given, wanted, strict=True)
    found = [_pass(axis, old, new, resample) for axis, old, new in sides if old != new]
    noise = np.random.default_rng(0).integers(0, 256, (*given, 3), dtype=np.uint8)
    size = (wanted[1], wanted[0])
    expected = torch.from_numpy(np.array(Image.fromarray(noise).resize(size, resample)))
    for order in (found[::-1], found):
        if torch.equal(through(torch.from_numpy(noise), order), expected):
            return tuple(order)
    raise ConfigError(
        f"the installed Pillow {Image.__version__} resizes pictures otherwise than is known here, "
        "so that views cannot be made on a device: use views_on loader"
    )


def through(pictures: Tensor, passes: Sequence[Pass]) -> Tensor:
    """Resize uint8 pictures [..., h, w, C]."""
    for axis, places, weights in passes:
        tail = (1,) * (-1 - axis)
        total = torch.tensor(1 << (BITS - 1), dtype=torch.int32, device=pictures.device)
        for place, weight in zip(places, weights, strict=True):
            total = total + pictures.index_select(axis, place) * weight.view(-1, *tail)
        pictures = (total >> BITS).clamp_(0, 255).to(torch.uint8)
    return pictures


def _pass(axis: int, given: int, wanted: int, resample: Image.Resampling) -> Pass:
    reach, curve = FILTERS[resample]
    scale = given / wanted
    wide = max(scale, 1.0)
    centre = (np.arange(wanted) + 0.5) * scale
    first = np.maximum(np.trunc(centre - reach * wide + 0.5), 0)
    end = np.minimum(np.trunc(centre + reach * wide + 0.5), given)
    place = first + np.arange(2 * int(np.ceil(reach * wide)) + 1)[:, None]
    weight = np.where(place < end, curve((place - centre + 0.5) / wide), 0.0)
    weight /= weight.sum(axis=0)
    rounded = np.trunc(weight * 2**BITS + np.copysign(0.5, weight))
    place = np.minimum(place, given - 1)
    return Pass(axis, *(torch.from_numpy(part.astype(np.int32)) for part in (place, rounded)))


def _box(x: Doubles) -> Doubles:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _triangle(x: Doubles) -> Doubles:
    return np.maximum(1 - np.abs(x), 0.0)


def _hamming(x: Doubles) -> Doubles:
    return np.where(np.abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0.0)


def _cubic(x: Doubles) -> Doubles:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: Doubles) -> Doubles:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0.0)


FILTERS: Mapping[Image.Resampling, tuple[float, Callable[[Doubles], Doubles]]] = {
    Image.Resampling.BOX: (0.5, _box),
    Image.Resampling.BILINEAR: (1.0, _triangle),
    Image.Resampling.HAMMING: (1.0, _hamming),
    Image.Resampling.BICUBIC: (2.0, _cubic),
    Image.Resampling.LANCZOS: (3.0, _lanczos),
}
"""Half the width of every filter in pixels, and its curve."""
