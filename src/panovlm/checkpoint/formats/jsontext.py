"""Parses JSON that an unknown writer made: a safetensors header, an index of shards."""

from __future__ import annotations

import json
from typing import Any

from panovlm.errors import CheckpointError


def parse_object(data: bytes, origin: str) -> dict[str, Any]:
    """Return the JSON object spelt by ``data``.

    Args:
        data: UTF-8 text.
        origin: file and part, for messages.

    Raises:
        CheckpointError: it is no JSON object, or names an entry twice.
    """
    try:
        value = json.loads(str(data, "utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{origin} is damaged: {error}. Copy it again or take the checkpoint before it."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{origin} is damaged: a JSON object was expected.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} occurs twice")
    return entries


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
