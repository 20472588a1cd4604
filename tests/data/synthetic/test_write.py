"""Scenes on disk: complete or absent, the same for the same settings, never over other files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import panovlm.data.synthetic.write as write_module
from panovlm.config.schema import SyntheticScenes
from panovlm.data.samples import read_tables
from panovlm.data.synthetic import write_scenes
from panovlm.errors import DataError


def settings(root: Path, **changes: int) -> SyntheticScenes:
    sizes = {"train_scenes": 4, "val_scenes": 2, "test_scenes": 3, "width": 128}
    return SyntheticScenes(root=str(root), **{**sizes, **changes})


def content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_tables_and_pictures(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "scenes"
    write_scenes(settings(root))
    assert {path.name for path in root.iterdir()} == {
        "train.csv",
        "val.csv",
        "test.csv",
        "images",
        "scenes.json",
    }
    samples = {split: read_tables([root / f"{split}.csv"]) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in samples.items()} == {
        "train": 32,
        "val": 16,
        "test": 24,
    }
    assert samples["train"][0].image == root / "images" / "train-000001.jpg"
    assert Image.open(samples["train"][0].image).size == (128, 64)
    assert list(tmp_path.rglob("*.tmp")) == []
    with (root / "test.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            assert list(row) == ["url", "instruction", "response", "kind", "yaw", "seam"]
            on_seam = row["yaw"] != "" and abs(float(row["yaw"])) > 173
            assert row["seam"] == str(int(on_seam)) or 165 < abs(float(row["yaw"])) < 175


def test_the_same_settings_give_the_same_bytes_and_other_seeds_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_scenes(settings(tmp_path / name, seed=seed))
    assert content(tmp_path / "a") == content(tmp_path / "b")
    first, other = content(tmp_path / "a"), content(tmp_path / "c")
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_splits_share_no_scene_and_do_not_depend_on_each_other(tmp_path: Path) -> None:
    write_scenes(settings(tmp_path / "a"))
    write_scenes(settings(tmp_path / "b", train_scenes=1))
    pictures = {name: data for name, data in content(tmp_path / "a").items() if ".jpg" in name}
    assert len(set(pictures.values())) == len(pictures)
    assert content(tmp_path / "b")["test.csv"] == content(tmp_path / "a")["test.csv"]


def test_complete_folders_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "scenes"
    write_scenes(settings(root))
    monkeypatch.setattr(write_module, "render", None)  # rendering would fail
    write_scenes(settings(root))


@pytest.mark.parametrize("damage", ["picture", "table", "note"])
def test_incomplete_folders_are_made_anew(tmp_path: Path, damage: str) -> None:
    root = tmp_path / "scenes"
    write_scenes(settings(root))
    whole = content(root)
    if damage == "note":
        (root / "scenes.json").write_text('{"digest": ')
    else:
        (root / {"picture": "images/val-000002.jpg", "table": "val.csv"}[damage]).unlink()
    write_scenes(settings(root))
    assert content(root) == whole


def test_other_settings_replace_the_scenes(tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    write_scenes(settings(root, train_scenes=6))
    write_scenes(settings(root, seed=3))
    assert len(list((root / "images").iterdir())) == 9
    assert json.loads((root / "scenes.json").read_text())["settings"]["seed"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "scenes"
    write_scenes(settings(root))
    before = content(root)
    calls: list[int] = []

    def fails_at_the_third(*args: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("disk full")
        return np.zeros((32, 64, 3), np.uint8)

    monkeypatch.setattr(write_module, "render", fails_at_the_third)
    with pytest.raises(OSError, match="disk full"):
        write_scenes(settings(root, seed=3))
    assert content(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_the_faster_of_two_processes_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "scenes"
    own = write_module.render

    def render_while_another_process_finishes(*args: Any) -> np.ndarray:
        monkeypatch.setattr(write_module, "render", own)
        write_scenes(settings(root))
        inodes.append(root.stat().st_ino)
        return own(*args)

    inodes: list[int] = []
    monkeypatch.setattr(write_module, "render", render_while_another_process_finishes)
    write_scenes(settings(root))
    assert inodes == [root.stat().st_ino]
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_foreign_files_are_never_deleted(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / "notes.txt").write_text("keep me")
    with pytest.raises(DataError, match=r"would delete what is there \(notes\.txt\)"):
        write_scenes(settings(root))
    (root / "notes.txt").unlink()
    write_scenes(settings(root))  # an empty folder is fine
    (root / "notes.txt").write_text("keep me")
    write_scenes(settings(root))  # complete: nothing to do
    with pytest.raises(DataError, match=r"notes\.txt"):
        write_scenes(settings(root, seed=1))
    assert (root / "notes.txt").read_text() == "keep me"
