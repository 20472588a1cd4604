"""Descriptions do not count as right or wrong."""

from __future__ import annotations

from panovlm.evaluation.answers import Answer, Question
from panovlm.evaluation.metrics import accuracy, score_answers


def answer(number: int, kind: str, said: str, reference: str) -> Answer:
    question = Question(str(number), "a.jpg", "?", reference=reference, groups={"kind": kind})
    return Answer.generated(question, said)


def test_accuracy_leaves_captions_out() -> None:
    answers = [
        answer(0, "colour", "red", "red"),
        answer(1, "colour", "blue", "red"),
        answer(2, "caption", "A red cube.", "There is a red cube."),
    ]
    scores = score_answers(answers, {"accuracy": accuracy})
    measured = scores.metrics["accuracy"]
    assert (measured.scored, measured.total) == (2, 2)
    assert measured.as_json()["value"] == 0.5
    assert set(scores.groups["kind"]) == {"colour"}


def test_captions_alone_have_no_accuracy() -> None:
    scores = score_answers([answer(0, "caption", "A", "B")], {"accuracy": accuracy})
    assert scores.metrics["accuracy"].as_json()["value"] is None
