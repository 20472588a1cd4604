"""Stitching on the sphere: one token for every direction that the views show.

The sphere is divided into cells of about equal size: rows of equal height, each with as many cells
as its circle is long. What a cell becomes is read, between the nearest four tokens, in the one view
whose centre is nearest to the cell. So a direction that several views show appears once, one that
any view shows appears, and the closed loop has no beginning and no end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from panovlm.models.vision.directions import TokenRays
from panovlm.panorama.lens import directions_of
from panovlm.panorama.sphere import SphereViews, symmetry

Doubles = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
WESTWARD = 1e-9
"""What decides between two views whose centres are equally near: the one to the west is taken, so
that a turned panorama is cut at the turned places."""


@dataclass(frozen=True)
class Canvas:
    """How a strip of T tokens is read from the tokens of all tiles.

    Attributes:
        directions: unit directions ``[T, 3]``, from the highest row down, each row eastward from
            the panorama's left edge.
        view: the tile that each is read from, ``[T]``.
        tokens: four tokens for each, ``[T, 4]``, counted over all tiles ``[V · rows · columns]``.
        weights: their shares ``[T, 4]``, which add up to 1.
        rows: how many tokens every row has; only rows that the tiles show.
    """

    directions: Doubles
    view: Whole
    tokens: Whole
    weights: Doubles
    rows: tuple[int, ...]


@lru_cache(maxsize=16)
def canvas(rays: TokenRays) -> Canvas:
    """Return how the tokens of all tiles become one strip; do not modify it."""
    sphere, grid = rays.sphere, rays.grid
    finest = min(view.vfov for view in sphere.views) / grid.rows
    cells, row = _cells(max(round(180 / finest), 1), symmetry(sphere.views))
    view = _nearest(sphere, cells, rays.read)
    seen = view >= 0
    cells, view, row = cells[seen], view[seen], row[seen]
    tokens = np.zeros((len(cells), 4), np.int64)
    weights = np.zeros((len(cells), 4))
    for number, lens in enumerate(sphere.lenses):
        mine = view == number
        place = lens.places(cells[mine])
        columns = _between(place.across / rays.read[1], grid.columns, closed=lens.closed)
        lines = _between(place.down / rays.read[0], grid.rows, closed=False)
        for corner in range(4):
            line, share_down = lines[corner // 2]
            column, share_across = columns[corner % 2]
            tokens[mine, corner] = (number * grid.rows + line) * grid.columns + column
            weights[mine, corner] = share_down * share_across
    counts = np.unique(row, return_counts=True)[1]
    return Canvas(cells, view, tokens, weights, tuple(int(count) for count in counts))


def _cells(rows: int, turns: int) -> tuple[Doubles, Whole]:
    """Return the directions of the cells' centres ``[n, 3]`` and their rows ``[n]``.

    Args:
        rows: rows from pole to pole.
        turns: every row has a multiple of so many cells, so that a turn by a view's step takes
            cells to cells.
    """
    found: list[Doubles] = []
    for row in range(rows):
        latitude = (0.5 - (row + 0.5) / rows) * np.pi
        count = turns * max(round(2 * rows * np.cos(latitude) / turns), 1)
        longitude = ((np.arange(count) + 0.5) / count - 0.5) * 2 * np.pi
        found.append(directions_of(longitude, np.full(count, latitude)))
    row_of = np.repeat(np.arange(rows), [len(cells) for cells in found])
    return np.concatenate(found), row_of


def _nearest(sphere: SphereViews, cells: Doubles, read: tuple[float, float]) -> Whole:
    """Return for every cell the view that shows it with the nearest centre, -1 without any."""
    nearness = np.full((len(sphere.views), len(cells)), -np.inf)
    yaw = np.arctan2(cells[:, 0], cells[:, 2])
    for number, (view, lens) in enumerate(zip(sphere.views, sphere.lenses, strict=True)):
        place = lens.places(cells)
        shown = place.inside & (place.across <= read[1]) & (place.down <= read[0])
        west = (np.sin(yaw - np.deg2rad(view.yaw)) > 0) & (abs(view.pitch) < 90)
        near = cells @ sphere.centres[number] + WESTWARD * west
        nearness[number] = np.where(shown, near, -np.inf)
    return np.where(np.isfinite(nearness).any(axis=0), nearness.argmax(axis=0), -1)


def _between(share: Doubles, count: int, *, closed: bool) -> list[tuple[Whole, Doubles]]:
    """Return the two cells of an axis on whose centres' line a place lies, with their shares.

    Beyond the outermost centres the outermost cell counts alone, unless the axis is closed.
    """
    position = share * count - 0.5
    if not closed:
        position = np.clip(position, 0, count - 1)
    lower = np.floor(position).astype(np.int64)
    above = position - lower
    upper = (lower + 1) % count if closed else np.minimum(lower + 1, count - 1)
    return [(lower % count, 1 - above), (upper, above)]
