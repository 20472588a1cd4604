"""Where the tokens of a view lie: in rows and columns, some of them nowhere. No torch is needed."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

Grid = tuple[int, int]
"""(rows, columns) of a view's tokens, row-major."""


@dataclass(frozen=True)
class ViewGrid:
    """The tokens of one view as they leave the vision tower.

    Attributes:
        rows: rows of patches.
        columns: columns of patches.
        extra: tokens in front of the patches that show no place (class token, registers).
    """

    rows: int
    columns: int
    extra: int = 0

    @property
    def count(self) -> int:
        """All tokens S of the view."""
        return self.extra + self.rows * self.columns


def token_grid(count: int) -> Grid:
    """Return (rows, columns) of a view's ``count`` tokens where nothing but the count is known.

    A square if possible, else as many rows as the largest divisor up to the square root; a prime
    count is one row. A class token counts like any other: 50 tokens are 5 × 10.
    """
    rows = next(n for n in range(isqrt(count), 0, -1) if count % n == 0)
    return rows, count // rows
