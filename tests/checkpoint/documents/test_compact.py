"""The text of which identities are taken."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panovlm.checkpoint.documents.compact import compact

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@given(plain)
def test_it_is_json_of_the_same_values(value: object) -> None:
    assert repr(json.loads(compact(value))) == repr(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        # As the identities in the checkpoints of earlier versions have it.
        (1e-05, "0.00001"),
        (-1.234e-05, "-0.00001234"),
        (1e-06, "1e-6"),
        (2.5e-09, "2.5e-9"),
        (1e-10, "1e-10"),
        (0.0001, "0.0001"),
        (1e16, "1e+16"),
        (5e-324, "5e-324"),
        (64.0, "64.0"),
        (float("nan"), "null"),
        ({"é\x1f": [1, None, True, {}]}, '{"é\\u001f":[1,null,true,{}]}'),
    ],
)
def test_spelling(value: object, text: str) -> None:
    assert compact(value) == text
