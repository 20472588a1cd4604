"""A configuration under translation: keys are renamed or dropped, and both are remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from panovlm.config.lines import Keys, Lines, dotted


@dataclass(frozen=True)
class Translated:
    """A configuration in today's names.

    Attributes:
        mapping: nested mapping; the input is not modified.
        notes: what was left out or decided, one sentence each, with the place in the file.
        lines: where today's keys were written.
    """

    mapping: dict[str, Any]
    notes: list[str]
    lines: Lines


def split(name: str) -> Keys:
    """Return ``models.lm_name`` as a path."""
    return tuple(name.split("."))


class Draft:
    """Working copy of a nested mapping.

    Args:
        raw: nested mapping, never modified.
        lines: where its keys were written.
    """

    def __init__(self, raw: Mapping[str, Any], lines: Lines | None = None) -> None:
        self.tree: dict[str, Any] = _copy(raw)
        self.notes: list[str] = []
        self.lines = lines or Lines()

    def result(self) -> Translated:
        """Return what became of the mapping."""
        return Translated(self.tree, self.notes, self.lines)

    def block(self, path: Keys) -> dict[str, Any]:
        """Return the block at ``path``; an empty one if there is none or something else."""
        here: Any = self.tree
        for step in path:
            here = here.get(step) if isinstance(here, dict) else None
        return here if isinstance(here, dict) else {}

    def get(self, path: Keys) -> Any:
        """Return the value at ``path``, or ``None``."""
        return self.block(path[:-1]).get(path[-1])

    def has(self, path: Keys) -> bool:
        """Tell whether the key at ``path`` is written."""
        return path[-1] in self.block(path[:-1])

    def put(self, path: Keys, value: Any) -> None:
        """Set a value, making the blocks around it; a key that is no block stays as it is."""
        here = self.tree
        for step in path[:-1]:
            if here.get(step) is None:
                here[step] = {}
            if not isinstance(here[step], dict):
                return  # the schema reports that block
            here = here[step]
        here[path[-1]] = value

    def rename(self, old: Keys, new: Keys, *, old_wins: bool = False) -> None:
        """Move a value to its name of today; ``null`` under an old name means "not given".

        Args:
            old: path that may be written.
            new: today's path.
            old_wins: which of two different values counts when both are written.
        """
        if not self.has(old):
            return
        value = self.block(old[:-1]).pop(old[-1])
        if value is None:
            return
        present = self.get(new)
        if present is not None and present != value:
            kept, dropped = (old, new) if old_wins else (new, old)
            self.note(dropped, f"ignored, because {dotted(kept)} says otherwise")
        if present is None or (old_wins and present != value):
            self.put(new, value)
            self.lines = self.lines.moved(old, new)

    def drop(self, path: Keys, why: str) -> None:
        """Remove a key if it is written, with a note unless it is ``null``."""
        if self.has(path) and self.block(path[:-1]).pop(path[-1]) is not None:
            self.note(path, f"left out; {why}")

    def note(self, path: Keys, text: str) -> None:
        """Add a note about a key."""
        self.notes.append(f"{self.lines.describe(path)}: {text}")


def _copy(value: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in value.items()}
