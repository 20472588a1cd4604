"""Intervals against scipy, and against drawing panoramas again and again."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from panovlm.sweep.statistics import (
    paired_difference,
    right,
    student,
    training_variance,
    with_training,
)


@pytest.mark.parametrize("freedom", [1, 2, 2.7, 3, 9.5, 30, 249, 5000])
@pytest.mark.parametrize("probability", [0.6, 0.95, 0.975, 0.995])
def test_student(probability: float, freedom: float) -> None:
    expected = float(stats.t.ppf(probability, freedom))
    assert student(probability, freedom) == pytest.approx(expected, rel=1e-9)


def marks(seed: int, count: int, share: float) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) < share).astype(float)


def test_one_question_per_panorama_is_the_paired_t_test() -> None:
    cell, base = marks(0, 300, 0.7), marks(1, 300, 0.6)
    found = paired_difference(cell, base, range(300))
    assert found is not None
    expected = stats.ttest_rel(cell, base).confidence_interval(0.95)
    assert found.value == pytest.approx(cell.mean() - base.mean())
    assert found.interval() == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_questions_about_one_panorama_go_together() -> None:
    """Ten copies of every question know no more than one."""
    cell, base = marks(2, 100, 0.7), marks(3, 100, 0.6)
    once = paired_difference(cell, base, range(100))
    copies = paired_difference(cell.repeat(10), base.repeat(10), np.arange(100).repeat(10).tolist())
    assert once is not None and copies is not None
    assert copies.interval() == pytest.approx(once.interval(), rel=1e-9)


def test_as_wide_as_drawing_panoramas_again() -> None:
    generator = np.random.default_rng(4)
    sizes = generator.integers(1, 8, 200)
    panoramas = np.arange(200).repeat(sizes)
    easy = generator.random(200).repeat(sizes)  # what makes answers about one room alike
    cell = (generator.random(len(panoramas)) < 0.4 + 0.5 * easy).astype(float)
    base = (generator.random(len(panoramas)) < 0.7 - 0.4 * easy).astype(float)
    found = paired_difference(cell, base, panoramas.tolist())
    assert found is not None
    sums = np.bincount(panoramas, weights=cell - base)
    drawn = generator.integers(0, 200, (20_000, 200))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    assert math.sqrt(found.variance) == pytest.approx(float(means.std()), rel=0.03)
    assert found.interval() == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.005)


def test_one_panorama_tells_no_interval() -> None:
    assert paired_difference(marks(5, 4, 0.5), marks(6, 4, 0.5), [0, 0, 0, 0]) is None


def test_several_trainings_count_as_their_mean() -> None:
    assert right(["1100", "1010"]).tolist() == [1.0, 0.5, 0.5, 0.0]


def test_variance_between_trainings() -> None:
    assert training_variance([0.5, 0.6, 0.8]) == pytest.approx(np.var([0.5, 0.6, 0.8], ddof=1))
    assert training_variance([0.5]) is None


def test_luck_of_training_as_in_the_test_of_welch() -> None:
    """Two means of normal values with unequal variances are the same sum of two estimates."""
    a, b = np.random.default_rng(7).normal(1, 2, 12), np.random.default_rng(8).normal(0, 1, 5)
    first = paired_difference(a, np.zeros(12), range(12))
    assert first is not None
    found = with_training(first, float(np.var(b, ddof=1)) / 2, (5, 5, 5))
    test = stats.ttest_ind(a - 0, b - b.mean(), equal_var=False)
    assert found.freedom == pytest.approx(test.df)
    expected = test.confidence_interval(0.95)
    assert found.interval() == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_no_spread_at_all() -> None:
    same = paired_difference(np.ones(5), np.ones(5), range(5))
    assert same is not None
    assert with_training(same, 0.0, (1, 2, 2)).interval() == (0.0, 0.0)
