"""Exact-match accuracy with its confidence interval."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

from panovlm.evaluation.metrics.scores import NotComputed, Result, Score


def normalise(text: str) -> str:
    """Drop what does not make an answer another one: case, outer white space, a final full stop."""
    return text.strip().removesuffix(".").rstrip().casefold()


def is_match(prediction: str, reference: str) -> bool:
    """Whether two answers are the same after :func:`normalise`."""
    return normalise(prediction) == normalise(reference)


def wilson(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion that holds for few samples and near 0 and 1 too.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Args:
        successes: 0..count.
        count: At least 1.
        confidence: Probability that the interval covers the true proportion, within (0, 1).

    Returns:
        Lower and upper end, within [0, 1].
    """
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    share = successes / count
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = sqrt(z2 * share * (1 - share) / count + (z2 / (2 * count)) ** 2) / (1 + z2 / count)
    # At a share of 0 or 1 an end is the share itself; rounding must not move it past it.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def accuracy(predictions: Sequence[str], references: Sequence[str]) -> Result:
    """Share of exact matches with its Wilson interval.

    Args:
        predictions: One text per sample.
        references: The expected texts, in the same order.
    """
    if not predictions:
        return NotComputed("no sample could be scored")
    hits = sum(is_match(*pair) for pair in zip(predictions, references, strict=True))
    return Score(hits / len(predictions), wilson(hits, len(predictions)))
