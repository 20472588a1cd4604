"""Clean-up of texts before they are compared.

Models wrap answers in things that are no part of them: reasoning blocks, special tokens, role
names, polite openings. Both sides of a comparison are cleaned alike; what is stored and shown is
always the text as it was generated.
"""

from __future__ import annotations

import re

_THOUGHT = re.compile(r"^.*</think>|<think>.*?(?:</think>|$)", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<\|[^<>|]*\|>|</?(?:image|img|video|vision)\b[^<>]*>", re.IGNORECASE)
_ROLE = re.compile(
    r"\s*(?:#{1,6}\s*)?(?:(?:system|user|assistant|human|gpt)\s*(?::|\n)"
    r"|\[(?:system|user|assistant)\])\s*",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"\s*(?:(?:sure|certainly|of course|absolutely)\s*[,!.:]\s+(?=\w)"
    r"|here(?:'s|’s|\s+is|\s+are)\s+(?:an?|the|your|some)\b"
    r"[^.:!?\n]{0,60}\b(?:answer|caption|description|summary)\b[^.:!?\n]{0,60}:\s*"
    r"|(?:the\s+)?answer\s*:\s*)",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """Reduce a text to what it says.

    Removed, until nothing more is found: reasoning between ``<think>`` marks (also when one of
    the marks is cut off), special tokens ``<|...|>`` and image tags, role names in front
    (``Assistant:``, ``[ASSISTANT]``, ``assistant`` on its own line), and openings that announce
    an answer (``Sure,``, ``Here is a description of the scene:``, ``Answer:``). Runs of white
    space become one blank. Case and punctuation stay.

    Args:
        text: A generated or reference text.

    Returns:
        The text without wrapping; empty if it was nothing else. ``clean(clean(x)) == clean(x)``.
    """
    while True:
        shorter = _unwrap(text)
        if shorter == text:
            shorter = " ".join(text.split())
        if shorter == text:
            return text
        text = shorter


def _unwrap(text: str) -> str:
    """Remove one layer of wrapping."""
    text = _TAG.sub(" ", _THOUGHT.sub(" ", text)).strip()
    for wrapping in (_ROLE, _OPENING):
        found = wrapping.match(text)
        text = text[found.end() :] if found else text
    return text


def clean_reference(text: str) -> str:
    """Clean a reference; one that holds a whole conversation is cut to its last answer.

    Args:
        text: A reference text; only what follows the last ``Assistant:`` counts.
    """
    return clean(text.rpartition("Assistant:")[2])
