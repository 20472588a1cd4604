"""``panovlm explain``: where the value of one field came from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from panovlm.cli.options import add_loading_options, loading_choices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="checkpoint file or run folder")
    parser.add_argument("field", help="setting, such as models.overlap_ratio or hidden_dim")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_loading_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print the explanation; 1 if the sources contradict each other about the field."""
    from panovlm.checkpoint.report.explain import as_text, explain
    from panovlm.checkpoint.resolve import resolve

    resolution = resolve(options.checkpoint, **loading_choices(options))
    found = explain(resolution, options.field)
    print(json.dumps(found.as_json(), indent=2) if options.json else as_text(found))
    return 1 if found.conflicts else 0
