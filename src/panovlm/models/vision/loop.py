"""Where the vision tokens of a panorama lie on its closed loop, for rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

AT_POLE = 1e-6
"""Horizontal length of a direction below which it has no yaw; 0 is taken."""


@dataclass(frozen=True)
class LoopPlaces:
    """The places of T vision tokens.

    Attributes:
        front: tokens in front that have no place on the loop (of a view of the whole panorama).
        back: how many tokens each of the others stands behind the beginning of its row, ``[T']``.
        turn: its yaw as a share of a whole turn, 0 to 1, ``[T']``.
        columns: tokens that a whole turn would have side by side, as densely as a view's.
    """

    front: int
    back: npt.NDArray[np.int64]
    turn: npt.NDArray[np.float64]
    columns: float

    @property
    def count(self) -> int:
        """Vision tokens T."""
        return self.front + len(self.turn)

    @classmethod
    def of(
        cls,
        front: int,
        rows: tuple[int, ...],
        directions: npt.NDArray[np.float64],
        columns: float,
    ) -> LoopPlaces:
        """Return the places of tokens that look in known directions.

        Args:
            front: tokens in front without place.
            rows: how many tokens each row of the strip has.
            directions: unit vectors ``[T', 3]``, row by row.
            columns: tokens of a whole turn.
        """
        across, ahead = directions[:, 0], directions[:, 2]
        yaw = np.where(np.hypot(across, ahead) > AT_POLE, np.arctan2(across, ahead), 0.0)
        back = np.concatenate([np.arange(row) for row in rows])
        return cls(front, back, yaw / (2 * np.pi) % 1, columns)
