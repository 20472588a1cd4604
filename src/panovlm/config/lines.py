"""Where each key of a configuration was written, so that an error can point at it.

Keys move between the file and the settings: old names are translated and flat fields are nested.
The place and the spelling that the user wrote travel with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Path = tuple[str | int, ...]
"""Keys from the root to a value; integers index lists."""

COMMAND_LINE = "command line"


def dotted(path: Path) -> str:
    """Return ``("data", "csv_train", 0)`` as ``data.csv_train[0]``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


@dataclass(frozen=True)
class Lines:
    """Maps keys to the places where they were written.

    Args:
        source: file that the configuration came from; empty for a mapping made in memory.
        written: for every key its place (``configs/a.yaml:12``, ``command line``) and the key as
            it was spelt there.
    """

    source: str = ""
    written: Mapping[Path, tuple[str, Path]] = field(default_factory=dict[Path, tuple[str, Path]])

    def describe(self, path: Path) -> str:
        """Return place and key, such as ``configs/a.yaml:12: models.lm_name``.

        A key that was not written itself stands at the line of the nearest block around it.
        """
        for end in range(len(path), 0, -1):
            if path[:end] in self.written:
                place, spelt = self.written[path[:end]]
                return ": ".join(filter(None, (place, dotted(spelt + path[end:]))))
        return ": ".join(filter(None, (self.source, dotted(path))))

    def moved(self, moves: Iterable[tuple[Path, Path]]) -> Lines:
        """Return a copy in which every ``new`` stands, with all below it, where ``old`` did."""
        written = dict(self.written)
        for old, new in moves:
            for path in [p for p in written if p[: len(old)] == old]:
                written[new + path[len(old) :]] = written.pop(path)
        return Lines(self.source, written)

    def under(self, upper: Lines) -> Lines:
        """Return these lines with those of ``upper`` laid over them."""
        return Lines(self.source, {**self.written, **upper.written})
