"""Settings classes: what is declared, read, copied and written."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from panovlm.config.base import Field, StrictModel
from panovlm.config.problems import ValidationError


class Frame(StrictModel):
    KINDS: ClassVar[int] = 2

    width: int = Field(default=4, ge=1)
    colour: str = "white"


def _double(value: Any, earlier: Mapping[str, Any]) -> Any:
    return earlier.get("count", 0) * 2 if value is None else value


class Sheet(StrictModel):
    count: int
    twice: int = Field(default=None, prepare=_double)
    frame: Frame = Field(default_factory=Frame)
    notes: dict[str, Any] = Field(default_factory=dict)
    sizes: tuple[int, ...] = (1, 2)

    def _check(self) -> None:
        if self.twice < self.count:
            raise ValueError("twice is less than count")


class Large(Sheet):
    height: float = 2

    @classmethod
    def _before(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"count": 7, **values}


WHOLE = {"count": 3, "frame": {"width": 2}, "notes": {"a": [1]}}


def test_fields_are_those_that_are_declared_in_order() -> None:
    assert list(Frame.model_fields) == ["width", "colour"]
    assert list(Large.model_fields) == [*Sheet.model_fields, "height"]
    assert Sheet.model_fields["count"].is_required
    assert not Sheet.model_fields["frame"].is_required
    assert Sheet.model_fields["sizes"].annotation == tuple[int, ...]


def test_what_is_not_given_has_its_default_of_the_right_type() -> None:
    sheet = Sheet(count=3)
    assert (sheet.twice, sheet.frame, sheet.sizes) == (6, Frame(width=4), (1, 2))
    assert repr(Large().height) == "2.0" and Large().count == 7


def test_defaults_are_not_shared() -> None:
    one, other = Sheet(count=1), Sheet(count=1)
    one.notes["a"] = 1
    assert other.notes == {}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, ["count: is required"]),
        ({"count": 1, "cout": 2}, ["cout: unknown key"]),
        ({"count": 1, 3: 2}, ["[3]: unknown key"]),
        ({"count": 2, "twice": 1}, ["twice is less than count"]),
        (
            {"count": 2, "frame": {"width": 0, "color": 1}, "sizes": 3},
            [
                "frame.width: expected at least 1, got 0",
                "frame.color: unknown key",
                "sizes: expected a list, got 3",
            ],
        ),
        ([], ["expected a block of keys, got []"]),
        (Frame(), ["expected a block of keys, got Frame(width=4, colour='white')"]),
    ],
)
def test_all_problems_are_told(given: Any, told: list[str]) -> None:
    with pytest.raises(ValidationError) as refused:
        Sheet.model_validate(given)
    assert [str(problem) for problem in refused.value.problems] == told
    again = pickle.loads(pickle.dumps(refused.value))
    assert (str(again), again.problems) == (str(refused.value), refused.value.problems)


def test_nothing_can_be_changed() -> None:
    frame = Frame()
    with pytest.raises(AttributeError, match="frozen"):
        frame.width = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match="frozen"):
        del frame.width
    assert frame == Frame()


def test_a_changed_copy_is_validated_as_a_whole() -> None:
    sheet = Sheet(count=1)
    assert sheet.model_copy() == sheet
    assert sheet.model_copy(update={"count": 2}) == Sheet(count=2, twice=2)
    with pytest.raises(ValidationError, match="twice is less than count"):
        sheet.model_copy(update={"count": 3})
    with pytest.raises(ValidationError, match="cuont: unknown key"):
        sheet.model_copy(update={"cuont": 3})


def test_equality_is_that_of_class_and_values() -> None:
    assert Sheet.model_validate(WHOLE) == Sheet.model_validate({**WHOLE, "sizes": [1, 2]})
    assert Sheet.model_validate(WHOLE) != Sheet.model_validate({**WHOLE, "count": 4})
    assert Large(count=3) != Sheet(count=3)
    assert len({Frame(), Frame(width=4), Frame(width=5)}) == 2


def test_copies_of_every_kind_are_equal_and_frozen() -> None:
    sheet = Sheet.model_validate(WHOLE)
    for again in (
        copy.copy(sheet),
        copy.deepcopy(sheet),
        pickle.loads(pickle.dumps(sheet)),
        Sheet.model_validate(sheet.model_dump()),
        Sheet.model_validate(sheet.model_dump(mode="json")),
    ):
        assert type(again) is Sheet
        assert again == sheet
        with pytest.raises(AttributeError):
            again.count = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_plain_values() -> None:
    sheet = Sheet.model_validate({**WHOLE, "notes": {"1": (2,)}})
    whole = {
        "count": 3,
        "twice": 6,
        "frame": {"width": 2, "colour": "white"},
        "notes": {"1": (2,)},
        "sizes": (1, 2),
    }
    assert sheet.model_dump() == whole
    assert sheet.model_dump(mode="json") == {**whole, "notes": {"1": [2]}, "sizes": [1, 2]}
    stated = {"count": 3, "frame": {"width": 2}, "notes": {"1": (2,)}}
    assert sheet.model_dump(exclude_unset=True) == stated
    defaults = Sheet(count=3, sizes=(1, 2), frame=Frame(width=4))
    assert defaults.model_dump(exclude_defaults=True) == {"count": 3}
