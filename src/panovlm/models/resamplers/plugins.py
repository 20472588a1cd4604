"""Architectures that other packages bring, through the entry point group ``panovlm.resamplers``."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from panovlm.errors import ConfigError
from panovlm.models.resamplers.recipe import ResamplerRecipe

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "panovlm.resamplers"


def plugins() -> list[type[ResamplerRecipe]]:
    """Return the architectures of other packages.

    Raises:
        ConfigError: one of them cannot be imported.
    """
    if not announced():
        return []
    from importlib.metadata import entry_points

    return [_load(entry) for entry in entry_points(group=GROUP)]


def announced() -> bool:
    """Tell whether an installed package may bring one.

    Few environments have such a package, and importing ``importlib.metadata`` takes a good part of
    the time of a short command. What lies in folders is looked through without it, at the places
    where it looks; where packages may be anywhere else, it is asked.
    """
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_distributions")]
    return finders != [PathFinder] or any(_may_bring_one(Path(entry)) for entry in sys.path)


def _may_bring_one(place: Path) -> bool:
    """Tell whether a package at a place of the import path may bring an architecture."""
    if place.is_file():  # an archive
        return True
    for folder in place.iterdir() if place.is_dir() else ():
        if folder.name.lower().endswith((".dist-info", "egg-info")):
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                if GROUP.encode() in (folder / "entry_points.txt").read_bytes():
                    return True
    return False


def _load(entry: EntryPoint) -> type[ResamplerRecipe]:
    """Import another package's architecture."""
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        package = entry.dist.name if entry.dist else "that brings it"
        raise ConfigError(
            f"the resampler {entry.name!r} of the package {package} cannot be imported: {error}. "
            "Mend or uninstall that package."
        ) from error
