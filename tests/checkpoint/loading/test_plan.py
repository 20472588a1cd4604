"""The comparison of a file's names and shapes with those of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from panovlm.checkpoint.loading.plan import SHOWN, prove
from panovlm.errors import CheckpointError


def test_everything_fits():
    proof = prove({"a.x": (1, 2), "b.y": (3,)}, {"a.x": (1, 2), "b.y": (3,)}, {})
    assert proof.holds and proof.matched == ("a.x", "b.y")
    proof.raise_failure(Path("x"))


def test_every_kind_of_difference_is_reported_by_component():
    proof = prove({"a.x": (1, 2), "b.z": (3,)}, {"a.x": (1, 3), "b.y": (4,)}, {})
    assert not proof.holds
    with pytest.raises(CheckpointError) as error:
        proof.raise_failure(Path("run/last.ckpt"))
    lines = str(error.value).splitlines()
    assert lines[0].startswith("run/last.ckpt does not fit")
    assert "  a: 1 tensor(s)" in lines and "  b: 2 tensor(s)" in lines
    assert "    a.x: [1, 2] in the checkpoint, [1, 3] in the model" in lines
    assert "    b.y [4]: absent from the checkpoint" in lines
    assert "    b.z [3]: no place in the model" in lines
    assert "panovlm inspect run/last.ckpt" in lines[-1] and "No weight was read" in lines[-1]


@pytest.mark.parametrize("kept", ["lm.head", "lm.table"])
def test_a_tied_tensor_may_have_either_name(kept):
    built = {"lm.head": (4, 2), "lm.table": (4, 2)}
    ties = {"lm.head": "lm.table", "lm.table": "lm.head"}
    proof = prove({kept: (4, 2)}, built, ties)
    assert proof.holds and set(proof.tied) == set(built) - {kept}
    assert not prove({kept: (5, 2)}, built, ties).holds
    assert prove({}, built, ties).missing == built


def test_a_long_list_is_cut():
    missing = {f"a.{index}": (1,) for index in range(SHOWN + 5)}
    with pytest.raises(CheckpointError, match=r"\.\.\. and 5 more"):
        prove({}, missing, {}).raise_failure(Path("x"))
