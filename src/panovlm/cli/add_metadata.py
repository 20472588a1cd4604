"""``panovlm add-metadata``: write the sidecar that a checkpoint lacks."""

from __future__ import annotations

import argparse
from pathlib import Path

from panovlm.cli.options import add_loading_options, overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint file or folder")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written")
    add_loading_options(parser)


def run(options: argparse.Namespace) -> int:
    """Repair, and say what was found."""
    from panovlm.checkpoint.repair import add_metadata

    repair = add_metadata(
        options.checkpoint,
        overrides=overrides(options.set),
        prefer=options.prefer,
        weights=options.weights,
        dry_run=options.dry_run,
    )
    found = repair.resolution
    weights = sum(source.kind == "weights" for source in found.sources.values())
    verb = "complete" if repair.complete else "written" if repair.written else "would be written"
    print(f"{repair.path}: {verb}")
    if weights:
        print(f"  {weights} setting(s) from the weights")
    for name in found.assumed:
        print(f"  assumed: {name} = {found.value(name)!r} (settle with --set)")
    return 0
