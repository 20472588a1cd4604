"""What ``panovlm inspect`` prints: every field with value, source, and whether it is assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from panovlm.checkpoint.documents.document import stage, training_record
from panovlm.checkpoint.fields import flatten
from panovlm.checkpoint.resolution import Resolution

WIDE = 60

Verdict = Literal["ok", "assumed", "conflict", "broken"]
"""Loads and all is known; loads with settings that nobody knows; does not load because documents
and weights contradict each other; does not load for another reason."""


@dataclass(frozen=True)
class Row:
    """One field of a resolved configuration."""

    field: str
    value: Any
    source: str
    assumed: bool


def rows(resolution: Resolution) -> list[Row]:
    """Return every field of a resolution, those of inferred backbones one by one."""
    values = flatten(resolution.config)
    inferred = [name for name in resolution.sources if name not in values]
    found = [
        Row(name, value, str(resolution.sources[name]), name in resolution.assumed)
        for name, value in values.items()
    ]
    found += [
        Row(
            name,
            resolution.value(name),
            str(resolution.sources[name]),
            name in resolution.assumed,
        )
        for name in inferred
    ]
    return sorted(found, key=lambda row: row.field)


def components(resolution: Resolution) -> dict[str, int]:
    """Return the number of values per component of the weights."""
    sizes: dict[str, int] = {}
    for name, shape in resolution.shapes.items():
        part = name.split(".", 1)[0]
        sizes[part] = sizes.get(part, 0) + prod(shape)
    return sizes


def trained(resolution: Resolution) -> str:
    """Say where in its training the file was written; empty where nothing tells it."""
    record = training_record(resolution)
    told = {
        "stage": stage(resolution) or None,
        "epoch": record.epoch,
        "step": record.global_step,
        "validation loss": None if record.val_loss is None else f"{record.val_loss:.4f}",
    }
    return ", ".join(f"{name} {value}" for name, value in told.items() if value is not None)


def verdict(resolution: Resolution) -> tuple[Verdict, str]:
    """Return the verdict on a resolved checkpoint and the words for it."""
    unknown = len(resolution.keys.unknown)
    if resolution.conflicts:
        return "conflict", f"does not load, {resolution.contradiction}"
    if unknown:
        return "broken", f"does not load, {unknown} tensor(s) belong nowhere"
    if resolution.assumed:
        return "assumed", "loads, with assumed settings"
    return "ok", "loads, and every setting is known"


def as_json(resolution: Resolution) -> dict[str, Any]:
    """Return a resolution as plain data."""
    return {
        "checkpoint": str(resolution.path),
        "verdict": verdict(resolution)[0],
        "chosen_because": resolution.location.why,
        "container": resolution.header.container,
        "layout": resolution.keys.layout,
        "tensors": len(resolution.keys.files),
        "components": components(resolution),
        "fields": {
            row.field: {"value": row.value, "source": row.source, "assumed": row.assumed}
            for row in rows(resolution)
        },
        "assumed": resolution.assumed,
        "conflicts": [
            {
                "field": c.field,
                "claimed": c.claimed,
                "claimed_by": c.claimed_by,
                "observed": c.observed,
                "observed_in": c.observed_in,
            }
            for c in resolution.conflicts
        ],
        "elsewhere": {
            prefix: {"name": source.name, "digest": source.digest, "why": source.why}
            for prefix, source in resolution.borrowed.items()
        },
        "unknown_tensors": list(resolution.keys.unknown),
        "notes": resolution.notes,
        "stage": stage(resolution) or None,
        "training": training_record(resolution).model_dump(mode="json"),
    }


def remarks(resolution: Resolution) -> list[str]:
    """Return what the user of a loaded checkpoint should know, one line each."""
    notes = [f"note: {note}" for note in resolution.notes]
    assumed = [f"assumed: {name} = {resolution.value(name)!r}" for name in resolution.assumed]
    return notes + assumed


def as_text(resolution: Resolution) -> str:
    """Return a resolution as a table for a terminal."""
    return "\n".join(_lines(resolution))


def _lines(resolution: Resolution) -> Iterator[str]:
    header = resolution.header
    yield f"{resolution.path}  ({header.container}, {resolution.location.why})"
    sizes = components(resolution)
    yield "weights: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    if told := trained(resolution):
        yield f"trained: {told}"
    for prefix, source in resolution.borrowed.items():
        digest = f"digest {source.digest}" if source.digest else "no digest recorded"
        yield f"elsewhere: {prefix}* from {source.name!r}, {source.why}, {digest}"
    yield ""
    table = [
        (r.field, short(r.value), ("ASSUMED " if r.assumed else "") + r.source)
        for r in rows(resolution)
    ]
    table.insert(0, ("field", "value", "source"))
    widths = [max(len(row[i]) for row in table) for i in range(2)]
    for name, value, source in table:
        yield f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}"
    yield ""
    for note in resolution.notes:
        yield f"note: {note}"
    for conflict in resolution.conflicts:
        yield f"CONFLICT {conflict}"
    if resolution.assumed:
        yield (
            f"{len(resolution.assumed)} setting(s) are assumed: neither metadata nor weights tell "
            f"them. {resolution.how_to_settle()}"
        )
    yield f"verdict: {verdict(resolution)[1]}"


def short(value: Any) -> str:
    """Return a value on one short line."""
    if isinstance(value, dict):
        kind = value.get("model_type")
        return f"{kind}, {len(value)} fields" if kind else f"{len(value)} fields"
    text = str(value)
    return text if len(text) <= WIDE else text[: WIDE - 1] + "…"
