"""What a metric returns: a score, or the reason why there is none; and on how many samples.

A metric that cannot be computed is never shown as 0.0, which would be read as the worst result.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """A computed score.

    Attributes:
        value: 0..1, and 0..10 for CIDEr.
        interval: 95 % confidence interval, where there is one.
    """

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class NotComputed:
    """A score that could not be computed, and why."""

    reason: str


Result = Score | NotComputed


@dataclass(frozen=True)
class Measurement:
    """A result together with its coverage.

    Attributes:
        result: The score, or why there is none.
        scored: Samples that entered the score.
        total: Samples of the evaluation (or of the group), failed ones included.
    """

    result: Result
    scored: int
    total: int

    @property
    def text(self) -> str:
        """The measurement in one line, e.g. ``0.824 [0.805, 0.842], 1600 of 1600 scored``."""
        if isinstance(self.result, NotComputed):
            return f"not computed: {self.result.reason}"
        interval = self.result.interval
        spread = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        return f"{self.result.value:.3f}{spread}, {self.scored} of {self.total} scored"

    def as_json(self) -> dict[str, Any]:
        """The measurement as plain JSON values; no score is ``null`` with its reason beside it."""
        value: dict[str, Any] = {"scored": self.scored, "total": self.total}
        if isinstance(self.result, NotComputed):
            return {"value": None, "reason": self.result.reason, **value}
        interval = self.result.interval
        return {
            "value": self.result.value,
            "interval": list(interval) if interval else None,
        } | value


def package(module: str, name: str) -> ModuleType | NotComputed:
    """Import a scorer's module, or say which package is missing.

    Args:
        module: Dotted name to import.
        name: The package's name for pip.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        return NotComputed(f"{name} cannot be imported ({error}); pip install 'panovlm[eval]'")


def resamples(count: int) -> Iterator[NDArray[np.intp]]:
    """Draw the bootstrap's samples: ``RESAMPLES`` times ``count`` indices with replacement.

    The generator has a fixed seed: the same answers always give the same interval.
    """
    generator = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        yield generator.integers(0, count, count)


def percentile_interval(values: list[float]) -> tuple[float, float]:
    """Middle 95 % of bootstrapped values (Efron and Tibshirani 1993, section 13.3)."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def mean_score(values: NDArray[np.float64]) -> Score:
    """Mean of one value per sample, with its bootstrap interval (none for a single sample)."""
    value = float(values.mean())
    if len(values) == 1:
        return Score(value)
    means = [float(values[chosen].mean()) for chosen in resamples(len(values))]
    return Score(value, percentile_interval(means))
