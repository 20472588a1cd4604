"""``panovlm diff``: what tells two checkpoints apart."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("one", type=Path, metavar="A", help="checkpoint file or run folder")
    parser.add_argument("other", type=Path, metavar="B", help="the one to compare it with")
    parser.add_argument(
        "--weights", action="store_true", help="read the weights too, and tell how far they differ"
    )
    parser.add_argument(
        "--copy",
        choices=("model", "ema"),
        help="which to read where a file holds the live weights and their running average",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(options: argparse.Namespace) -> int:
    """Print the differences; 1 if there are any."""
    from panovlm.checkpoint.report.compare import Comparison
    from panovlm.checkpoint.report.compare_report import as_json, as_text, is_same
    from panovlm.checkpoint.resolve import resolve

    one, other = (resolve(path, weights=options.copy) for path in (options.one, options.other))
    found = Comparison(one, other)
    apart = None
    if options.weights:
        from panovlm.checkpoint.report.distance import distances

        apart = distances(found)
    print(json.dumps(as_json(found, apart), indent=2) if options.json else as_text(found, apart))
    return 0 if is_same(found, apart) else 1
