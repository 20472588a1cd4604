"""Plain data as the one text of which the identities of documents are taken.

An identity that stands in a checkpoint must be found again by every later version. Small numbers
are therefore spelt as they were in the first documents, ``1e-6`` and ``0.00001``.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any


def compact(value: Any) -> str:
    """Return plain data as JSON without spaces.

    Args:
        value: dictionaries with text as keys, lists, text, numbers, truth values, ``None``; numbers
            that are not finite become ``null``.
    """
    match value:
        case dict():
            return "{" + ",".join(f"{_text(k)}:{compact(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ",".join(map(compact, value)) + "]"
        case float():
            return _number(value)
        case _:
            return _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    mantissa, exponent, power = repr(value).partition("e-0")
    if not isfinite(value):
        return "null"
    if exponent and power == "5":
        sign = "-" * mantissa.startswith("-")
        return f"{sign}0.0000{mantissa.removeprefix('-').replace('.', '')}"
    return f"{mantissa}e-{power}" if exponent else mantissa
