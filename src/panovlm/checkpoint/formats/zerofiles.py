"""Finds the files of a DeepSpeed checkpoint by their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from panovlm.checkpoint.formats.source import Source, inside
from panovlm.errors import CheckpointError

LATEST = "latest"
"""The file that names the folder of the last save."""

_MODULE = "mp_rank_00_model_states.pt"
_MODULE_OF_0 = "zero_pp_rank_0_mp_rank_00_model_states.pt"
_STATES = re.compile(r".*(_|-)(model_states|optim_states)\.pt|.*optim_states\.pt")
_MODEL_STATES = re.compile(r"zero_pp_rank_(\d{1,6})_mp_rank_00_model_states\.pt")
_OPTIM_STATES = re.compile(r"(?:bf16_)?zero_pp_rank_(\d{1,6})_mp_rank_00_?optim_states\.pt")
_MAX_TAG = 255


class StateFiles(NamedTuple):
    """The files of one save.

    Attributes:
        folder: the folder that holds them.
        models: the module's states; one file, or that of each process in order.
        shares: what each process keeps, in order; empty if none has left it.
        stage_3: whether the parameters are cut up.
    """

    folder: Path
    models: tuple[Path, ...]
    shares: tuple[Path, ...]
    stage_3: bool


def is_deepspeed(folder: Path) -> bool:
    """Tell whether a folder was written by DeepSpeed, even if a part of it is missing."""
    if _holds_states(folder):
        return True
    below = (path for path in folder.iterdir() if path.is_dir())
    return (folder / LATEST).is_file() and any(map(_holds_states, below))


def find_states(folder: Path) -> Path:
    """Return the folder of the last save: ``folder``, or the one below that ``latest`` names.

    Raises:
        CheckpointError: the one that ``latest`` names is not there, or lies elsewhere.
    """
    if _holds_states(folder):
        return folder
    latest = folder / LATEST
    with Source(latest) as source:
        tag = source.read(0, min(source.size, _MAX_TAG)).decode("utf-8", "replace").strip()
    states = inside(folder, tag, named_by=latest)
    if not _holds_states(states):
        raise CheckpointError(
            f"{latest} names {tag!r} as the last checkpoint, and no such one is there. Copy the "
            "folder again, or give the folder of one save (global_stepN)."
        )
    return states


def list_states(folder: Path) -> StateFiles:
    """Return the files of one save.

    Raises:
        CheckpointError: files are missing, or belong to a kind of checkpoint that is not read.
    """
    names = sorted(path.name for path in folder.iterdir() if _STATES.fullmatch(path.name))
    models = _by_rank(folder, names, _MODEL_STATES)
    shares = _by_rank(folder, names, _OPTIM_STATES)
    known = {*models.values(), *shares.values(), _MODULE}
    other = next((name for name in names if name not in known), None)
    if other is not None or (models and _MODULE in names):
        raise CheckpointError(
            f"{folder} holds {other or _MODULE}, so it is the checkpoint of a model that was split "
            "into layers (pipeline), tensors (mp_rank_01) or experts, or of two trainings. Such "
            "are not read; convert it with the zero_to_fp32.py that DeepSpeed put beside it."
        )
    # A model hub's cache keeps files as links into one folder.
    links = (folder / (models[0] if models else _MODULE)).resolve().parent
    return StateFiles(
        folder,
        *(
            tuple(inside(folder, name, named_by=folder, links=links) for name in found)
            for found in (models.values() or [_MODULE], shares.values())
        ),
        stage_3=bool(models),
    )


def _by_rank(folder: Path, names: list[str], pattern: re.Pattern[str]) -> dict[int, str]:
    """Return the files of a kind in the order of the processes, which must all be there."""
    ranks = [(int(match[1]), match[0]) for name in names if (match := pattern.fullmatch(name))]
    found = dict(sorted(ranks))
    if list(found) != list(range(len(ranks))):
        raise CheckpointError(
            f"{folder}: files of the processes {', '.join(map(str, sorted(r for r, _ in ranks)))} "
            f"are there ({ranks[0][1]}, ...); each from 0 on must be there once. Copy the whole "
            "folder or take the checkpoint before it."
        )
    return found


def _holds_states(folder: Path) -> bool:
    return (folder / _MODULE).is_file() or (folder / _MODULE_OF_0).is_file()
