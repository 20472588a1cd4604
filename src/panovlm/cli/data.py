"""``panovlm data``: check tables and images before training, convert published data sets."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from panovlm.cli.options import add_input_option, image_input
from panovlm.cli.progress import tracked
from panovlm.errors import ConfigError

if TYPE_CHECKING:
    from panovlm.config.schema import Settings
    from panovlm.data.check import Check, Measure

ALLOWABLE = ("aspect", "empty", "alone", "duplicate", "long")
"""Findings that training does not refuse."""
LAYOUTS = ("quic360", "osr_bench", "stanford2d3d", "zind", "structured3d")
"""Published data sets that can be converted; the names of panovlm.data.published, which is slow to
import."""
_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="read everything, report what is wrong")
    check.add_argument("tables", nargs="*", type=Path, metavar="FILE", help="table of any form")
    check.add_argument(
        "-c",
        "--config",
        type=Path,
        help="experiment file: its tables (unless FILE is given), image folder, text limits",
    )
    add_input_option(check)
    check.add_argument("--data-dir", help="base of relative image paths")
    check.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=ALLOWABLE,
        help="count this, but do not fail because of it (repeatable)",
    )
    check.add_argument("--json", action="store_true", help="print JSON, with every finding")
    convert = actions.add_parser("convert", help="write a published data set as a table")
    convert.add_argument("source", type=Path, metavar="SOURCE", help="its folder, or file of texts")
    convert.add_argument(
        "--from", dest="layout", required=True, choices=LAYOUTS, help="the data set's file layout"
    )
    convert.add_argument("--images", type=Path, help="folder of the images, if they lie apart")
    convert.add_argument("-o", "--output", type=Path, required=True, help="JSONL file to write")


def run(options: argparse.Namespace) -> int:
    """Check (1 when something is wrong), or convert."""
    return _convert(options) if options.action == "convert" else _check(options)


def _convert(options: argparse.Namespace) -> int:
    from panovlm.data.convert import convert

    if options.output.suffix != ".jsonl":
        raise ConfigError(f"--output {options.output}: the name of a .jsonl file was expected")
    done = convert(options.layout, options.source, options.output, images=options.images)
    print(f"{options.output}: {done.rows} rows, {done.images} images")
    if done.left_out:
        print(f"left out: {len(done.left_out)} rows")
        print(*(f"  {reason}" for reason in done.left_out[:_SHOWN]), sep="\n")
        if len(done.left_out) > _SHOWN:
            print(f"  and {len(done.left_out) - _SHOWN} more")
    return 0


def _check(options: argparse.Namespace) -> int:
    """Check; 1 when something is wrong."""
    from panovlm.config.image_input import PLAIN
    from panovlm.data.check import check_tables

    settings = _settings(options)
    files = list(options.tables) or (_tables(settings) if settings else [])
    if not files:
        raise ConfigError(
            "there is nothing to check; name a table, or an experiment with --config."
        )
    data_dir = options.data_dir
    if data_dir is None:
        data_dir = settings.paths.data_dir if settings else ""
    measure = _measure(settings) if settings else None
    found = check_tables(
        files,
        data_dir=data_dir,
        measure=measure,
        track=tracked,
        threads=min(8, os.cpu_count() or 1),
        alone=_alone(settings) if settings else (),
        stream_blocks=settings.data.stream_blocks if settings else None,
        image_input=image_input(options) or (settings.data.input if settings else PLAIN),
    )
    print(json.dumps(found.as_json(), indent=2) if options.json else _text(found))
    return 1 if found.counts.keys() - set(options.allow) else 0


def _settings(options: argparse.Namespace) -> Settings | None:
    from panovlm.config.load import load_settings

    return load_settings(options.config) if options.config is not None else None


def _tables(settings: Settings) -> list[Path]:
    """Return the tables of an experiment, each once."""
    from panovlm.training.tables import stage_files

    stages = [stage_files(settings, name) for name in settings.training.stages]
    files = [file for train, val in stages for file in (*train, *val)]
    return [Path(file) for file in dict.fromkeys([*files, *settings.data.csv_test])]


def _alone(settings: Settings) -> set[Path]:
    """Return the tables that only stage vision reads."""
    from panovlm.training.tables import stage_files

    files: dict[bool, set[Path]] = {True: set(), False: {Path(t) for t in settings.data.csv_test}}
    for name in settings.training.stages:
        train, val = stage_files(settings, name)
        files[name == "vision"] |= {Path(file) for file in (*train, *val)}
    return files[True] - files[False]


def _measure(settings: Settings) -> Measure | None:
    """Return what judges the length of texts; without the tokenizer nobody can, which is said."""
    from panovlm.cli.quiet import quiet
    from panovlm.training.text_limits import text_measure

    if all(name == "vision" for name in settings.training.stages):
        return None
    quiet()
    try:
        return text_measure(settings)
    except ConfigError as error:
        print(f"the length of texts is not checked: {error}", file=sys.stderr)
        return None


def _text(found: Check) -> str:
    """Return the report for people: a few examples of everything."""
    from panovlm.data.check import MEANINGS

    lines = [f"{found.tables} table(s), {found.rows} rows, {found.images} images"]
    for kind, count in found.counts.items():
        lines.append(f"{kind}: {count} {MEANINGS[kind]}")
        own = [finding for finding in found.findings if finding.kind == kind]
        lines += [f"  {finding.source}: {finding.detail}" for finding in own[:_SHOWN]]
        if count > _SHOWN:
            lines.append(f"  and {count - _SHOWN} more")
    return "\n".join(lines if found.findings else [*lines, "nothing wrong"])
