"""Packed conversations: nothing is lost, and the shared beginning stands once."""

from __future__ import annotations

import pytest

from panovlm.data.packing import Example, pack
from panovlm.errors import DataError
from panovlm.models.language.chat import ChatFormat
from panovlm.models.language.tokenizer import prepare_tokenizer, word_tokenizer

QUESTIONS = [("What is red ?", "A ball ."), ("Where ?", "Behind you ."), ("How many ?", "Two .")]


def chat(*, placeholder: bool, system: str = "Look around .") -> ChatFormat:
    texts = [text for pair in QUESTIONS for text in pair] + ["Look around ."]
    tokenizer = word_tokenizer(texts)
    prepare_tokenizer(tokenizer)
    return ChatFormat(
        tokenizer, model_name="tiny", system_message=system, training_placeholder=placeholder
    )


def examples(form: ChatFormat) -> list[Example]:
    return [form.training_example([question], None) for question in QUESTIONS]


@pytest.mark.parametrize("system", ["", "Look around ."])
@pytest.mark.parametrize("placeholder", [True, False])
def test_every_conversation_can_be_read_back(placeholder: bool, system: str) -> None:
    form = chat(placeholder=placeholder, system=system)
    packed = pack(examples(form), form)
    columns = list(zip(*packed, strict=True))
    for number, (ids, labels) in enumerate(examples(form), 1):
        own = [column for column in columns if column[2] in (0, number)]
        assert ([i for i, _, _ in own], [label for _, label, _ in own]) == (ids, labels)
    head = [column for column in columns if column[2] == 0]
    assert bool(head) == placeholder
    assert packed.ids.count(form.placeholder_id) == placeholder


def test_one_conversation_stays_as_it_is() -> None:
    form = chat(placeholder=True)
    [first, *_] = examples(form)
    packed = pack([first], form)
    assert (packed.ids, packed.labels) == first


def test_different_beginnings_are_an_error() -> None:
    form = chat(placeholder=True)
    late = form.training_example([("Where ? <|vision|>", "Behind you .")], None)
    with pytest.raises(DataError, match="put the placeholder in front"):
        pack([examples(form)[0], late], form)
