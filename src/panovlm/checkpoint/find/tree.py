"""Finds the checkpoints in a folder and below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from panovlm.checkpoint.find.locate import ADAPTER_FILES, ADAPTERS, SUFFIXES, TOKENIZER
from panovlm.checkpoint.formats import is_checkpoint_folder
from panovlm.checkpoint.formats.lookalike import describe_unfinished
from panovlm.checkpoint.formats.sharded import read_index
from panovlm.checkpoint.formats.source import Source
from panovlm.errors import CheckpointError

INDEX = ".index.json"
COMPANIONS = (TOKENIZER, ADAPTERS)
"""Folders that belong to the checkpoint beside them."""


def checkpoints_below(root: Path) -> Iterator[Path]:
    """Yield every checkpoint in ``root`` and below it, folder by folder, in the order of names.

    Hidden files and folders (unfinished writes, caches) are left out, and so are shards, which are
    parts of the checkpoint that their index describes. Links to folders are not followed.
    """
    if is_folder_checkpoint(root):
        yield root
        return
    yield from checkpoints_in(root)
    for folder in sorted(entry for entry in root.iterdir() if _may_hold(entry)):
        if not is_folder_checkpoint(folder):
            yield from checkpoints_below(folder)


def checkpoints_by_folder(root: Path) -> dict[Path, list[Path]]:
    """Return every checkpoint below ``root`` by the folder that it lies in.

    Raises:
        CheckpointError: ``root`` is no folder, or holds none.
    """
    if not root.is_dir():
        raise CheckpointError(f"{root} is no folder; a tree of checkpoints was expected.")
    found: dict[Path, list[Path]] = {}
    for path in checkpoints_below(root):
        found.setdefault(path.parent, []).append(path)
    if not found:
        raise CheckpointError(
            f"there is no checkpoint in {root} or below it (looked for {', '.join(SUFFIXES)}, "
            f"*{INDEX} and folders of distributed training)."
        )
    return found


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of one folder, sorted by name: files, and folders that are one."""
    seen = [path for path in folder.iterdir() if path.name[0] != "."]
    files = [path for path in seen if path.is_file()]
    indices = [path for path in files if path.name.endswith(INDEX)]
    shards = {shard.name for index in indices for shard in _shards(index)}
    parts = {*shards, *ADAPTER_FILES}
    single = [path for path in files if path.suffix in SUFFIXES and path.name not in parts]
    whole = [path for path in seen if _may_hold(path) and is_folder_checkpoint(path)]
    return sorted(single + indices + whole)


def is_tree(path: Path) -> bool:
    """Tell whether a path is a folder that holds no checkpoint itself but has some below it."""
    if not path.is_dir() or is_folder_checkpoint(path) or checkpoints_in(path):
        return False
    return next(checkpoints_below(path), None) is not None


def is_folder_checkpoint(folder: Path) -> bool:
    """Tell whether a folder is one checkpoint as a whole, or the unfinished beginning of one."""
    return is_checkpoint_folder(folder) or bool(describe_unfinished(folder))


def _may_hold(entry: Path) -> bool:
    """Tell whether checkpoints of their own may lie below an entry of a folder."""
    if entry.name[0] == "." or entry.name in COMPANIONS:
        return False
    return entry.is_dir() and not entry.is_symlink() and os.access(entry, os.R_OK | os.X_OK)


def _shards(index: Path) -> tuple[Path, ...]:
    """Return the shards of an index; none where it cannot be read, which its own line will say."""
    try:
        with Source(index) as source:
            return read_index(source).shards
    except CheckpointError:
        return ()
