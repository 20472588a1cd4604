"""``panovlm add-metadata``: write the document that a checkpoint lacks."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from panovlm.cli.options import about, add_loading_options, loading_choices
from panovlm.cli.progress import tracked

if TYPE_CHECKING:
    from panovlm.checkpoint.repair.metadata import Failure, Repair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", type=Path, help="checkpoint file or folder")
    which.add_argument("--recursive", type=Path, metavar="DIR", help="every checkpoint below it")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write that JSON to a file")
    add_loading_options(parser)


def run(options: argparse.Namespace) -> int:
    """Describe, and say what was found; 1 if a checkpoint of a tree could not be described."""
    from panovlm.atomic import write_json

    found: list[Repair | Failure] = []
    for result in _results(options):
        found.append(result)
        if not options.json:
            print("\n".join(_one(result) if options.checkpoint else _line(result)))
    counts = Counter(result.status for result in found)
    report = {"checkpoints": [result.as_json() for result in found], "summary": dict(counts)}
    if options.json:
        print(json.dumps(report, indent=2))
    elif options.recursive:
        told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        print(f"{len(found)} checkpoint(s): {told}")
    if options.report:
        write_json(options.report, report)
    return 1 if counts["failed"] else 0


def _results(options: argparse.Namespace) -> Iterator[Repair | Failure]:
    from panovlm.checkpoint.find.tree import checkpoints_by_folder
    from panovlm.checkpoint.repair.metadata import add_metadata, add_metadata_below

    choices = {**loading_choices(options), "dry_run": options.dry_run}
    if options.checkpoint:
        yield add_metadata(options.checkpoint, **choices)
        return
    total = sum(map(len, checkpoints_by_folder(options.recursive).values()))
    below = add_metadata_below(options.recursive, **choices)
    yield from tracked(below, total=total, doing="describing")


def _one(repair: Repair | Failure) -> Iterator[str]:
    """Say everything about one checkpoint."""
    from panovlm.checkpoint.repair.metadata import Repair

    assert isinstance(repair, Repair)
    yield f"{repair.path}: {repair.status}"
    if repair.without_probe:
        yield "  the probe of the earlier document is left out: it is of another model"
    if repair.document.inferred:
        yield f"  {len(repair.document.inferred)} setting(s) inferred from the weights"
    for name in repair.document.assumed:
        yield f"  assumed: {name} = {repair.resolution.value(name)!r} (settle with --set)"


def _line(result: Repair | Failure) -> Iterator[str]:
    """Say the main thing about one checkpoint of many."""
    from panovlm.checkpoint.repair.metadata import Failure

    status = f"{result.status:<16}"
    if isinstance(result, Failure):
        yield f"{status}  {about(result.checkpoint, result.reason)}"
        return
    known = result.document
    yield (
        f"{status}  {result.checkpoint} -> {result.path.name}, {len(known.inferred)} inferred, "
        f"{len(known.assumed)} assumed"
    )
