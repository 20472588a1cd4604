"""Differences between models that were asked the same questions, and what chance can do to them.

Chance comes in twice. Other test panoramas would have been answered otherwise: answers to the same
question are compared, and those about one panorama go together. And another training of the same
settings, from other initial weights and with the data in another order, gives another model: how
far the trainings of one configuration lie apart tells how much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A value with its variance and the degrees of freedom that this is known with."""

    value: float
    variance: float
    freedom: float

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return the interval by Student's distribution."""
        half = student(0.5 + confidence / 2, self.freedom) * math.sqrt(self.variance)
        return self.value - half, self.value + half


def right(trainings: Sequence[str]) -> Doubles:
    """Return the share of a cell's trainings that answered each question right, [questions]."""
    return np.array([[int(mark) for mark in marks] for marks in trainings], float).mean(0)


def paired_difference(cell: Doubles, base: Doubles, panoramas: Sequence[int]) -> Estimate | None:
    """Estimate how much more a cell answers right than the base, over the choice of panoramas.

    The variance is that of a mean of clusters (Liang and Zeger, Biometrika 1986) with the factor
    for few of them; where every panorama has one question it is that of the paired t-test.

    Args:
        cell: share of right answers to each question, [questions].
        base: the same of the base.
        panoramas: number of each question's panorama.

    Returns:
        The difference, in shares; None if there are no two panoramas.
    """
    difference = cell - base
    mean = float(difference.mean())
    _, cluster = np.unique(np.asarray(panoramas), return_inverse=True)
    sums = np.bincount(cluster, weights=difference - mean)
    count = len(sums)
    if count < 2:
        return None
    variance = count / (count - 1) * float((sums**2).sum()) / len(difference) ** 2
    return Estimate(mean, variance, count - 1)


def training_variance(accuracies: Sequence[float]) -> float | None:
    """Return the variance between trainings of one configuration; None if there are no two."""
    return float(np.var(accuracies, ddof=1)) if len(accuracies) > 1 else None


def with_training(
    difference: Estimate, variance: float, trainings: tuple[int, int, int]
) -> Estimate:
    """Add the luck of training to a difference.

    Degrees of freedom are those of Welch and Satterthwaite (Biometrics Bulletin 1946).

    Args:
        difference: over the choice of panoramas.
        variance: between trainings of one configuration, taken to be the same for all.
        trainings: how many trainings of the cell, of the base, and behind ``variance``.
    """
    ours, others, known = trainings
    luck = variance * (1 / ours + 1 / others)
    total = difference.variance + luck
    if total == 0:
        return difference
    freedom = total**2 / (difference.variance**2 / difference.freedom + luck**2 / (known - 1))
    return Estimate(difference.value, total, freedom)


@lru_cache(maxsize=256)
def student(probability: float, freedom: float) -> float:
    """Return the quantile of Student's distribution.

    With t = sqrt(freedom) tan(a) the density becomes a power of the cosine, which is integrated
    by Gauss and Legendre; the quantile is found by halving.

    Args:
        probability: within [0.5, 1).
        freedom: degrees of freedom, at least 1; need not be whole.
    """
    nodes, weights = np.polynomial.legendre.leggauss(60)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)

    def below(angle: float) -> float:
        cosines = np.cos(angle * (nodes + 1) / 2)
        return 0.5 + scale * angle / 2 * float((weights * cosines ** (freedom - 1)).sum())

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < probability else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)
