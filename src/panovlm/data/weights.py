"""How often the items of a dataset are taken in an epoch.

An epoch holds every item as often as its weight says: of n items of weight w it takes ``n w`` (to
the nearest whole number, at least one), each ``floor(w)`` times and a random choice of them once
more. So all items of one weight are taken equally often in the long run, an epoch always has the
same length, and its content follows from seed and epoch.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import torch


def epoch_length(weights: Sequence[float]) -> int:
    """Return how many items an epoch takes."""
    return sum(_taken(count, weight) for weight, count in Counter(weights).items())


def draw_repeats(weights: Sequence[float], generator: torch.Generator) -> list[int]:
    """Draw how often each item is taken in one epoch; together :func:`epoch_length` times."""
    repeats = [math.floor(weight) for weight in weights]
    for weight in sorted(set(weights)):
        items = [number for number, own in enumerate(weights) if own == weight]
        extra = _taken(len(items), weight) - math.floor(weight) * len(items)
        for place in torch.randperm(len(items), generator=generator)[:extra].tolist():
            repeats[items[place]] += 1
    return repeats


def digest(weights: Sequence[float]) -> int:
    """Return a number that tells these weights from others, in this order."""
    text = ",".join(map(repr, weights)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big")


def _taken(count: int, weight: float) -> int:
    return max(1, round(count * weight))
