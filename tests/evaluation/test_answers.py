from __future__ import annotations

import pytest

from panovlm.evaluation.answers import Answer, Question, groups_of, scorable

_QUESTION = Question("0", "a.png", "What?", reference="red")


@pytest.mark.parametrize(
    ("text", "prediction", "empty"),
    [(" red\n", "red", False), ("", "", True), (" \n", "", True), ("!!!", "!!!", False)],
)
def test_generated_text_is_stripped_and_nothing_is_made_up(
    text: str, prediction: str, empty: bool
) -> None:
    answer = Answer.generated(_QUESTION, text)
    assert (answer.prediction, answer.is_empty, answer.is_error) == (prediction, empty, False)


def test_a_failed_sample_is_an_error_and_has_no_text() -> None:
    answer = Answer.failed(_QUESTION, "a.png is missing")
    assert (answer.is_error, answer.is_empty, answer.reason) == (True, True, "a.png is missing")


@pytest.mark.parametrize(("prediction", "reason"), [(None, None), ("red", "failed")])
def test_an_answer_is_either_text_or_failure(prediction: str | None, reason: str | None) -> None:
    with pytest.raises(ValueError, match="sample 0"):
        Answer(_QUESTION, prediction, reason)


def test_only_answers_with_a_reference_can_be_scored() -> None:
    empty = Answer.generated(_QUESTION, "")
    answers = [
        empty,
        Answer.failed(_QUESTION, "broken"),
        Answer.generated(Question("1", "a.png", "What?"), "red"),
    ]
    assert scorable(answers) == [("", "red", empty)]


def test_groups_come_from_their_columns() -> None:
    assert groups_of({"kind": "colour", "seam": "", "url": "a.png"}) == {"kind": "colour"}
