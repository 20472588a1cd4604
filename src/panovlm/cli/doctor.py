"""``panovlm doctor``: what this machine offers, and whether it works."""

from __future__ import annotations

import argparse
import json

from panovlm.cli.quiet import quiet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(options: argparse.Namespace) -> int:
    """Print what was found; 1 if something does not work."""
    quiet()
    from panovlm.doctor import checks

    found = list(checks())
    if options.json:
        print(json.dumps([check.as_json() for check in found], indent=2))
    else:
        for check in found:
            print(f"{check.outcome:<5}  {check.name}: {check.detail}")
    return 1 if any(check.outcome == "fault" for check in found) else 0
