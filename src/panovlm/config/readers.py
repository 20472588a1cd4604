"""How a value is read as a type: what is accepted for it, and what else was expected.

Files that people write have ``"64"`` or ``no`` where 64 and false are meant, and lists where tuples
are; these are read. Nothing is rounded, cut off or guessed, and true is no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from enum import Enum
from math import isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from panovlm.config.problems import Problem, ValidationError, unexpected

Reader = Callable[[Any], Any]
"""Returns a value as the type that it was made for, or raises a :class:`ValidationError`."""

BLOCK = "a block of keys"
_EXACT = 2**53
"""Up to here every whole number is a float; beyond, a float may have been another number."""
_MOST = 2**63 - 1
_TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE = frozenset({"0", "off", "f", "false", "n", "no"})


class Limits(NamedTuple):
    """What a number, or the number of values in a list or block, must keep to.

    Stands in ``Annotated[int, Limits(ge=1)]`` where it holds for one member of a type only.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None


UNLIMITED = Limits()


class Before(NamedTuple):
    """Stands in ``Annotated[type, Before(function)]``: changes a value before it is read."""

    change: Callable[[Any], Any]


def reader_of(annotation: Any, limits: Limits = UNLIMITED) -> Reader:
    """Return the reader of a type.

    Args:
        annotation: the type, evaluated.
        limits: what its numbers, or the length of its list or block, must keep to.

    Raises:
        TypeError: it is none that settings can have.
    """
    origin = get_origin(annotation)
    if origin in _GENERIC:
        return _GENERIC[origin](get_args(annotation), limits)
    if annotation in (int, float):
        return _limited(_whole if annotation is int else _number, limits)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _member(annotation)
    if hasattr(annotation, "model_validate"):
        return annotation.model_validate
    raise TypeError(
        f"settings cannot have the type {annotation}; expected a number, bool, str, Literal, an "
        "enum, other settings, or tuple, dict and | of these"
    )


def _whole(value: Any) -> int:
    found = _any_whole(value)
    if abs(found) > _MOST:  # neither a float nor a tensor's size could be made of it
        raise unexpected(value, "a whole number of at most 63 bits")
    return found


def _any_whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    if isinstance(value, str) and value.isascii():
        digits, _, zeros = value.partition(".")
        with suppress(ValueError):
            return int(digits) if not zeros.strip("0 ") else int(value)
    raise unexpected(value, "a whole number")


def _number(value: Any) -> float:
    read = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            read = float(value)
    elif isinstance(value, str) and value.isascii():
        with suppress(ValueError):
            read = float(value)
    if read is None:
        raise unexpected(value, "a number")
    if not isfinite(read):
        raise unexpected(value, "a finite number")
    return read


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else value
    if isinstance(word, str | int | float):
        if word in _TRUE or word == 1:
            return True
        if word in _FALSE or word == 0:
            return False
    raise unexpected(value, "true or false")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise unexpected(value, "text")
    return str(value)


def _nothing(value: Any) -> None:
    if value is not None:
        raise unexpected(value, "nothing")


def _anything(value: Any) -> Any:
    return value


_PLAIN: dict[Any, Reader] = {bool: _truth, str: _text, NoneType: _nothing, Any: _anything}


def _limited(read: Reader, limits: Limits) -> Reader:
    """Return a reader of numbers within limits."""
    if limits == UNLIMITED:
        return read
    words = ((limits.ge, "at least"), (limits.gt, "more than"))
    words += ((limits.le, "at most"), (limits.lt, "less than"))
    expected = [f"{word} {limit:.12g}" for limit, word in words if limit is not None]

    def number(value: Any) -> Any:
        found = read(value)
        ge, gt, le, lt, _ = limits
        kept = [found >= ge] if ge is not None else []
        kept += [found > gt] if gt is not None else []
        kept += [found <= le] if le is not None else []
        kept += [found < lt] if lt is not None else []
        for within, words in zip(kept, expected, strict=True):
            if not within:
                raise unexpected(value, words)
        return found

    return number


def _member(kind: type[Enum]) -> Reader:
    def member(value: Any) -> Enum:
        try:
            return kind(value)
        except ValueError:
            raise unexpected(value, _listed([each.value for each in kind])) from None

    return member


def _choice(values: tuple[Any, ...], limits: Limits) -> Reader:
    def choice(value: Any) -> Any:
        for listed in values:
            if type(listed) is type(value) and listed == value:
                return listed
        raise unexpected(value, _listed(values))

    return choice


def _listed(values: Iterable[Any]) -> str:
    *others, last = map(repr, values)
    return f"{', '.join(others)} or {last}" if others else last


def _annotated(arguments: tuple[Any, ...], limits: Limits) -> Reader:
    annotation, *notes = arguments
    for note in notes:
        limits = note if isinstance(note, Limits) else limits
    read = reader_of(annotation, limits)
    for note in notes:
        if isinstance(note, Before):
            read = _after(note.change, read)
    return read


def _after(change: Callable[[Any], Any], read: Reader) -> Reader:
    return lambda value: read(change(value))


def _either(members: tuple[Any, ...], limits: Limits) -> Reader:
    """Return a reader that takes the member whose type the value has, else the first it fits."""
    readers = [reader_of(member, limits) for member in members if member is not NoneType]
    optional = NoneType in members

    def either(value: Any) -> Any:
        if value is None and optional:
            return None
        fitting: list[Any] = []
        problems: list[Problem] = []
        for read in readers:
            try:
                fitting.append(read(value))
            except ValidationError as error:
                problems += error.problems
        if fitting:
            return next((found for found in fitting if type(found) is type(value)), fitting[0])
        # What is wrong inside a block or a list tells more than that it is no text.
        inner = [problem for problem in problems if problem.path or problem.said]
        words = dict.fromkeys(word for problem in problems for word in problem.expected)
        if "a number" in words:
            words.pop("a whole number", None)
        raise ValidationError(inner or [Problem((), tuple(words), value)])

    return either


def _tuple(items: tuple[Any, ...], limits: Limits) -> Reader:
    length = None if items[-1] is Ellipsis else len(items)
    readers = [reader_of(item) for item in items if item is not Ellipsis]

    def row(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple | Set):
            raise unexpected(value, "a list")
        values = list(value)
        if length is not None and len(values) > length:
            raise unexpected(value, f"at most {length} values")
        if len(values) < (limits.min_length or 0):
            raise unexpected(value, f"at least {limits.min_length} values")
        problems: list[Problem] = []
        each = readers * len(values) if length is None else readers
        found = [_below(each[i], item, i, problems) for i, item in enumerate(values)]
        problems += [Problem((i,), said="is missing") for i in range(len(values), len(each))]
        if problems:
            raise ValidationError(problems)
        return tuple(found)

    return row


def _dict(kinds: tuple[Any, ...], limits: Limits) -> Reader:
    read_key, read_value = map(reader_of, kinds)

    def table(value: Any) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise unexpected(value, BLOCK)
        if len(value) < (limits.min_length or 0):
            raise unexpected(value, f"at least {limits.min_length} values")
        problems: list[Problem] = []
        found = {
            _below(read_key, key, key, problems): _below(read_value, item, key, problems)
            for key, item in value.items()
        }
        if problems:
            raise ValidationError(problems)
        return found

    return table


def _below(read: Reader, value: Any, step: str | int, problems: list[Problem]) -> Any:
    """Read one value of many; what is wrong with it joins ``problems``."""
    try:
        return read(value)
    except ValidationError as error:
        problems += [problem.below(step) for problem in error.problems]
        return None


_GENERIC: dict[Any, Callable[[tuple[Any, ...], Limits], Reader]] = {
    Annotated: _annotated,
    Literal: _choice,
    Union: _either,
    UnionType: _either,
    dict: _dict,
    tuple: _tuple,
}
