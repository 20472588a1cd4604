"""What is written of a cell, and which cell it is taken for later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from panovlm.config.load import load_settings
from panovlm.errors import ConfigError, DataError
from panovlm.sweep.cells import settings_digest
from panovlm.sweep.store import Outcome, Result, Store

SMALL = Path(__file__).parent.parent / "small.yaml"
SETTINGS = load_settings(SMALL)
DIGEST = settings_digest(SETTINGS)


def result(correct: str = "1100") -> Result:
    share = correct.count("1") / len(correct)
    return Result(
        accuracy=share,
        interval=(0.0, 1.0),
        groups={"seam": {"1": {"value": share, "scored": 2, "total": 2}}},
        correct=correct,
        panoramas=tuple(range(len(correct))),
        questions="q",
        most_frequent=0.25,
        views=9,
        vision_tokens=22,
        parameters=1000,
        train_seconds=10.0,
        train_cpu_seconds=8.0,
        eval_seconds=1.0,
    )


def test_written_and_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.read() == {}
    finished = Outcome(status="finished", result=result())
    store.write(DIGEST, SETTINGS, finished)
    assert store.read() == {DIGEST: finished}
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_result_takes_the_place_of_a_failure(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(DIGEST, SETTINGS, Outcome(status="failed", message="no"))
    assert store.read()[DIGEST].message == "no"
    store.write(DIGEST, SETTINGS, Outcome(status="finished", result=result()))
    assert store.read()[DIGEST].status == "finished"


def edited(tmp_path: Path, change) -> Store:
    store = Store(tmp_path)
    store.write(DIGEST, SETTINGS, Outcome(status="finished", result=result()))
    (file,) = (tmp_path / "cells").iterdir()
    content = json.loads(file.read_text())
    change(content["settings"])
    file.write_text(json.dumps(content))
    return store


def test_a_field_that_came_later_has_its_default(tmp_path: Path) -> None:
    """A cell of an older version is the cell that its settings mean today."""
    store = edited(tmp_path, lambda settings: settings["training"].pop("yaw_turns"))
    assert list(store.read()) == [DIGEST]


def test_a_default_that_was_another_makes_another_cell(tmp_path: Path) -> None:
    store = edited(tmp_path, lambda settings: settings["models"].update(pe_temperature=77.0))
    (digest,) = store.read()
    assert digest == settings_digest(load_settings(SMALL, ["models.pe_temperature=77"]))


def test_settings_that_are_none_any_more_belong_to_no_cell(tmp_path: Path) -> None:
    assert edited(tmp_path, lambda settings: settings["models"].update(gone=1)).read() == {}


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"sweep_cell": 2}', '{"sweep_cell": 1}', '{"sweep_cell": 1, "settings": {}}'],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json.* remove it to train its cell anew"):
        Store(tmp_path).read()


def test_two_sweeps_in_one_folder(tmp_path: Path) -> None:
    with (
        Store(tmp_path).locked(),
        pytest.raises(ConfigError, match="another sweep is running"),
        Store(tmp_path).locked(),
    ):
        pass
    with Store(tmp_path).locked():
        pass


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--output"), Store(tmp_path / "file").locked():
        pass
