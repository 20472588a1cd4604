"""Base class of all settings: typed fields, read strictly, never changed afterwards.

A class of settings is declared with annotations, defaults and limits::

    class Sheet(StrictModel):
        columns: int = Field(default=4, ge=1)
        colour: Literal["white", "black"] = "white"

Types are evaluated when something is first read as such settings, and nothing but this package is
needed for it: most short commands read a few of many classes, and shall start at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache, cached_property
from inspect import get_annotations
from typing import (
    Any,
    ClassVar,
    Literal,
    NoReturn,
    Self,
    dataclass_transform,
    get_type_hints,
)

from panovlm.config.problems import REQUIRED, UNKNOWN, Problem, ValidationError, unexpected
from panovlm.config.readers import BLOCK, UNLIMITED, Limits, Reader, reader_of

MISSING: Any = object()
"""Default of a field that must be given."""


class FieldInfo:
    """A field as its class declares it.

    Attributes:
        name: of the field.
        owner: class that declares it.
        default: as it was written; :data:`MISSING` where there is none.
        limits: of its numbers or its length.
    """

    name: str
    owner: type[StrictModel]

    def __init__(
        self,
        default: Any = MISSING,
        default_factory: Callable[[], Any] | None = None,
        limits: Limits = UNLIMITED,
        prepare: Callable[[Any, Mapping[str, Any]], Any] | None = None,
    ) -> None:
        self.default = default
        self.default_factory = default_factory
        self.limits = limits
        self._prepare = prepare

    @property
    def is_required(self) -> bool:
        """Whether it must be given."""
        return self.default is MISSING and self.default_factory is None

    @cached_property
    def annotation(self) -> Any:
        """Its type, evaluated."""
        return _types(self.owner)[self.name]

    @cached_property
    def read(self) -> Reader:
        """What reads a value as its type."""
        return reader_of(self.annotation, self.limits)

    def value(self, given: Mapping[str, Any], earlier: Mapping[str, Any]) -> Any:
        """Return its value: what is given for it, else its default.

        Args:
            given: all that is given for the class.
            earlier: values of the fields above it, of those that could be read.

        Raises:
            ValidationError: it cannot have that value, or must be given and is not.
        """
        if self.name in given:
            value = given[self.name]
        elif self.is_required:
            raise ValidationError([Problem((), said=REQUIRED)])
        else:
            value = self.default_factory() if self.default_factory else self.default
        return self.read(self._prepare(value, earlier) if self._prepare else value)

    def has_default(self, values: Mapping[str, Any]) -> bool:
        """Tell whether it has its default among the values of all fields."""
        return not self.is_required and values[self.name] == self.value({}, values)


@cache
def _types(owner: type[StrictModel]) -> dict[str, Any]:
    """Return the evaluated types of a class, by field."""
    return get_type_hints(owner, include_extras=True)


def Field(  # noqa: N802 - stands where a class would
    default: Any = MISSING,
    *,
    default_factory: Callable[[], Any] | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    min_length: int | None = None,
    prepare: Callable[[Any, Mapping[str, Any]], Any] | None = None,
) -> Any:
    """Declare a field of a :class:`StrictModel`.

    Args:
        default: its value where none is given.
        default_factory: makes that value.
        ge: smallest value.
        gt: its value must be more than this.
        le: largest value.
        lt: its value must be less than this.
        min_length: smallest number of values in it.
        prepare: changes a value (or the default) before it is read as the field's type; it gets
            the values of the fields above as well, of those that could be read.
    """
    return FieldInfo(default, default_factory, Limits(ge, gt, le, lt, min_length), prepare)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class StrictModel:
    """Frozen settings: every value is of its type and within its limits, unknown keys are refused.

    A changed copy is validated as a whole: a checkpoint's architecture was once switched while the
    sizes of the old architecture stayed behind.
    """

    model_fields: ClassVar[dict[str, FieldInfo]] = {}
    """The fields by name, in the order in which they are declared and read."""

    def __init_subclass__(cls) -> None:
        cls.model_fields = dict(cls.model_fields)
        for name, annotation in get_annotations(cls).items():
            if not str(annotation).startswith(("ClassVar", "typing.ClassVar")):
                default = cls.__dict__.get(name, MISSING)
                info = default if isinstance(default, FieldInfo) else FieldInfo(default)
                info.name, info.owner = name, cls
                cls.model_fields[name] = info
                if default is not MISSING:
                    delattr(cls, name)  # so that the one value is that of the instance

    def __init__(self, **values: Any) -> None:
        self._read(values)

    @classmethod
    def model_validate(cls, values: Any) -> Self:
        """Read plain values as settings; settings of this class are returned as they are.

        Raises:
            ValidationError: all that is wrong with them.
        """
        if isinstance(values, cls):
            return values
        if not isinstance(values, Mapping):
            raise unexpected(values, BLOCK)
        settings = cls.__new__(cls)
        settings._read(values)
        return settings

    @classmethod
    def _before(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what is to be read for the given values; subclasses may override it."""
        return values

    def _check(self) -> None:
        """Refuse values that do not go together; subclasses may override it.

        Raises:
            ValueError: why they do not.
        """

    def _read(self, given: Mapping[str, Any]) -> None:
        """Read every field, and tell all problems at once."""
        given = self._before(given)
        values: dict[str, Any] = {}
        problems: list[Problem] = []
        for name, info in self.model_fields.items():
            try:
                values[name] = info.value(given, values)
            except ValidationError as error:
                problems += [problem.below(name) for problem in error.problems]
            except ValueError as error:
                problems.append(Problem((name,), given=given.get(name), said=str(error)))
        unknown = [key for key in given if key not in self.model_fields]
        problems += [Problem((key,), given=given[key], said=UNKNOWN) for key in unknown]
        if problems:
            raise ValidationError(problems)
        vars(self).update(values, _stated=frozenset(given))
        try:
            self._check()
        except ValueError as error:
            raise ValidationError([Problem((), given=given, said=str(error))]) from error

    def model_dump(
        self,
        *,
        mode: Literal["python", "json"] = "python",
        exclude_unset: bool = False,
        exclude_defaults: bool = False,
    ) -> dict[str, Any]:
        """Return plain values by field, blocks as dictionaries.

        Args:
            mode: ``json``: lists instead of tuples and text for every key, as JSON has them.
            exclude_unset: leave out what was not given when these settings were read.
            exclude_defaults: leave out what has its default.
        """
        values = vars(self)
        names = [n for n in self.model_fields if not exclude_unset or n in values["_stated"]]
        if exclude_defaults:
            names = [n for n in names if not self.model_fields[n].has_default(values)]
        return {
            name: _plain(values[name], mode == "json", exclude_unset, exclude_defaults)
            for name in names
        }

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """Return a copy; with ``update`` the whole of it is validated anew.

        Raises:
            ValidationError: it cannot have these values.
        """
        if not update:
            return copy.copy(self)
        return self.model_validate({**self.model_dump(), **update})

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen; use model_copy(update=...)")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen; use model_copy(update=...)")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(vars(self)[name] == vars(other)[name] for name in self.model_fields)

    def __hash__(self) -> int:
        return hash((type(self), *(vars(self)[name] for name in self.model_fields)))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={vars(self)[name]!r}" for name in self.model_fields)
        return f"{type(self).__name__}({values})"


def _plain(value: Any, json: bool, unset: bool, defaults: bool) -> Any:
    """Return a value without settings in it."""
    if isinstance(value, StrictModel):
        mode = "json" if json else "python"
        return value.model_dump(mode=mode, exclude_unset=unset, exclude_defaults=defaults)
    if isinstance(value, Mapping):
        return {
            str(key) if json else key: _plain(item, json, unset, defaults)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        items = [_plain(item, json, unset, defaults) for item in value]
        return items if json else type(value)(items)
    return value.value if json and isinstance(value, Enum) else value
