"""What is wrong with given values, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from panovlm.config.lines import Path, dotted
from panovlm.errors import ConfigError

UNKNOWN = "unknown key"
REQUIRED = "is required"


class Problem(NamedTuple):
    """One thing that is wrong."""

    path: Path
    """Keys from the settings that were read to the value."""
    expected: tuple[str, ...] = ()
    """What the value could have been, in words."""
    given: Any = None
    """What it is instead."""
    said: str = ""
    """What there is to say where it is no matter of this one value."""

    @property
    def what(self) -> str:
        """What is wrong, and how to mend it where that can be told."""
        if self.said:
            return self.said.rstrip(".")
        hint = _hint(self.expected, self.given)
        return f"expected {' or '.join(self.expected)}, got {shown(self.given)}{hint}"

    def below(self, step: str | int) -> Problem:
        """Return the problem as seen from the block or list around."""
        return self._replace(path=(step, *self.path))

    def __str__(self) -> str:
        return ": ".join(filter(None, (dotted(self.path), self.what)))


class ValidationError(ConfigError, ValueError):
    """Values cannot be those of the settings that they were given for.

    Attributes:
        problems: all that is wrong with them.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type[ValidationError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


def unexpected(value: Any, *expected: str) -> ValidationError:
    """Return the error that ``value`` is none of what is expected."""
    return ValidationError([Problem((), expected, value)])


def sentence(what: str) -> str:
    """Return what is wrong with a full stop, unless it ends with a question."""
    return what if what.endswith("?") else f"{what}."


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known word that ``word`` most probably means, if any is near."""
    import difflib

    found = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def shown(value: object) -> str:
    """Return a value as it looks in YAML, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a block of keys"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(expected: Sequence[str], given: object) -> str:
    """Return how to mend a wrong value where that can be told."""
    if tuple(expected) == ("text",) and isinstance(given, int | float):
        return "; put it in quotes"
    if isinstance(given, str):
        near = nearest(given, " ".join(expected).split("'")[1::2])
        return f"; did you mean {near}?" if near else ""
    return ""
