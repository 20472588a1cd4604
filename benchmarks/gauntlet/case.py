"""What a case is: a checkpoint on the disk, and the model that it was written from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.gauntlet.stock import Stock

from panovlm.models.model import PanoramaVLM


@dataclass(frozen=True)
class Made:
    """A checkpoint that was written, and what whoever opens it knows.

    Attributes:
        path: what is opened.
        model: the model that was trained; nothing else is right.
        stated: settings that the user states, by dotted name.
        weights: which of two copies of the weights the user means.
        adapters: folder of adapters that PEFT can open.
        base: the model that those adapters were trained on.
        canary: file that exists once code from the checkpoint was run.
    """

    path: Path
    model: PanoramaVLM
    stated: Mapping[str, Any] = field(default_factory=dict[str, Any])
    weights: Literal["model", "ema"] | None = None
    adapters: Path | None = None
    base: PanoramaVLM | None = None
    canary: Path | None = None


@dataclass(frozen=True)
class Case:
    """One checkpoint of the gauntlet.

    Attributes:
        group: heading that it stands under.
        name: what it is.
        make: writes it into an empty folder.
        valid: what is there and what the user states determine the model, so that refusing it
            is a fault. Of all others, right and a clear error are both good ends.
    """

    group: str
    name: str
    make: Callable[[Stock, Path], Made]
    valid: bool
