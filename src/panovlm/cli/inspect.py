"""``panovlm inspect``: what a checkpoint is, without reading its weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from panovlm.cli.options import add_loading_options, overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="checkpoint file or run folder")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_loading_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print the resolution; 1 if the checkpoint would not load."""
    from panovlm.checkpoint.describe import as_json, as_text
    from panovlm.checkpoint.resolve import resolve

    found = resolve(
        options.checkpoint,
        overrides(options.set),
        prefer=options.prefer,
        weights=options.weights,
    )
    text = json.dumps(as_json(found), indent=2) if options.json else as_text(found)
    print(text)
    return 1 if found.conflicts or found.keys.unknown else 0
