"""Scores of an evaluation: every metric over the answers that can be scored, with coverage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from panovlm.evaluation.answers import Answer, scorable
from panovlm.evaluation.metrics.accuracy import accuracy, is_match, normalise, wilson
from panovlm.evaluation.metrics.captions import bleu4, cider, rouge_l
from panovlm.evaluation.metrics.clean import clean, clean_reference
from panovlm.evaluation.metrics.meteor import meteor
from panovlm.evaluation.metrics.scores import Measurement, NotComputed, Result, Score

__all__ = [
    "METRICS",
    "Measurement",
    "Metric",
    "NotComputed",
    "Result",
    "Score",
    "Scores",
    "accuracy",
    "bleu4",
    "cider",
    "clean",
    "clean_reference",
    "is_correct",
    "is_match",
    "meteor",
    "normalise",
    "rouge_l",
    "score_answers",
    "wilson",
]

CAPTION = "caption"
"""Kind of question whose answer is a description."""

Metric = Callable[[Sequence[str], Sequence[str]], Result]


def _spice(predictions: Sequence[str], references: Sequence[str]) -> Result:
    """Say why there is no SPICE: it is named in result files, and never computed."""
    return NotComputed("SPICE downloads its language parser when it runs; it is not supported")


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "bleu4": bleu4,
    "meteor": meteor,
    "rougeL": rouge_l,
    "spice": _spice,
    "cider": cider,
}
"""Every metric by its name in result files; all 0..1 except cider, which is 0..10."""


@dataclass(frozen=True)
class Scores:
    """Scores of one evaluation and what they rest on.

    Attributes:
        metrics: Every metric by name.
        groups: Accuracy by the labels of the questions: group name, then label.
        total: Samples of the evaluation.
        scored: Samples that entered the scores: answered, and with a reference.
        failed: Samples that could not be asked; never scored.
        without_reference: Samples that were answered and have nothing to be compared with.
        empty: Samples answered with no text; scored like any other answer.
    """

    metrics: Mapping[str, Measurement]
    groups: Mapping[str, Mapping[str, Measurement]] = field(
        default_factory=dict[str, Mapping[str, Measurement]]
    )
    total: int = 0
    scored: int = 0
    failed: int = 0
    without_reference: int = 0
    empty: int = 0

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values: each metric's number (or null), then its details and the counts."""
        return {
            **{name: found.as_json()["value"] for name, found in self.metrics.items()},
            "not_computed": {
                name: found.result.reason
                for name, found in self.metrics.items()
                if isinstance(found.result, NotComputed)
            },
            "details": {name: found.as_json() for name, found in self.metrics.items()},
            "accuracy_by": {
                group: {label: found.as_json() for label, found in labels.items()}
                for group, labels in self.groups.items()
            },
            "samples": {
                "total": self.total,
                "scored": self.scored,
                "failed": self.failed,
                "without_reference": self.without_reference,
                "empty": self.empty,
            },
        }


def is_correct(answer: Answer) -> bool | None:
    """Whether a cleaned answer matches its cleaned reference.

    None when it cannot be scored, and for a caption, which is neither right nor wrong.
    """
    pairs = scorable([answer]) if _is_closed(answer) else []
    return is_match(clean(pairs[0][0]), clean_reference(pairs[0][1])) if pairs else None


def score_answers(answers: Sequence[Answer], metrics: Mapping[str, Metric] = METRICS) -> Scores:
    """Compute every metric over the answers that can be scored.

    Both sides are cleaned first (:func:`clean`). A metric that cannot be computed says why; the
    others are not touched by it. The accuracy leaves questions of the kind "caption" out: a
    description has no single right wording, the caption metrics are for it.

    Args:
        answers: All answers of an evaluation, failed samples included.
        metrics: What to compute.

    Returns:
        The scores with their coverage, and the accuracy by every group of the questions.
    """
    pairs = [
        (clean(prediction), clean_reference(reference), answer)
        for prediction, reference, answer in scorable(answers)
    ]
    closed = [pair for pair in pairs if _is_closed(pair[2])]
    questions = [answer for answer in answers if _is_closed(answer)]
    missing = NotComputed(_why_nothing_is_scored(answers))

    def measure(name: str, metric: Metric) -> Measurement:
        chosen, total = (closed, questions) if name == "accuracy" else (pairs, answers)
        if pairs and not chosen:
            return Measurement(NotComputed("all samples are captions"), 0, len(total))
        texts = ([pair[0] for pair in chosen], [pair[1] for pair in chosen])
        return Measurement(metric(*texts) if chosen else missing, len(chosen), len(total))

    failed = sum(answer.is_error for answer in answers)
    return Scores(
        metrics={name: measure(name, metric) for name, metric in metrics.items()},
        groups=_by_group(questions, closed),
        total=len(answers),
        scored=len(pairs),
        failed=failed,
        without_reference=len(answers) - failed - len(pairs),
        empty=sum(answer.is_empty and not answer.is_error for answer in answers),
    )


def _is_closed(answer: Answer) -> bool:
    """Whether a question has one right answer."""
    return answer.question.groups.get("kind") != CAPTION


def _why_nothing_is_scored(answers: Sequence[Answer]) -> str:
    if not answers:
        return "there is no sample"
    if all(answer.is_error for answer in answers):
        return "every sample failed"
    return "no answered sample has a reference"


def _by_group(
    answers: Sequence[Answer], pairs: Sequence[tuple[str, str, Answer]]
) -> dict[str, dict[str, Measurement]]:
    """Accuracy of every label of every group, in the order in which they first occur."""
    totals: dict[str, dict[str, int]] = {}
    for answer in answers:
        for group, label in answer.question.groups.items():
            labels = totals.setdefault(group, {})
            labels[label] = labels.get(label, 0) + 1
    found: dict[str, dict[str, Measurement]] = {}
    for group, labels in totals.items():
        found[group] = {}
        for label, total in labels.items():
            chosen = [pair for pair in pairs if pair[2].question.groups.get(group) == label]
            result = accuracy([pair[0] for pair in chosen], [pair[1] for pair in chosen])
            found[group][label] = Measurement(result, len(chosen), total)
    return found
