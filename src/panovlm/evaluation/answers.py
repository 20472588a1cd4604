"""Questions put to a model and the answers it gave: the records that the evaluation passes on.

An answer is the generated text, stripped of white space and otherwise untouched. Empty text stays
empty and counts as an answer (a wrong one); a sample that could not be asked at all, say because
its image is unreadable, is *failed*, with the reason, and is never scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

GROUP_COLUMNS = ("kind", "seam")
"""Columns of a table whose labels the accuracy is broken down by."""


def groups_of(columns: Mapping[str, str]) -> dict[str, str]:
    """Pick the labels of a table's row; empty cells are no label."""
    return {name: columns[name] for name in GROUP_COLUMNS if columns.get(name)}


@dataclass(frozen=True)
class Question:
    """One thing to ask about one panorama.

    Attributes:
        sample_id: Unique within an evaluation; rows are counted from "0".
        image: Path of the panorama, as the table gives it.
        text: What is asked, as the model sees it.
        query: What the table holds, where a sentence was built around it; else the same as text.
        reference: The expected answer; None when the table has none.
        groups: Labels to break the accuracy down by, e.g. ``{"kind": "colour", "seam": "yes"}``.
    """

    sample_id: str
    image: str
    text: str
    query: str = ""
    reference: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        """Fill in the query."""
        if not self.query:
            object.__setattr__(self, "query", self.text)


@dataclass(frozen=True)
class Answer:
    """What came of one question.

    Attributes:
        question: The question.
        prediction: The model's text, possibly empty; None when the sample failed.
        reason: Why it failed; None otherwise.
    """

    question: Question
    prediction: str | None
    reason: str | None = None

    def __post_init__(self) -> None:
        """Refuse a record that is neither an answer nor a failure.

        Raises:
            ValueError: Both or neither of ``prediction`` and ``reason`` are given.
        """
        if (self.prediction is None) == (self.reason is None):
            raise ValueError(
                f"sample {self.question.sample_id}: an answer holds either a prediction or the "
                "reason of its failure"
            )

    @classmethod
    def generated(cls, question: Question, text: str) -> Answer:
        """Record generated text; only surrounding white space is removed."""
        return cls(question, text.strip())

    @classmethod
    def failed(cls, question: Question, reason: str) -> Answer:
        """Record that no answer could be generated, and why."""
        return cls(question, None, reason)

    @property
    def is_error(self) -> bool:
        """Whether the sample failed."""
        return self.prediction is None

    @property
    def is_empty(self) -> bool:
        """Whether there is no text (a failed sample has none either)."""
        return not (self.prediction or "").strip()


def scorable(answers: Iterable[Answer]) -> list[tuple[str, str, Answer]]:
    """Pick the answers that can be scored: generated, and with a reference.

    Args:
        answers: Any answers.

    Returns:
        (prediction, reference, answer) triples in the given order.
    """
    return [
        (answer.prediction, answer.question.reference, answer)
        for answer in answers
        if answer.prediction is not None and answer.question.reference is not None
    ]
