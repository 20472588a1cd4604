from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.evaluation.metrics.clean import clean, clean_reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a  red\n\nball \t", "a red ball"),
        ("<think>red? no, blue.</think>\n\nblue", "blue"),
        ("red? no.</think> blue", "blue"),
        ("blue <think>or is it", "blue"),
        ("<|im_start|>assistant\nA room.<|im_end|><|endoftext|>", "A room."),
        ("<image>\nA room <img src='x'/> with a door", "A room with a door"),
        ("Assistant: assistant: yes", "yes"),
        ("[ASSISTANT]\nyes", "yes"),
        ("### Assistant: yes", "yes"),
        ("Sure, the room is red.", "the room is red."),
        ("Here is a short description of the scene: A room.", "A room."),
        ("Here's the\n answer: two", "two"),
        ("Answer: two", "two"),
    ],
)
def test_wrapping_is_removed(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Sure.",
        "The assistant stands near the user: both smile.",
        "Here is a red sofa.",
        "a < b and c > d",
        "The image shows a hall.",
        "The answer is two.",
        "I think the ball is red.",
        "users",
    ],
)
def test_what_belongs_to_the_answer_stays(text: str) -> None:
    assert clean(text) == text


def test_reference_is_cut_to_its_last_answer() -> None:
    assert clean_reference("User: what? Assistant: a door User: where? Assistant: left.") == "left."
    assert clean_reference("a door") == "a door"
    assert clean("a door, Assistant: left") == "a door, Assistant: left"


_PIECES = ["<think>", "</think>", "<|", "|>", "<image>", "assistant", "User:", "Sure,", "Here is a"]
_PIECES += [
    "description:",
    "Answer:",
    "[user]",
    "#",
    " ",
    "\n",
    "\t",
    "red",
    "Ball.",
    "<",
    ">",
    "é",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(_PIECES)).map("".join))
def test_cleaning_again_changes_nothing(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert once == " ".join(once.split())
