from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest

from panovlm.evaluation.answers import Answer, Question
from panovlm.evaluation.metrics import METRICS, accuracy, is_correct, rouge_l, score_answers
from panovlm.evaluation.metrics.scores import Measurement, NotComputed, Score, mean_score


def _answer(
    number: int,
    prediction: str | None,
    reference: str | None,
    groups: Mapping[str, str] | None = None,
) -> Answer:
    question = Question(str(number), "a.png", "What?", reference=reference, groups=groups or {})
    if prediction is None:
        return Answer.failed(question, "a.png cannot be read")
    return Answer.generated(question, prediction)


_ANSWERS = [
    _answer(0, "Red.", "red", {"kind": "colour", "seam": "no"}),
    _answer(1, "Assistant: two", "two", {"kind": "count", "seam": "yes"}),
    _answer(2, "", "blue", {"kind": "colour", "seam": "no"}),
    _answer(3, None, "three", {"kind": "count", "seam": "no"}),
    _answer(4, "green", None, {"kind": "colour"}),
]


def test_failed_and_unreferenced_samples_are_counted_and_never_scored() -> None:
    scores = score_answers(_ANSWERS, {"accuracy": accuracy, "rougeL": rouge_l})
    counts = (scores.total, scores.scored, scores.failed, scores.without_reference, scores.empty)
    assert counts == (5, 3, 1, 1, 1)
    for found in scores.metrics.values():
        assert (found.scored, found.total) == (3, 5)
        assert isinstance(found.result, Score)
        assert found.result.value == pytest.approx(2 / 3)


def test_accuracy_by_group() -> None:
    groups = score_answers(_ANSWERS, {}).groups
    assert list(groups) == ["kind", "seam"]
    colour, count = groups["kind"]["colour"], groups["kind"]["count"]
    assert (colour.scored, colour.total) == (2, 3)
    assert (count.scored, count.total) == (1, 2)
    assert isinstance(colour.result, Score)
    assert colour.result.value == 0.5
    assert isinstance(count.result, Score)
    assert count.result.value == 1
    assert (groups["seam"]["no"].scored, groups["seam"]["no"].total) == (2, 3)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([], "there is no sample"),
        ([_answer(0, None, "red")], "every sample failed"),
        ([_answer(0, "red", None), _answer(1, None, "red")], "no answered sample has a reference"),
    ],
)
def test_nothing_to_score_is_null_with_a_reason(answers: list[Answer], reason: str) -> None:
    scores = score_answers(answers).as_json()
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    for name in METRICS:
        assert scores[name] is None
        assert scores["not_computed"][name] == reason


def test_json_keeps_numbers_and_nulls_apart() -> None:
    def broken(predictions: object, references: object) -> NotComputed:
        return NotComputed("its package is missing")

    scores = score_answers(_ANSWERS, {"accuracy": accuracy, "meteor": broken}).as_json()
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["meteor"] is None
    assert scores["not_computed"] == {"meteor": "its package is missing"}
    assert scores["details"]["accuracy"]["scored"] == 3
    assert scores["details"]["accuracy"]["interval"][1] <= 1
    assert scores["details"]["meteor"] == {
        "value": None,
        "reason": "its package is missing",
        "scored": 3,
        "total": 5,
    }
    assert scores["samples"]["failed"] == 1


def test_spice_is_named_and_not_computed() -> None:
    spice = METRICS["spice"](["a"], ["a"])
    assert isinstance(spice, NotComputed)


def test_correctness_of_single_answers() -> None:
    assert [is_correct(answer) for answer in _ANSWERS] == [True, True, False, None, None]


def test_text_of_a_measurement() -> None:
    assert Measurement(Score(0.5, (0.25, 0.75)), 3, 4).text == "0.500 [0.250, 0.750], 3 of 4 scored"
    assert Measurement(NotComputed("no Java"), 0, 4).text == "not computed: no Java"


def test_bootstrap_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(5).uniform(0, 1, 400)
    found = mean_score(values)
    assert found.interval is not None
    half = 1.96 * values.std() / 20
    expected = (values.mean() - half, values.mean() + half)
    assert found.interval == pytest.approx(expected, abs=0.15 * half)


def test_one_sample_has_no_interval() -> None:
    assert mean_score(np.array([0.25])) == Score(0.25)
