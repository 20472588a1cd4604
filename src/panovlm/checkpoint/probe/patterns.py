"""The fixed inputs of a probe, and the few numbers kept of what comes of them.

All of it is integer arithmetic: the same on every machine, and no random generator is touched.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod, sqrt

import numpy as np
import numpy.typing as npt

from panovlm.checkpoint.probe.record import Sketch

Array = npt.NDArray[np.float64]
MARKS = 8
DIGITS = 9


def picture(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return a picture ``[height, width, 3]`` with coarse and fine structure in every direction."""
    y, x, c = np.ogrid[:height, :width, :3]
    waves = 3 * x * x + 5 * y * y + 7 * x * y + 4001 * c * (x + 2 * y)
    return (waves // 64 % 256).astype(np.uint8)


def noise(*shape: int) -> npt.NDArray[np.float32]:
    """Return values without structure, evenly spread between -1.75 and 1.75 (variance about 1)."""
    levels = _hash(np.arange(prod(shape), dtype=np.uint64)) >> np.uint64(16)
    return (levels.astype(np.float32) / 32767.5 * 1.75 - 1.75).reshape(shape)


def text_ids(count: int, rows: int, avoid: int | None) -> tuple[int, ...]:
    """Return token ids below ``rows``, without the vision placeholder ``avoid`` if possible."""
    known = [number for number in range(rows) if number != avoid] or [0]
    return tuple(known[7919 * (index + 1) % len(known)] for index in range(count))


def sketch(values: Array) -> Sketch:
    """Return the numbers that are kept of an array of float64."""
    if not np.isfinite(values).all():
        return Sketch(shape=values.shape, finite=False)
    flat = values.reshape(-1)
    count = max(flat.size, 1)
    return Sketch(
        shape=values.shape,
        mean=_short(float(flat.sum()) / count),
        rms=_short(sqrt(float(flat @ flat) / count)),
        marks=tuple(_short(float(sign @ flat) / sqrt(count)) for sign in _signs(flat.size)),
    )


def _short(value: float) -> float:
    """Leave out digits that float32 does not have."""
    return float(f"{value:.{DIGITS}g}")


@lru_cache(maxsize=16)
def _signs(count: int) -> npt.NDArray[np.int8]:
    """Return ``[MARKS, count]`` of 1 and -1."""
    numbers = np.arange(count, dtype=np.uint64)
    bits = [_hash(numbers + np.uint64(mark << 32)) & np.uint64(1) for mark in range(MARKS)]
    return np.stack(bits).astype(np.int8) * 2 - 1


def _hash(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return 32 well-mixed bits of each number (the finaliser of splitmix64)."""
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)
