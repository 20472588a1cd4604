from __future__ import annotations

from math import isclose, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.evaluation.metrics.accuracy import accuracy, is_match, wilson
from panovlm.evaluation.metrics.scores import NotComputed, Score


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("Red", "red", True),
        (" red.\n", "red", True),
        ("red .", "red", True),
        ("STRASSE", "straße", True),
        ("red..", "red", False),
        ("red!", "red", False),
        ("dark red", "red", False),
        ("", "red", False),
        ("3.5", "35", False),
    ],
)
def test_match_ignores_case_outer_space_and_one_final_full_stop(
    prediction: str, reference: str, same: bool
) -> None:
    assert is_match(prediction, reference) is same
    assert is_match(reference, prediction) is same


def test_wilson_equals_published_values() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
    for (hits, count), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0000, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(hits, count) == pytest.approx(expected, abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_are_the_proportions_the_score_test_just_accepts(
    counts: tuple[int, int],
) -> None:
    hits, count = counts
    low, high = wilson(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            distance = abs(hits / count - end) / sqrt(end * (1 - end) / count)
            assert isclose(distance, 1.959963984540054, rel_tol=1e-6)


def test_accuracy_counts_exact_matches() -> None:
    found = accuracy(["Red.", "blue", "two", ""], ["red", "green", "Two", "yes"])
    assert found == Score(0.5, wilson(2, 4))


def test_accuracy_of_nothing_is_not_zero() -> None:
    assert isinstance(accuracy([], []), NotComputed)
