"""Whether an installed package may bring an architecture, told without ``importlib.metadata``."""

from __future__ import annotations

import sys
import zipfile
from importlib.machinery import PathFinder
from importlib.metadata import distributions
from pathlib import Path

import pytest

from panovlm.models.resamplers.plugins import GROUP, announced

ENTRY = f"[{GROUP}]\nodd = odd.recipe:Odd\n"


def told_by_the_library(places: list[str]) -> bool:
    found = distributions(path=places)
    return any(entry.group == GROUP for package in found for entry in package.entry_points)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole import path."""
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "absent")])
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "brings"),
    [
        ("odd-1.dist-info/entry_points.txt", ENTRY, True),
        ("Odd.EGG-INFO/entry_points.txt", ENTRY, True),
        ("odd-1.dist-info/entry_points.txt", "[console_scripts]\nodd = odd:main\n", False),
        ("odd-1.dist-info/METADATA", f"Name: odd\nSummary: {GROUP}\n", False),
        ("odd.egg-info", "Name: odd\n", False),
        ("odd/entry_points.txt", ENTRY, False),
    ],
)
def test_packages_in_folders(alone: Path, file: str, text: str, brings: bool) -> None:
    (alone / file).parent.mkdir(exist_ok=True)
    (alone / file).write_text(text)
    assert announced() is brings is told_by_the_library(sys.path)


def test_an_egg(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    egg = alone / "odd.egg"
    (egg / "EGG-INFO").mkdir(parents=True)
    (egg / "EGG-INFO" / "entry_points.txt").write_text(ENTRY)
    assert announced() is told_by_the_library(sys.path) is False
    monkeypatch.setattr(sys, "path", [str(egg)])
    assert announced() is told_by_the_library(sys.path) is True


def test_archives_and_other_finders_are_left_to_the_library(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert announced() is False
    with zipfile.ZipFile(alone / "odd.zip", "w") as archive:
        archive.writestr("odd-1.dist-info/entry_points.txt", ENTRY)
    monkeypatch.setattr(sys, "path", [str(alone / "odd.zip")])
    assert announced() is told_by_the_library(sys.path) is True

    class Finder(PathFinder):
        """A finder that knows packages of its own."""

    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [PathFinder, Finder])
    assert announced() is True
