"""``panovlm sweep``: train and compare many settings of one experiment."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from panovlm.sweep.cells import Sweep
    from panovlm.sweep.store import Outcome, Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("sweep", type=Path, help="file of the sweep, such as configs/ablation.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="settings laid over the base, below those of the factors",
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="folder of the results (default: sweeps/NAME)"
    )
    parser.add_argument(
        "--list", action="store_true", help="show the cells and what is done; run nothing"
    )
    parser.add_argument("--table", type=Path, help="Markdown page to put the tables into as well")
    parser.add_argument(
        "--keep-runs", action="store_true", help="leave the checkpoints of finished cells"
    )


def run(options: argparse.Namespace) -> int:
    """Run what is missing, and write the tables."""
    from panovlm.cli.quiet import quiet

    quiet()
    from panovlm.sweep.cells import check_cells, read_cells
    from panovlm.sweep.run import missing, run_cells
    from panovlm.sweep.schema import read_sweep
    from panovlm.sweep.store import Store

    sweep = read_cells(options.sweep, read_sweep(options.sweep), options.set)
    store = Store(options.output or Path("sweeps") / options.sweep.stem)
    if options.list:
        return _list(sweep, store.read())
    with store.locked():
        outcomes = store.read()
        todo = missing(sweep.cells, outcomes)
        check_cells(todo)
        done = len(sweep.cells) - len(todo)
        _tell(f"{len(sweep.cells)} cells, {done} finished before; results in {store.folder}")
        _write(sweep, store, options.table)
        run_cells(
            todo,
            store,
            keep_runs=options.keep_runs,
            tell=_tell,
            after=lambda: _write(sweep, store, options.table),
        )
        failed = len(missing(sweep.cells, store.read()))
    for page in filter(None, (store.folder / "table.md", options.table)):
        print(page)
    if failed:
        print(f"{failed} cells failed; the same command tries them again")
    return 1 if failed else 0


def _write(sweep: Sweep, store: Store, page: Path | None) -> None:
    """Write the tables as far as there are results."""
    from panovlm.sweep.compare import compare
    from panovlm.sweep.table import write_page, write_tables

    comparison = compare(sweep, store.read())
    write_tables(comparison, store.folder)
    if page is not None:
        write_page(comparison, page)


def _list(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> int:
    """Print every cell with its digest and state."""
    for cell in sweep.cells:
        found = outcomes.get(cell.digest)
        state = "missing"
        if found is not None:
            right = f", accuracy {found.result.accuracy:.3f}" if found.result else ""
            state = f"{found.status}{right}{': ' + found.message if found.message else ''}"
        print(f"{cell.digest[:8]}  {cell.name}: {state}")
    others = len(outcomes.keys() - {cell.digest for cell in sweep.cells})
    if others:
        print(f"{others} results belong to other settings; they are kept and not used")
    return 0


def _tell(text: str) -> None:
    """Print a line at once, also into a file."""
    print(text, flush=True)
