"""The loop over the cells of a sweep: what is missing is trained, one cell after the other."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from panovlm.atomic import write_json
from panovlm.config.validation import validate
from panovlm.sweep.cells import Cell
from panovlm.sweep.store import Outcome, Store
from panovlm.sweep.worker import OUTCOME, SETTINGS

LOG = "log.txt"
Tell = Callable[[str], None]


def missing(cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> list[Cell]:
    """Return the cells that have no result; those that failed are tried again."""
    done = {digest for digest, found in outcomes.items() if found.status == "finished"}
    return [cell for cell in cells if cell.digest not in done]


def run_cells(
    cells: Sequence[Cell], store: Store, *, keep_runs: bool, tell: Tell, after: Callable[[], None]
) -> None:
    """Train and evaluate cells; how each ends is in the store before the next begins.

    Args:
        cells: what to run.
        store: locked by this process.
        keep_runs: leave the run folders of finished cells; those of failed ones always stay.
        tell: is told what goes on.
        after: called after every cell.

    Raises:
        KeyboardInterrupt: the cell at hand was given up; it is begun anew the next time.
    """
    for number, cell in enumerate(cells, start=1):
        where = f"[{number}/{len(cells)}] {cell.name}"
        tell(f"{where}: {cell.digest[:8]}")
        outcome = run_cell(cell, store)
        folder = store.run_folder(cell.digest)
        if outcome.result is not None and not keep_runs:
            shutil.rmtree(folder)
        store.write(cell.digest, cell.settings, outcome)
        if outcome.result is None:
            tell(f"{where}: FAILED: {outcome.message} (its log: {folder / LOG})")
        else:
            found = outcome.result
            tell(
                f"{where}: accuracy {found.accuracy:.3f} "
                f"[{found.interval[0]:.3f}, {found.interval[1]:.3f}], trained in "
                f"{found.train_seconds:.0f} s, evaluated in {found.eval_seconds:.0f} s"
            )
        after()


def run_cell(cell: Cell, store: Store) -> Outcome:
    """Run one cell in a new process, from its beginning."""
    folder = store.run_folder(cell.digest)
    if folder.exists():  # of an earlier try
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    paths = {"runs_dir": str(folder / "runs"), "eval_dir": str(folder / "results")}
    settings = cell.settings.model_dump(mode="json")
    write_json(folder / SETTINGS, {**settings, "paths": {**settings["paths"], **paths}})
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  (our own module)
            [sys.executable, "-m", "panovlm.sweep.worker", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which ends that one
        )
        try:
            code = process.wait()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    if not (folder / OUTCOME).is_file():
        return Outcome(status="failed", message=_died(code, folder / LOG))
    return validate(Outcome, json.loads((folder / OUTCOME).read_bytes()))


def _died(code: int, log: Path) -> str:
    """Say how a process ended that left no outcome."""
    lines = log.read_text("utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "nothing was printed")
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    return f"its process ended {how}: {last.strip()}"
