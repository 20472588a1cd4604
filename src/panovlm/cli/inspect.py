"""``panovlm inspect``: what checkpoints are, without reading their weights."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from panovlm.cli.options import about, add_loading_options, loading_choices

if TYPE_CHECKING:
    from panovlm.checkpoint.report.survey import Finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="checkpoint file, run folder or tree of runs")
    parser.add_argument(
        "-r",
        "--recursive",
        action="store_true",
        help="one line for every checkpoint below the folder, also where it holds some itself",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_loading_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print the resolution, or one line for every checkpoint; 1 if one would not load."""
    from panovlm.checkpoint.find.tree import is_tree

    if options.recursive or is_tree(options.checkpoint):
        return _tree(options)
    from panovlm.checkpoint.report.describe import as_json, as_text, verdict
    from panovlm.checkpoint.report.survey import LOADS
    from panovlm.checkpoint.resolve import resolve

    found = resolve(options.checkpoint, **loading_choices(options))
    print(json.dumps(as_json(found), indent=2) if options.json else as_text(found))
    return 0 if verdict(found)[0] in LOADS else 1


def _tree(options: argparse.Namespace) -> int:
    from panovlm.checkpoint.report.survey import LOADS, survey

    findings: list[Finding] = []
    for finding in survey(options.checkpoint, **loading_choices(options)):
        findings.append(finding)
        if not options.json:
            print(_line(finding))
    counts = Counter(finding.verdict for finding in findings)
    if options.json:
        found = [finding.as_json() for finding in findings]
        print(json.dumps({"checkpoints": found, "summary": dict(counts)}, indent=2))
    else:
        told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
        print(f"{len(findings)} checkpoint(s): {told}")
    return 0 if set(counts) <= LOADS else 1


def _line(finding: Finding) -> str:
    """Say the main thing about one checkpoint of many."""
    found = finding.resolution
    number = f" {len(found.assumed)}" if found and finding.verdict == "assumed" else ""
    start = f"{finding.verdict + number:<11}"
    if found is None:
        return f"{start}  {about(finding.checkpoint, finding.reason)}"
    kind = found.config.models.resampler_type
    return f"{start}  {finding.checkpoint}: {', '.join(filter(None, (kind, finding.reason)))}"
