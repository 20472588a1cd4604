"""Typing of a configuration: one readable line per problem instead of pydantic's report.

A line names file and line, the key as it was written, what is wrong, what was expected, and for
an unknown key the nearest one that exists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from panovlm.config.fields import block_at, canonical_type, nearest, paths_of
from panovlm.config.lines import Lines, Path, dotted
from panovlm.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

_EXPECTED: dict[str, Callable[[dict[str, Any]], str]] = {
    "int": lambda limits: "a whole number",
    "float": lambda limits: "a number",
    "finite_number": lambda limits: "a finite number",
    "bool": lambda limits: "true or false",
    "string": lambda limits: "text",
    "list": lambda limits: "a list",
    "tuple": lambda limits: "a list",
    "dict": lambda limits: "a block of keys",
    "model": lambda limits: "a block of keys",
    "literal_error": lambda limits: limits["expected"],
    "greater_than": lambda limits: f"more than {limits['gt']:g}",
    "greater_than_equal": lambda limits: f"at least {limits['ge']:g}",
    "less_than": lambda limits: f"less than {limits['lt']:g}",
    "less_than_equal": lambda limits: f"at most {limits['le']:g}",
    "too_long": lambda limits: f"at most {limits['max_length']} values",
    "too_short": lambda limits: f"at least {limits['min_length']} values",
}
"""What pydantic's error types demand, by type or by its first word (``int_parsing``)."""


def validate(model: type[Model], mapping: Mapping[str, Any], lines: Lines | None = None) -> Model:
    """Build ``model`` from a nested mapping of today's names.

    Args:
        model: settings class.
        mapping: plain values.
        lines: where the keys were written, for messages.

    Raises:
        ConfigError: one line per problem.
    """
    lines = lines or Lines()
    try:
        settings = model.model_validate(mapping)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, model, mapping, lines))) from None
    # pydantic reads true as 1, which is never meant.
    problems = [
        _line(lines.describe(path), f"expected a number, got {_shown(value)}")
        for path, value in _booleans_read_as_numbers(mapping, settings)
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def _booleans_read_as_numbers(
    given: object, read: object, at: Path = ()
) -> Iterator[tuple[Path, bool]]:
    if isinstance(given, bool):
        if not isinstance(read, bool) and isinstance(read, int | float):
            yield at, given
    elif isinstance(given, Mapping):
        below = vars(read) if isinstance(read, BaseModel) else read
        if isinstance(below, Mapping):
            for key in given.keys() & below.keys():
                yield from _booleans_read_as_numbers(given[key], below[key], (*at, key))


def explain(
    error: ValidationError, model: type[BaseModel], mapping: Mapping[str, Any], lines: Lines
) -> list[str]:
    """Return one line per problem, without repetition."""
    grouped: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        path = _written_path(detail, model, mapping)
        if path is not None:
            grouped.setdefault(path, []).append(detail)
    problems = [
        _line(lines.describe(path), _what(path, details, model, mapping))
        for path, details in grouped.items()
    ]
    # Everything was filtered out only if a default itself is refused; then show it as it is.
    return problems or [f"{dotted(d['loc'])}: {d['msg']}." for d in error.errors()]


def _line(place: str, what: str) -> str:
    return (f"{place}: " if place else "") + what + ("" if what.endswith("?") else ".")


def _written_path(
    detail: ErrorDetails, model: type[BaseModel], mapping: Mapping[str, Any]
) -> Path | None:
    """Return the key that a problem is about, or ``None`` if the user did not write it.

    pydantic appends the member of a union that it tried (``max_text_length.int``), and reports a
    value again wherever it was filled in.
    """
    if detail["type"] == "missing":
        return detail["loc"]
    here: object = mapping
    for depth, step in enumerate(detail["loc"]):
        path = detail["loc"][:depth]
        if isinstance(here, Mapping):
            if step not in here:
                block = block_at(model, path, mapping)
                return None if block and step in block.model_fields else path
            here = cast("Mapping[str | int, object]", here)[step]
        elif isinstance(here, Sequence) and isinstance(step, int) and step < len(here):
            here = here[step]
        elif not isinstance(here, BaseModel):
            return path
    return detail["loc"]


def _what(
    path: Path, details: list[ErrorDetails], model: type[BaseModel], mapping: Mapping[str, Any]
) -> str:
    """Say what is wrong at one key; several details are the members of one union."""
    first = details[0]
    if first["type"] == "extra_forbidden":
        return _unknown(path, model, mapping)
    if first["type"] == "missing":
        return "is missing" if isinstance(path[-1], int) else "is required"
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ").rstrip(".")
    expected = list(dict.fromkeys(_expectation(detail) for detail in details))
    if "a number" in expected and "a whole number" in expected:
        expected.remove("a whole number")
    given = first["input"]
    return f"expected {' or '.join(expected)}, got {_shown(given)}{_hint(expected, given)}"


def _expectation(detail: ErrorDetails) -> str:
    kind = detail["type"]
    phrase = _EXPECTED.get(kind) or _EXPECTED.get(kind.split("_")[0])
    return phrase(detail.get("ctx", {})) if phrase else detail["msg"].removeprefix("Input should ")


def _hint(expected: list[str], given: object) -> str:
    """Return how to mend a wrong value where that can be told."""
    if expected == ["text"] and isinstance(given, int | float):
        return "; put it in quotes"
    if isinstance(given, str):
        near = nearest(given, re.findall(r"'([^']*)'", " ".join(expected)))
        return f"; did you mean {near}?" if near else ""
    return ""


def _unknown(path: Path, model: type[BaseModel], mapping: Mapping[str, Any]) -> str:
    """Name the key that an unknown one probably means."""
    key = str(path[-1])
    block = block_at(model, path[:-1], mapping)
    known = list(block.model_fields) if block else []
    homes = [
        f"in {dotted(place[:-1])}" if len(place) > 1 else "at the top level"
        for place in paths_of(model, _resampler_type(mapping))
        if place[-1] == key
    ]
    if homes:
        return f"unknown key here; it belongs {' or '.join(homes)}"
    near = nearest(key, known)
    if near:
        return f"unknown key; did you mean {near}?"
    return "unknown key" + (f"; known here: {', '.join(known)}" if len(known) <= 12 else "")


def _resampler_type(mapping: Mapping[str, Any]) -> str:
    models = mapping.get("models", mapping)
    named = models.get("resampler_type") if isinstance(models, Mapping) else None
    return canonical_type(named) or "mlp"


def _shown(value: object) -> str:
    """Return a value as it looks in YAML, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping | BaseModel):
        return "a block of keys"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
