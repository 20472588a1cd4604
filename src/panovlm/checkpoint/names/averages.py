"""Averaged copies of weights (EMA, SWA) that trainers keep beside the live ones.

A file with both has two readings, and no rule can tell which one is meant: whoever loads it says
``model`` or ``ema``. Here stand the names by which the averaged copy is recognised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

from panovlm.errors import CheckpointError

Weights = Literal["model", "ema"]
"""Which of two copies is meant: the live weights, or their average."""

ENTRIES = frozenset(
    {"state_dict_ema", "ema_state_dict", "ema", "ema_model", "model_ema", "ema_weights"}
)
"""Top-level entries of a torch file that hold averaged weights (timm, torchvision and others)."""

SEGMENTS = frozenset(
    {
        "ema",
        "ema_model",
        "model_ema",
        "ema_module",
        "module_ema",
        "averaged_model",
        "average_model",
        "swa_model",
    }
)
"""Modules, in front of a tensor's name, that hold averaged weights."""

LIVE = "online_model"
"""Inside such a module, the live model that it follows (ema-pytorch)."""

COUNTERS = frozenset({"n_averaged", "num_updates", "decay", "initted", "step"})
"""What such a module holds besides weights."""

_LIGHTNING = frozenset({"averaging_state", "current_model_state"})


def entry_is_averaged(entry: str, entries: Collection[object]) -> bool:
    """Tell whether an entry of a torch file holds averaged weights.

    Lightning's ``WeightAveraging`` writes the average under ``state_dict`` and keeps the live
    weights under ``current_model_state``.

    Args:
        entry: the entry's name.
        entries: the names of all entries of the file.
    """
    if lightning_averages(entries):
        return entry == "state_dict"
    return entry in ENTRIES


def lightning_averages(entries: Collection[object]) -> bool:
    """Tell by its entries whether Lightning's ``WeightAveraging`` wrote a checkpoint."""
    return _LIGHTNING.issubset(entries)


def is_averaged(segments: Iterable[str]) -> bool:
    """Tell whether a tensor with these segments in front of its name is an averaged copy."""
    found = set(segments)
    return bool(found & SEGMENTS) and LIVE not in found


def choose(weights: Weights | None, live: str, averaged: str, what: str) -> Weights:
    """Return which of two readings is meant.

    Args:
        weights: what the caller said.
        live: where the live weights are; empty: there are none.
        averaged: where the averaged ones are, likewise.
        what: the file, for messages.

    Raises:
        CheckpointError: both are there and nothing was said, or the one that was asked for is not.
    """
    if weights is None and live and averaged:
        raise CheckpointError(
            f"{what} can be read in two ways: the live weights ({live}), or their running average "
            f'({averaged}). Say which one is meant: --weights model or --weights ema (weights="…" '
            "in Python)."
        )
    if weights == "ema" and not averaged:
        raise CheckpointError(
            f"{what} holds no averaged weights, only {live}; leave --weights ema out."
        )
    if weights == "model" and not live:
        raise CheckpointError(
            f"{what} holds averaged weights only ({averaged}); take them with --weights ema."
        )
    return weights or ("model" if live else "ema")
