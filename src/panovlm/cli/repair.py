"""``panovlm repair --solve``: find settings that no shape shows by what the model computed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panovlm.cli.options import add_loading_options, overrides
from panovlm.cli.quiet import quiet

if TYPE_CHECKING:
    from panovlm.checkpoint.repair.solve import Solution, Solutions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="checkpoint file or run folder")
    parser.add_argument(
        "--solve",
        action="store_true",
        required=True,
        help="try the likely values of settings until the checkpoint's probe is reproduced "
        "(add-metadata does the repairs that need no search)",
    )
    parser.add_argument(
        "--write", action="store_true", help="write what is found into the document beside it"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_loading_options(parser)


def run(options: argparse.Namespace) -> int:
    """Search, print, perhaps write; 1 if a part does not give its old result."""
    quiet()
    from panovlm.checkpoint.repair.solve import solve

    found = solve(
        options.checkpoint,
        prefer=options.prefer,
        overrides=overrides(options.set),
        weights=options.weights,
    )
    written = found.write() if options.write and found.settled else None
    if options.json:
        print(json.dumps(_as_json(found, written is not None), indent=2))
        return 0 if found.complete else 1
    print(f"{found.resolution.path} ({found.origin})")
    for solution in found.parts:
        print(f"  {_line(solution)}")
    for name, value in found.settled.items():
        print(f"settled: {name} = {value!r}")
    if written is not None:
        print(f"{written.path}: {'written' if written.written else 'complete'}")
    elif found.settled:
        print("Nothing was written; --write does.")
    return 0 if found.complete else 1


def _line(solution: Solution) -> str:
    """Return what was found out about a part."""
    from panovlm.checkpoint.probe.check import NAMES

    told = {
        "agrees": "computes what it did",
        "solved": "computed something else; settled",
        "ambiguous": f"the probe cannot tell {len(solution.changes)} changes apart; choose with "
        "--set",
        "unsolved": f"computes something else, and none of {solution.tried} tries mends it",
        "other weights": "has other weights than those that were probed; no setting mends that",
        "not compared": f"not compared: {solution.detail}",
    }
    changes = "".join(
        "\n    " + ", ".join(f"{name} = {value!r}" for name, value in found.items())
        for found in solution.changes
    )
    return f"{NAMES[solution.part]}: {told[solution.outcome]}{changes}"


def _as_json(found: Solutions, written: bool) -> dict[str, Any]:
    """Return everything as plain data."""
    return {
        "checkpoint": str(found.resolution.path),
        "probe": found.origin,
        "complete": found.complete,
        "parts": [vars(solution) for solution in found.parts],
        "settled": found.settled,
        "written": written,
    }
