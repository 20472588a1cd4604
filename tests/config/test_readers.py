"""What is read as which type, and what is refused."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panovlm.config.problems import ValidationError
from panovlm.config.readers import Before, Limits, reader_of


class Filter(IntEnum):
    NEAREST = 0
    CUBIC = 3


Items = tuple[int, ...]


def refusal(kind: Any, value: object, limits: Limits | None = None) -> list[str]:
    with pytest.raises(ValidationError) as refused:
        reader_of(kind, limits or Limits())(value)
    return [str(problem) for problem in refused.value.problems]


@pytest.mark.parametrize(
    ("kind", "given", "read"),
    [
        (int, 64, 64),
        (int, 64.0, 64),
        (int, "64", 64),
        (int, " 64.0 ", 64),
        (float, 3, 3.0),
        (float, "1e-3", 0.001),
        (bool, "no", False),
        (bool, "Yes", True),
        (bool, 1, True),
        (bool, 0.0, False),
        (str, "64", "64"),
        (Literal[12, 20], 20, 20),
        (tuple[float, float], [1, "2"], (1.0, 2.0)),
        (Items, {3}, (3,)),
        (Items, [], ()),
        (dict[str, int], {"a": "1"}, {"a": 1}),
        (dict[str, Any], {"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
        (int | None, None, None),
        (float | int, 500, 500),
        (float | int, 0.5, 0.5),
        (int | Literal["auto"], "auto", "auto"),
        (int | Literal["auto"], "7", 7),
        (Items | Literal["all"], "all", "all"),
        (Filter, 3, Filter.CUBIC),
        (Annotated[int, Limits(ge=2)], 2, 2),
        (Annotated[Items, Before(lambda value: [value])], 3, (3,)),
    ],
)
def test_what_is_read(kind: Any, given: object, read: object) -> None:
    found = reader_of(kind)(given)
    assert (found, type(found)) == (read, type(read))


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        (int, True, "expected a whole number, got true"),
        (int, 1.5, "expected a whole number, got 1.5"),
        (int, "1.5", "expected a whole number, got '1.5'"),
        (int, 1e300, "expected a whole number, got 1e+300"),
        (int, float("nan"), "expected a whole number, got nan"),
        (float, False, "expected a number, got false"),
        (float, 10**400, f"expected a number, got {str(10**400)[:57]}..."),
        (float, "inf", "expected a finite number, got 'inf'"),
        (float, "wide", "expected a number, got 'wide'"),
        (bool, 2, "expected true or false, got 2"),
        (bool, None, "expected true or false, got nothing"),
        (str, 3, "expected text, got 3; put it in quotes"),
        (Literal[1], True, "expected 1, got true"),
        (Literal[1], 1.0, "expected 1, got 1.0"),
        (Literal["mean", "sum"], "men", "expected 'mean' or 'sum', got 'men'; did you mean mean?"),
        (Items, "3", "expected a list, got '3'"),
        (Items, {"a": 1}, "expected a list, got a block of keys"),
        (tuple[int, int], [1, 2, 3], "expected at most 2 values, got [1, 2, 3]"),
        (dict[str, Any], [], "expected a block of keys, got []"),
        (dict[str, Any], {3: 1}, "[3]: expected text, got 3; put it in quotes"),
        (float | int, "often", "expected a number, got 'often'"),
        (int | Literal["auto"], 1.5, "expected a whole number or 'auto', got 1.5"),
        (Items | Literal["all"], [1, "x"], "[1]: expected a whole number, got 'x'"),
        (Filter, 1, "expected 0 or 3, got 1"),
    ],
)
def test_what_is_refused(kind: Any, given: object, told: str) -> None:
    assert refusal(kind, given) == [told]


@pytest.mark.parametrize("kind", [list[int], set, bytes, tuple[list[int], ...]])
def test_a_type_that_settings_cannot_have(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"settings cannot have the type .*; expected"):
        reader_of(kind)


def test_all_that_is_wrong_in_a_list_is_told() -> None:
    assert refusal(tuple[int, int, int], ["x", 1]) == [
        "[0]: expected a whole number, got 'x'",
        "[2]: is missing",
    ]


@pytest.mark.parametrize(
    ("limits", "kept", "refused", "told"),
    [
        (Limits(ge=1), 1, 0, "at least 1"),
        (Limits(gt=1), 2, 1, "more than 1"),
        (Limits(le=1), 1, 2, "at most 1"),
        (Limits(lt=1), 0, 1, "less than 1"),
    ],
)
def test_limits(limits: Limits, kept: int, refused: int, told: str) -> None:
    for kind in (int, float, int | None, float | str):
        assert reader_of(kind, limits)(kept) == kept
    assert refusal(int, refused, limits) == [f"expected {told}, got {refused}"]
    assert refusal(int | None, refused, limits) == [f"expected {told}, got {refused}"]


def test_lengths() -> None:
    assert refusal(Items, [], Limits(min_length=1)) == ["expected at least 1 values, got []"]
    assert reader_of(Items, Limits(min_length=1))([0]) == (0,)
    told = ["expected at least 1 values, got a block of keys"]
    assert refusal(dict[str, int], {}, Limits(min_length=1)) == told


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_a_whole_number_is_the_same_in_every_spelling(number: int) -> None:
    read = reader_of(int)
    assert read(number) == read(str(number)) == read(f"{number}.0") == number
    if abs(number) <= 2**53:
        assert read(float(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_the_same_in_every_spelling(number: float) -> None:
    assert reader_of(float)(repr(number)) == reader_of(float)(number) == number
