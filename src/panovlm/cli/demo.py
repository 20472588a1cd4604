"""``panovlm demo``: the whole story on synthetic scenes."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of everything")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings laid over the demo's own"
    )


def run(options: argparse.Namespace) -> int:
    """Train, evaluate, lose the metadata, evaluate, fail on purpose, repair, evaluate."""
    from panovlm.cli.quiet import quiet, quiet_trainer

    quiet()
    from panovlm.demo.story import tell

    quiet_trainer()
    return tell(options.output, options.overrides)
