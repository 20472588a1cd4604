"""What the cells of a sweep gave, one file per cell, written when the cell is done.

A file holds all settings of its cell, and a cell is looked up by them: whatever was changed since,
in the sweep or in PanoVLM's own defaults, makes another cell of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from panovlm.atomic import remove_leftovers, write_json
from panovlm.config.base import StrictModel
from panovlm.config.schema import Settings
from panovlm.config.validation import validate
from panovlm.errors import ConfigError, DataError
from panovlm.sweep.cells import settings_digest

VERSION = 1
DIGITS = 16
"""Digits of a digest that name files and folders."""


class Result(StrictModel):
    """What one trained and evaluated cell gave."""

    accuracy: float
    """Share of right answers, 0..1."""
    interval: tuple[float, float]
    """Its 95 % interval (Wilson)."""
    groups: dict[str, dict[str, dict[str, Any]]]
    """Accuracy by kind of question and across the seam, as ``panovlm eval`` gives it."""
    correct: str
    """1 for a right answer and 0 for a wrong one, in the order of the questions."""
    panoramas: tuple[int, ...]
    """For every question the number of its panorama."""
    questions: str
    """Digest of the questions and their right answers."""
    most_frequent: float
    """Share of the most frequent right answer: what can be reached without looking."""
    views: int
    """Views per panorama."""
    vision_tokens: int
    """Vision tokens per panorama that the language model reads."""
    parameters: int
    """Parameters of the whole model."""
    train_seconds: float
    """Duration of the training."""
    train_cpu_seconds: float
    """Processor time of the training, its loader processes included."""
    eval_seconds: float
    """Duration of loading the checkpoint and of the evaluation."""


class Outcome(StrictModel):
    """How a cell ended: with a result, or with the message of what went wrong."""

    status: Literal["finished", "failed"]
    result: Result | None = None
    message: str | None = None


class Store:
    """The folder of a sweep.

    Args:
        folder: made if needed; ``cells`` holds the files, ``runs`` what is being trained.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cells = folder / "cells"

    def run_folder(self, digest: str) -> Path:
        """Return where a cell is trained."""
        return self.folder / "runs" / digest[:DIGITS]

    def read(self) -> dict[str, Outcome]:
        """Return all outcomes by the digest that the settings have today.

        Settings that today's PanoVLM would refuse belong to no cell and are left out.

        Raises:
            DataError: a file is none of these, or damaged.
        """
        found: dict[str, Outcome] = {}
        for file in sorted(self._cells.glob("[!.]*.json")):
            settings, outcome = _parse(file)
            try:
                digest = settings_digest(validate(Settings, settings))
            except ConfigError:
                continue
            if digest not in found or found[digest].status == "failed":
                found[digest] = outcome
        return found

    def write(self, digest: str, settings: Settings, outcome: Outcome) -> None:
        """Write down how a cell ended, whole or not at all."""
        self._cells.mkdir(parents=True, exist_ok=True)
        content = {
            "sweep_cell": VERSION,
            "outcome": outcome.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
        }
        write_json(self._cells / f"{digest[:DIGITS]}.json", content)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the folder for this process; the lock ends with the process, however it ends.

        Raises:
            ConfigError: another process holds it, or the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / "lock").open("wb")
        except OSError as error:
            raise ConfigError(
                f"{self.folder} cannot be written to: {error.strerror}; choose another folder with "
                "--output."
            ) from error
        with file:
            _lock(file.fileno(), self.folder)
            remove_leftovers(self.folder)
            yield


def _lock(descriptor: int, folder: Path) -> None:
    if os.name == "nt":  # it has no such lock
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"another sweep is running in {folder}; wait for it, or choose another folder with "
            "--output."
        ) from error


def _parse(file: Path) -> tuple[Mapping[str, Any], Outcome]:
    """Read one file."""
    mend = "restore it, or remove it to train its cell anew."
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); {mend}") from error
    if not isinstance(content, dict) or content.get("sweep_cell") != VERSION:
        raise DataError(f"{file} is no cell of a sweep of version {VERSION}; {mend}")
    settings = content.get("settings")
    if not isinstance(settings, dict):
        raise DataError(f"{file} does not hold the settings of its cell; {mend}")
    try:
        return settings, validate(Outcome, content.get("outcome") or {})
    except ConfigError as error:
        raise DataError(f"{file}: {error} {mend}") from error
