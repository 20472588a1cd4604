"""What the scripts of this folder share: taking turns, and where their tables go."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import machine

END = "<!-- end -->"


def options(description: str, runs: int) -> argparse.ArgumentParser:
    """Return the options that every script has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--update", type=Path, help="page whose table is replaced")
    return parser


def take_turns(candidates: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Return the processor's milliseconds of each, one after the other in every run.

    Processor time of this thread is not longer where other programs run as well, and everything
    here has one thread. The first run warms up and is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in range(runs + 1):
        for name, work in candidates.items():
            begun = time.thread_time()
            work()
            taken = time.thread_time() - begun
            if run:
                times[name].append(taken * 1e3)
    return times


def publish(
    given: argparse.Namespace,
    script: str,
    lines: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    timed: str = "processor time",
) -> None:
    """Print a table, and write it where the options say."""
    told = [
        f"On {machine()}; one thread, {timed}; medians of {given.runs} runs [smallest .. largest].",
        "",
        *lines,
    ]
    write(given, script, told, rows, machine())


def write(
    given: argparse.Namespace,
    script: str,
    lines: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    where: str,
) -> None:
    """Print lines and write them, and the numbers of a machine, where the options say."""
    print("\n".join(lines))
    if given.json:
        given.json.write_text(json.dumps({"machine": where, "rows": rows}), encoding="utf-8")
    if given.update:
        replace_table(given.update, script, lines)


def replace_table(page: Path, script: str, lines: Sequence[str]) -> None:
    """Put lines between the two marks that a page has for a script; the rest of it stays."""
    mark = f"<!-- benchmarks/{script} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(mark)
    if not found:
        sys.exit(f"{page} has no line {mark}")
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"{page} has no line {END} after {mark}")
    told = "\n".join(lines).strip()
    page.write_text(f"{before}{mark}\n\n{told}\n\n{END}{after}", encoding="utf-8")
