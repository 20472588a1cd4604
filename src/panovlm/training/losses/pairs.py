"""Which tokens of two views show the same: by their columns, or by their true directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from panovlm.models.vision.directions import TokenRays
from panovlm.panorama.lens import Lens

Index = npt.NDArray[np.int64]
DIGITS = 9
"""Decimals of cosines that count: of tokens that are equally near the first one is taken."""
FEWEST = 2
"""Tokens that two views must have in common: one alone has no variance."""


@dataclass(frozen=True)
class ViewPair:
    """Tokens of two views that show the same, one to one.

    Attributes:
        first: number of one view.
        second: number of the other one.
        in_first: tokens of the first view, counted without those of no place.
        in_second: the token of the second view that belongs to each of them.
    """

    first: int
    second: int
    in_first: Index
    in_second: Index


Sides = tuple[Tensor, Tensor]
"""Tokens of two views that show the same, ``[B, L, D]`` each."""


def gather(views: Tensor, pairs: Sequence[ViewPair]) -> list[Sides]:
    """Return the tokens of every pair.

    Args:
        views: ``[B, V, S, D]``, without tokens of no place.
        pairs: which tokens belong together.
    """
    return [
        (
            views[:, pair.first, torch.from_numpy(pair.in_first).to(views.device)],
            views[:, pair.second, torch.from_numpy(pair.in_second).to(views.device)],
        )
        for pair in pairs
    ]


def column_pairs(num_views: int, rows: int, columns: int, overlap: float) -> tuple[ViewPair, ...]:
    """Pair the last columns of every view with the first of the next, around the ring.

    Args:
        num_views: views V.
        rows: rows of tokens of a view.
        columns: columns of tokens of a view.
        overlap: shared fraction; ``max(1, floor(columns · overlap))`` columns are paired.
    """
    shared = max(1, int(columns * overlap))
    tokens = np.arange(rows * columns).reshape(rows, columns)
    right, left = tokens[:, columns - shared :].reshape(-1), tokens[:, :shared].reshape(-1)
    return tuple(ViewPair(v, (v + 1) % num_views, right, left) for v in range(num_views))


@lru_cache(maxsize=16)
def direction_pairs(rays: TokenRays) -> tuple[ViewPair, ...]:
    """Pair tokens of any two views by their rays.

    Two tokens belong together if the ray of each hits the other's view, and each is the nearest
    one of its view to the other's ray. So every token has at most one partner in another view.

    Args:
        rays: where the tokens of all tiles look.

    Returns:
        Pairs of views in order, each with at least two pairs of tokens.
    """
    directions, lenses = rays.patches, rays.sphere.lenses
    found: list[ViewPair] = []
    for first in range(len(lenses)):
        for second in range(first + 1, len(lenses)):
            ones, others = directions[first], directions[second]
            here = _hits(lenses[second], ones, rays.read)
            there = _hits(lenses[first], others, rays.read)
            if min(here.sum(), there.sum()) < FEWEST:
                continue
            cosines = np.round(ones @ others.T, DIGITS)
            nearest, back = cosines.argmax(axis=1), cosines.argmax(axis=0)
            mutual = back[nearest] == np.arange(len(ones))
            chosen = np.flatnonzero(here & there[nearest] & mutual)
            if len(chosen) >= FEWEST:
                found.append(ViewPair(first, second, chosen, nearest[chosen]))
    return tuple(found)


def _hits(
    lens: Lens, directions: npt.NDArray[np.float64], read: tuple[float, float]
) -> npt.NDArray[np.bool_]:
    """Tell which directions lie in the part of a view that the tower reads."""
    place = lens.places(directions)
    return place.inside & (place.across <= read[1]) & (place.down <= read[0])
