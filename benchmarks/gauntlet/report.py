"""The results as lines, as JSON and as a page of the documentation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gauntlet.case import Case
from benchmarks.gauntlet.contestants import ABSENT
from benchmarks.gauntlet.verdict import Outcome, Verdict
from benchmarks.machine import machine

INTRODUCTION = Path(__file__).with_name("introduction.md")
MARKS = {
    Verdict.RIGHT: "right",
    Verdict.CLEAR: "error",
    Verdict.UNCLEAR: "*unclear*",
    Verdict.WARNED: "**warned, wrong**",
    Verdict.SILENT: "**wrong**",
    Verdict.RAN_CODE: "**ran code**",
    Verdict.NOT_APPLICABLE: "—",
}
COUNTED = [verdict for verdict in Verdict if verdict != Verdict.NOT_APPLICABLE]


class Row(NamedTuple):
    """A case and how each contestant's attempt ended."""

    case: Case
    outcomes: dict[str, Outcome]


def line(row: Row) -> str:
    """Return one line for a terminal."""
    ends = "  ".join(f"{name}: {outcome.verdict}" for name, outcome in row.outcomes.items())
    return f"{row.case.group}: {row.case.name} | {ends}"


def summary(rows: Sequence[Row]) -> str:
    """Return contestants by verdicts, and how many valid checkpoints each refused."""
    heading = f"| | {' | '.join(COUNTED)} | not applicable | valid ones not opened right |"
    lines = [heading, "|---" * (heading.count("|") - 1) + "|"]
    for name in rows[0].outcomes if rows else ():
        verdicts = Counter(row.outcomes[name].verdict for row in rows)
        bad = sum(
            row.case.valid
            and row.outcomes[name].verdict not in {Verdict.RIGHT, Verdict.NOT_APPLICABLE}
            for row in rows
        )
        counts = [str(verdicts[verdict]) for verdict in (*COUNTED, Verdict.NOT_APPLICABLE)]
        lines.append(f"| {name} | {' | '.join(counts)} | {bad} |")
    lines += [f"| {name} (not installed) {'| ' * (len(COUNTED) + 3)}" for name in ABSENT]
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> str:
    """Return every verdict with what was said."""
    found: list[dict[str, Any]] = [
        {
            "group": row.case.group,
            "case": row.case.name,
            "valid": row.case.valid,
            "outcomes": {name: outcome.__dict__ for name, outcome in row.outcomes.items()},
        }
        for row in rows
    ]
    return json.dumps({"machine": machine(), "versions": versions(), "cases": found}, indent=1)


def versions() -> dict[str, str]:
    """Return the versions of the contestants' libraries."""
    found: dict[str, str] = {}
    for name in ("torch", "transformers", "lightning", "peft", "safetensors", "spandrel"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def page(rows: Sequence[Row]) -> str:
    """Return the page: introduction, summary, and one row for each case."""
    told = ", ".join(f"{name} {found}" for name, found in versions().items())
    parts = [INTRODUCTION.read_text(encoding="utf-8").rstrip(), "", "## Results", ""]
    valid = sum(row.case.valid for row in rows)
    parts += [
        f"{len(rows)} checkpoints, {valid} of them valid. On {machine()}; {told}.",
        "",
        summary(rows),
        "",
        "## Every case",
        "",
        "*valid*: what is there determines the model, so that refusing it is a fault.",
        "",
    ]
    for group, members in groupby(rows, key=lambda row: row.case.group):
        found = list(members)
        names = list(found[0].outcomes)
        heading = f"| case | valid | {' | '.join(names)} |"
        parts += [f"### {group}", "", heading, "|---" * (len(names) + 2) + "|"]
        for row in found:
            ends = " | ".join(MARKS[row.outcomes[name].verdict] for name in names)
            parts.append(f"| {row.case.name} | {'yes' if row.case.valid else ''} | {ends} |")
        parts.append("")
    return "\n".join(parts)
