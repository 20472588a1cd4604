"""The file of a sweep: a base experiment, and factors whose values are laid over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from panovlm.config.base import Field, StrictModel
from panovlm.config.load import load_mapping
from panovlm.config.validation import validate

Overrides = dict[str, Any]
"""Settings by dotted name, such as ``{"models.pe_type": "directions"}``; a value may be a block."""


class Base(StrictModel):
    """The experiment that every cell starts from."""

    config: str
    """Its file, as seen from the sweep's own."""
    set: Overrides = Field(default_factory=dict)
    """Settings laid over it."""


class SweepFile(StrictModel):
    """What is varied, and how."""

    base: Base
    mode: Literal["one_factor", "grid"] = "one_factor"
    """``one_factor``: each value of each factor alone, laid over the base. ``grid``: every
    combination of one value per factor."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """``environment.seed`` of the trainings of every cell, the base's included."""
    base_seeds: tuple[int, ...] = ()
    """Further seeds, of the base only: how far its trainings lie apart tells how much of a
    difference is luck."""
    factors: dict[str, dict[str, Overrides]] = Field(min_length=1)
    """Values of each factor by name; one without settings is the base's own."""


def read_sweep(path: Path) -> SweepFile:
    """Read the file of a sweep.

    Raises:
        ConfigError: it is missing, no YAML, or does not say what it must; one line per problem.
    """
    return validate(SweepFile, *load_mapping(path))
