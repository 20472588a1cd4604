"""The cells of a sweep: which settings each of them has, and whether they can be trained."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from panovlm.config.load import load_settings
from panovlm.config.schema import Settings
from panovlm.errors import ConfigError, PanoVLMError
from panovlm.evaluation.ledger import digest
from panovlm.sweep.schema import Overrides, SweepFile

Choice = tuple[tuple[str, str], ...]
"""Factors with the value chosen for each; empty: the base."""

BASE: Choice = ()


@dataclass(frozen=True)
class Cell:
    """One training of a sweep.

    Attributes:
        choice: what distinguishes it from the base; of two choices with equal settings the first.
        seed: ``environment.seed``.
        settings: all of its settings.
    """

    choice: Choice
    seed: int
    settings: Settings

    @property
    def name(self) -> str:
        """What it is called, such as ``views=resize, seed 0``."""
        return f"{named(self.choice)}, seed {self.seed}"

    @property
    def digest(self) -> str:
        """What it is known by."""
        return settings_digest(self.settings)


@dataclass(frozen=True)
class Sweep:
    """All cells of a sweep.

    Attributes:
        mode: as in the file.
        digests: for every choice the digest of each of its trainings, by seed; the base is first.
        cells: every training once, the base's first.
    """

    mode: str
    digests: dict[Choice, dict[int, str]]
    cells: list[Cell]


def named(choice: Choice) -> str:
    """Return a choice in words."""
    return ", ".join(f"{factor}={value}" for factor, value in choice) or "base"


def settings_digest(settings: Settings) -> str:
    """Return the digest of what decides a cell's result: not its name, not where it is written."""
    plain = settings.model_dump(mode="json")
    del plain["experiment"], plain["paths"]["runs_dir"], plain["paths"]["eval_dir"]
    del plain["paths"]["cache_dir"]
    return digest(plain)


def read_cells(path: Path, sweep: SweepFile, overrides: Sequence[str] = ()) -> Sweep:
    """Make the cells of a sweep.

    Args:
        path: file of the sweep; that of the base is found from there.
        sweep: its content.
        overrides: settings laid over the base, below what the factors set.

    Raises:
        ConfigError: settings of cells are wrong; one line per problem, with the cell.
    """
    config = path.parent / sweep.base.config
    below = [*_lines(sweep.base.set), *overrides]
    digests: dict[Choice, dict[int, str]] = {}
    cells: dict[str, Cell] = {}
    problems: list[str] = []
    # A mistake in the base is told once, not for every cell.
    load_settings(config, below, origin=f"{path}, base")
    for choice, chosen in _choices(sweep):
        above = [line for values in chosen for line in _lines(values)]
        for seed in (*sweep.seeds, *(sweep.base_seeds if choice == BASE else ())):
            lines = [*below, *above, f"environment.seed={seed}"]
            try:
                settings = load_settings(config, lines, origin=f"{path}, {named(choice)}")
            except ConfigError as error:
                problems += str(error).splitlines()
                break
            cell = Cell(choice, seed, settings)
            digests.setdefault(choice, {})[seed] = cell.digest
            cells.setdefault(cell.digest, cell)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return Sweep(sweep.mode, digests, list(cells.values()))


def check_cells(cells: Iterable[Cell]) -> None:
    """Build the model of every cell without weights, as ``panovlm train --dry-run`` does.

    Raises:
        ConfigError: settings of cells do not fit together; one line per cell.
    """
    from panovlm.training.dry_run import plan

    problems: list[str] = []
    for cell in cells:
        try:
            plan(cell.settings)
        except PanoVLMError as error:
            problems.append(f"{named(cell.choice)}: {error}")
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def _choices(sweep: SweepFile) -> Iterator[tuple[Choice, tuple[Overrides, ...]]]:
    """Yield every choice with its settings, the base first."""
    yield BASE, ()
    factors = sweep.factors.items()
    if sweep.mode == "grid":
        for values in itertools.product(*(values.items() for _, values in factors)):
            names = tuple(zip(sweep.factors, (name for name, _ in values), strict=True))
            yield names, tuple(settings for _, settings in values)
        return
    for factor, values in factors:
        for name, settings in values.items():
            yield ((factor, name),), (settings,)


def _lines(overrides: Overrides) -> list[str]:
    """Return settings as overrides ``key=value``; JSON is YAML."""
    return [f"{name}={json.dumps(value)}" for name, value in overrides.items()]
