"""``panovlm verify``: whether a checkpoint loads as the model that was trained."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from panovlm.cli.options import add_device_options, add_loading_options, device, dtype, overrides
from panovlm.cli.quiet import quiet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="checkpoint file or run folder")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_loading_options(parser)
    add_device_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print the answers; 1 if one of them is negative."""
    quiet()
    import torch

    from panovlm.checkpoint.report.verify import verify

    found = verify(
        options.checkpoint,
        device=torch.device(device(options.device)),
        dtype=dtype(options.dtype),
        prefer=options.prefer,
        strict=options.strict,
        overrides=overrides(options.set),
        weights=options.weights,
    )
    if options.json:
        print(json.dumps(found.as_json(), indent=2))
        return 0 if found.holds else 1
    print(found.path)
    for check in found.checks:
        print(f"  {check.name}: {check.outcome}, {check.detail}")
    for note in found.resolution.notes if found.resolution else ():
        print(f"note: {note}")
    print(f"verdict: {found.verdict}")
    return 0 if found.holds else 1
