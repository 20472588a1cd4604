"""Several conversations about one panorama in one sequence.

All of them begin alike, up to and including the placeholder of the vision tokens. That beginning
stands once, in front; behind it stands the rest of every conversation, one after the other. The
model keeps them apart (:mod:`panovlm.models.language.segments`), so that each is answered as if it
stood alone, while the views and their tokens are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from panovlm.errors import DataError
from panovlm.models.language.chat import IGNORED, ChatFormat

Example = tuple[list[int], list[int]]
"""(ids, labels) of one conversation."""


class Packed(NamedTuple):
    """A sequence of conversations, all three lists equally long."""

    ids: list[int]
    labels: list[int]
    segments: list[int]
    """0 for the shared beginning, then 1, 2, ... for the conversations."""


def pack(examples: Sequence[Example], chat: ChatFormat) -> Packed:
    """Put conversations about one panorama into one sequence.

    Args:
        examples: ids and labels of each, at least one.
        chat: format that they were written with; where it puts no placeholder into training
            texts, vision tokens stand in front of the text, so only they are shared.

    Raises:
        DataError: the conversations begin differently before the placeholder.
    """
    start = _shared(examples[0][0], chat)
    head = examples[0][0][:start]
    packed = Packed(list(head), [IGNORED] * start, [0] * start)
    for number, (ids, labels) in enumerate(examples, 1):
        if ids[:start] != head or _shared(ids, chat) != start:
            raise DataError(
                "questions about one panorama cannot share it, because they differ before "
                "<|vision|>; put the placeholder in front of the question in all rows or in none, "
                "or train with questions_per_sample 1"
            )
        packed.ids.extend(ids[start:])
        packed.labels.extend(labels[start:])
        packed.segments.extend([number] * (len(ids) - start))
    return packed


def _shared(ids: list[int], chat: ChatFormat) -> int:
    """Return how many ids stand before the first one that a conversation has for itself."""
    return ids.index(chat.placeholder_id) + 1 if chat.placeholder_id in ids else 0
