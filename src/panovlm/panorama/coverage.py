"""How much of the sphere the views show, how often, and how finely."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from panovlm.config.schema import ImageProcessing
from panovlm.panorama.lens import Doubles, Lens, directions_of, unit
from panovlm.panorama.sphere import SphereViews

ROWS = 512
"""Rows of the directions that are looked at; each stands for an equal part of the sphere."""
NEAR = 1e-4
"""Distance in radians over which the fineness of a view is measured."""


@dataclass(frozen=True)
class Coverage:
    """What the tiles of a setting show; a leading view of the whole panorama is not counted.

    Attributes:
        seen: For every direction, by how many tiles it is shown.
        density: Pixels per degree of the finest tile that shows it, 0 where none does.
        latitude: Its latitude in degrees.
        overlapping: Pairs of tiles that show something in common.
        tiles: Number of tiles.
    """

    seen: Doubles
    density: Doubles
    latitude: Doubles
    overlapping: int
    tiles: int

    @property
    def share(self) -> float:
        """Part of the sphere that is shown, 0 to 1."""
        return float((self.seen > 0).mean())

    @property
    def twice(self) -> float:
        """Part of the sphere that two tiles or more show, 0 to 1."""
        return float((self.seen > 1).mean())

    @property
    def times(self) -> float:
        """How often a direction that is shown is shown, on average."""
        return float(self.seen.sum() / max((self.seen > 0).sum(), 1))

    @cached_property
    def densities(self) -> tuple[float, float, float]:
        """Pixels per degree of what is shown: lowest, median, highest."""
        shown = self.density[self.seen > 0]
        lowest, middle, highest = np.quantile(shown, (0.0, 0.5, 1.0))
        return float(lowest), float(middle), float(highest)

    @property
    def latitudes(self) -> tuple[float, float]:
        """Lowest and highest latitude up to which every direction is shown, in degrees.

        Equal where not even the horizon is shown whole.
        """
        missing = self.latitude[self.seen == 0]
        below, above = missing[missing < 0], missing[missing >= 0]
        low = float(below.max()) if len(below) else -90.0
        high = float(above.min()) if len(above) else 90.0
        return low, high


def coverage(settings: ImageProcessing) -> Coverage:
    """Measure what the tiles of a setting show.

    About half a million directions are looked at, spread evenly over the sphere, by the exact
    geometry of every tile.

    Raises:
        ConfigError: The strategy cannot work with these settings.
    """
    sphere = SphereViews.of(settings).tiles()
    directions, latitude = _even()
    seen, density = np.zeros(len(directions)), np.zeros(len(directions))
    size = settings.image_size or (1, 1)
    for lens in sphere.lenses:
        inside = np.flatnonzero(lens.places(directions).inside)
        seen[inside] += 1
        fineness = _density(lens, directions[inside], size)
        density[inside] = np.maximum(density[inside], fineness)
    pairs = int(np.triu(sphere.overlaps, 1).sum())
    return Coverage(seen, density, latitude, pairs, len(sphere.views))


def lines(found: Coverage) -> Iterator[str]:
    """Say it for people."""
    low, high = found.latitudes
    lowest, middle, highest = found.densities
    yield f"tiles: {found.tiles}, of which {found.overlapping} pairs overlap"
    yield (
        f"coverage: {found.share:.2%} of the sphere, {found.twice:.2%} more than once; what is "
        f"shown is shown {found.times:.2f} times"
    )
    yield f"nothing is missing between latitude {low:.1f} and {high:.1f}"
    yield f"density: {lowest:.2f} to {highest:.2f} pixels per degree, median {middle:.2f}"


def _even() -> tuple[Doubles, Doubles]:
    """Return directions [n, 3] spread evenly over the sphere, and their latitudes in degrees."""
    height = 1 - (2 * np.arange(ROWS) + 1) / ROWS  # sine of the latitude: rows of equal area
    longitude = ((np.arange(2 * ROWS) + 0.5) / (2 * ROWS) - 0.5) * 2 * np.pi
    latitude = np.repeat(np.arcsin(height), 2 * ROWS)
    return directions_of(np.tile(longitude, ROWS), latitude), np.rad2deg(latitude)


def _density(lens: Lens, directions: Doubles, size: tuple[int, int]) -> Doubles:
    """Return the pixels per degree of a view at directions: the root of those per square degree.

    The area that the picture makes of a small square of directions is measured on the picture.
    """
    side: Doubles = unit(np.cross(directions, np.eye(3)[np.abs(directions).argmin(axis=1)]))
    other: Doubles = np.asarray(np.cross(directions, side), np.float64)
    steps: list[tuple[Doubles, Doubles]] = []
    for way in (side, other):
        ends = [lens.places(directions + sign * NEAR * way) for sign in (-1, 1)]
        across = (ends[1].across - ends[0].across) * size[1]
        if lens.closed:  # over the seam the picture begins anew
            across = (across + size[1] / 2) % size[1] - size[1] / 2
        steps.append((across, (ends[1].down - ends[0].down) * size[0]))
    (ax, ay), (bx, by) = steps
    area = np.abs(ax * by - ay * bx) / (2 * NEAR) ** 2  # pixels per steradian
    return np.sqrt(area) * np.pi / 180
