"""All cases, by group."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gauntlet.case import Case
from benchmarks.gauntlet.cases import (
    adapters,
    containers,
    damage,
    descriptions,
    edits,
    hostile,
    models,
    names,
    newer,
    original,
    quantized,
    variants,
    weights,
)

GROUPS = (
    models,
    names,
    containers,
    descriptions,
    variants,
    adapters,
    quantized,
    original,
    damage,
    hostile,
    weights,
    edits,
    newer,
)


def all_cases() -> Iterator[Case]:
    """Yield every case in the order of the table."""
    for group in GROUPS:
        yield from group.cases()
