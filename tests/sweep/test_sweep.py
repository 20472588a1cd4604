"""Sweeps through the command line: killed, continued, with a failing cell, with other settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from panovlm.cli.main import main
from panovlm.config.load import load_settings
from panovlm.errors import ConfigError
from panovlm.sweep import worker
from panovlm.sweep.cells import read_cells
from panovlm.sweep.schema import read_sweep
from panovlm.sweep.store import Store
from panovlm.sweep.worker import SETTINGS

SMALL = Path(__file__).parent.parent / "small.yaml"
Capture = pytest.CaptureFixture[str]

SWEEP = """
base:
  config: base.yaml
  set:
    training.stages: [resampler]
    training.stage_configs.resampler: {epochs: 1, trainable: {language_model: true}}
seeds: [3]
factors:
  resampler:
    mlp: {models.resampler_type: mlp, models.resampler_config: {hidden_dim: 8, depth: 2}}
    bimamba: {}
  data:
    broken: {data.csv_train: broken.csv}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose second cell has been killed together with the command."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "base.yaml").write_text(SMALL.read_text().replace("SCENES", "scenes"))
    (folder / "sweep.yaml").write_text(SWEEP)
    (folder / "broken.csv").write_text("url,instruction,response\nbroken.csv,What?,a\n")
    command = [sys.executable, "-m", "panovlm", "sweep", "sweep.yaml"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE)
    results = folder / "sweeps" / "sweep"
    while process.poll() is None and not begun(results):
        pass
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return folder


def begun(results: Path) -> bool:
    """Whether the first cell is done and the process of the second is there."""
    done = {file.stem for file in results.glob("cells/[!.]*.json")}
    return bool(done) and any(log.parent.name not in done for log in results.glob("runs/*/log.txt"))


@pytest.fixture(scope="module")
def killed(place: Path) -> dict[str, bytes]:
    """The files of finished cells as they were after the kill."""
    return {file.name: file.read_bytes() for file in (place / "sweeps/sweep/cells").iterdir()}


@pytest.fixture(autouse=True)
def _there(place: Path, killed: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def outcomes(*overrides: str):
    file = Path("sweep.yaml")
    sweep = read_cells(file, read_sweep(file), overrides)
    found = Store(Path("sweeps/sweep")).read()
    return {cell.name.partition(",")[0]: found.get(cell.digest) for cell in sweep.cells}


def test_the_killed_one_goes_on(killed: dict[str, bytes], capfd: Capture) -> None:
    results = Path("sweeps/sweep")
    assert len(killed) == 1
    assert "**Not complete: " in (results / "table.md").read_text()
    stamp = next((results / "cells").iterdir()).stat().st_mtime_ns
    assert main(["sweep", "sweep.yaml", "--table", "page.md"]) == 1
    said = capfd.readouterr().out
    assert "3 cells, 1 finished before" in said
    assert "[1/2] resampler=mlp, seed 3: accuracy " in said
    assert "[2/2] data=broken, seed 3: FAILED: broken.csv" in said
    assert said.endswith("1 cells failed; the same command tries them again\n")
    (name,) = killed
    assert (results / "cells" / name).stat().st_mtime_ns == stamp
    found = outcomes()
    assert {name: one.status for name, one in found.items()} == {
        "base": "finished",
        "resampler=mlp": "finished",
        "data=broken": "failed",
    }
    result = found["resampler=mlp"].result
    assert result is not None and len(result.correct) == len(result.panoramas) == 6
    assert result.accuracy == result.correct.count("1") / 6
    assert result.vision_tokens == 22 and result.train_cpu_seconds > 0
    # Run folders of finished cells are gone; that of the failed one stays, with its log.
    (kept,) = (results / "runs").iterdir()
    assert (kept / "log.txt").is_file()
    page = Path("page.md").read_text()
    assert "- data=broken, seed 3: broken.csv" in page and "Not complete" not in page
    assert json.loads((results / "table.json").read_text())["questions"] == 6


def test_list_shows_what_is_there(capfd: Capture) -> None:
    assert main(["sweep", "sweep.yaml", "--list"]) == 0
    base, mlp, broken = capfd.readouterr().out.splitlines()
    assert "  base, seed 3: finished, accuracy " in base
    assert "  resampler=mlp, seed 3: finished, accuracy " in mlp
    assert "  data=broken, seed 3: failed: broken.csv" in broken


def test_other_settings_are_other_cells(capfd: Capture) -> None:
    changed = "training.stage_configs.resampler.lr=2e-3"
    assert main(["sweep", "sweep.yaml", "--list", "--set", changed]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines[:3]] == ["missing"] * 3
    assert lines[3] == "3 results belong to other settings; they are kept and not used"


def test_nothing_runs_before_all_cells_are_valid(capfd: Capture) -> None:
    before = sorted(Path("sweeps").rglob("*"))
    text = SWEEP.replace("depth: 2", "depth: 0").replace("broken.csv}", "3}")
    Path("wrong.yaml").write_text(text)
    assert main(["sweep", "wrong.yaml", "--output", "sweeps/sweep"]) == 2
    said = capfd.readouterr().err
    assert "resampler=mlp: models.resampler_config.depth: expected at least 1" in said
    assert "data=broken: data.csv_train: expected" in said
    assert sorted(Path("sweeps").rglob("*")) == before


def test_an_interrupt_gives_the_cell_up(capfd: Capture) -> None:
    """The command waits for the cell's process to end, and leaves nothing that counts as done."""
    stopped = Path("stopped")

    def interrupt() -> None:
        while not list(stopped.glob("runs/*/log.txt")):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    # A shell that starts the tests in the background has them ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        assert main(["sweep", "sweep.yaml", "--output", str(stopped)]) == 130
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "interrupted\n"
    assert not list(stopped.glob("cells/*"))
    with Store(stopped).locked():
        pass


def test_a_worker_ends_with_the_sweep(tmp_path: Path) -> None:
    """However that ended: all that is left is the closed end of a pipe."""
    settings = load_settings("base.yaml").model_dump(mode="json")
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    worker = subprocess.Popen(
        [sys.executable, "-m", "panovlm.sweep.worker", str(tmp_path)], stdin=subprocess.PIPE
    )
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait() == 1
    assert [file.name for file in tmp_path.iterdir()] == [SETTINGS]


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_several_training_processes_goes_on(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them is this program; here training ends at once, for one of them with an error."""

    def ends(*_: object, **__: object) -> Path:
        if rank == 0:
            raise ConfigError("it cannot be trained")
        return tmp_path / "none"

    settings = load_settings(SMALL, ["data.synthetic=null"])
    (tmp_path / SETTINGS).write_text(json.dumps(settings.model_dump(mode="json")))
    monkeypatch.setattr(worker, "_end_with_parent", lambda: None)
    monkeypatch.setattr("panovlm.training.run.train", ends)
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    if rank:
        with pytest.raises(SystemExit):
            worker.main(tmp_path)
    else:
        worker.main(tmp_path)
    assert (tmp_path / worker.OUTCOME).exists() is (rank == 0)
