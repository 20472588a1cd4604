"""Typing of a configuration: one readable line per problem.

A line names file and line, the key as it was written, what is wrong, what was expected, and for
an unknown key the nearest one that exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from panovlm.config.base import StrictModel
from panovlm.config.fields import block_at, canonical_type, paths_of
from panovlm.config.lines import Lines, Path, dotted
from panovlm.config.problems import REQUIRED, UNKNOWN, Problem, ValidationError, nearest, sentence
from panovlm.errors import ConfigError

Model = TypeVar("Model", bound=StrictModel)


def validate(model: type[Model], mapping: Mapping[str, Any], lines: Lines | None = None) -> Model:
    """Build ``model`` from a nested mapping of today's names.

    Args:
        model: settings class.
        mapping: plain values.
        lines: where the keys were written, for messages.

    Raises:
        ConfigError: one line per problem.
    """
    try:
        return model.model_validate(mapping)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, model, mapping, lines or Lines()))) from None


def explain(
    error: ValidationError, model: type[StrictModel], mapping: Mapping[str, Any], lines: Lines
) -> list[str]:
    """Return one line per problem."""
    problems = [
        _line(lines.describe(path), _what(problem, model, mapping))
        for problem in error.problems
        if (path := _written_path(problem, model, mapping)) is not None
    ]
    # Everything was filtered out only if a default itself is refused; then show it as it is.
    return problems or [_line("", str(problem)) for problem in error.problems]


def _line(place: str, what: str) -> str:
    return (f"{place}: " if place else "") + sentence(what)


def _written_path(
    problem: Problem, model: type[StrictModel], mapping: Mapping[str, Any]
) -> Path | None:
    """Return the key that a problem is about, or ``None`` if the user did not write it.

    A value is reported again wherever it was filled in, and one number that stands for a list as
    the list's items.
    """
    if problem.said == REQUIRED:
        return problem.path
    here: object = mapping
    for depth, step in enumerate(problem.path):
        path = problem.path[:depth]
        if isinstance(here, Mapping):
            if step not in here:
                block = block_at(model, path, mapping)
                return None if block and step in block.model_fields else path
            here = cast("Mapping[str | int, object]", here)[step]
        elif isinstance(here, Sequence) and isinstance(step, int) and step < len(here):
            here = here[step]
        elif not isinstance(here, StrictModel | list | tuple):
            return path
    return problem.path


def _what(problem: Problem, model: type[StrictModel], mapping: Mapping[str, Any]) -> str:
    """Say what is wrong at one key."""
    if problem.said == UNKNOWN:
        return _unknown(problem.path, model, mapping)
    return problem.what


def _unknown(path: Path, model: type[StrictModel], mapping: Mapping[str, Any]) -> str:
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
    return "unknown key" + (f"; known here: {', '.join(known)}" if 0 < len(known) <= 12 else "")


def _resampler_type(mapping: Mapping[str, Any]) -> str:
    models = mapping.get("models", mapping)
    named = models.get("resampler_type") if isinstance(models, Mapping) else None
    return canonical_type(named) or "mlp"
