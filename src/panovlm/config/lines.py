"""Where each key of a configuration was written, so that an error can point at it.

Keys move between the file and the settings: old names are translated and flat fields are nested.
The place and the spelling that the user wrote travel with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Path = tuple[str | int, ...]
"""Keys from the root to a value; integers index lists."""

Keys = tuple[str, ...]
"""A path through blocks only."""

COMMAND_LINE = "command line"


def dotted(path: Path) -> str:
    """Return ``("data", "csv_train", 0)`` as ``data.csv_train[0]``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{_shown(step)}" for step in path)
    return text.removeprefix(".")


def _shown(key: str) -> str:
    """Return a key as one printable word; only a strange one needs quotes."""
    return key if key and key.isprintable() else repr(key)


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

    def moved(self, old: Path, new: Path) -> Lines:
        """Return a copy in which ``new``, with all below it, stands where ``old`` did."""
        return Lines(
            self.source,
            {
                new + path[len(old) :] if path[: len(old)] == old else path: place
                for path, place in self.written.items()
            },
        )

    def under(self, upper: Lines) -> Lines:
        """Return these lines with those of ``upper`` laid over them."""
        return Lines(self.source, {**self.written, **upper.written})
