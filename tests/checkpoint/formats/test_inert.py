"""Hostile and damaged pickles: nothing runs, nothing hangs, and what cannot be read is named."""

from __future__ import annotations

import builtins
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.checkpoint.formats import inert, load_tensors, names, read_header
from panovlm.checkpoint.formats.inert import unpickle
from panovlm.checkpoint.formats.names import Foreign, Global
from panovlm.errors import CheckpointError


class Runs:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class RunsOnState:
    def __reduce__(self):
        return (Runs, (print,), {"__setstate__": 1}, iter([Runs(print)]), iter([("k", print)]))


def payloads(canary):
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w')"
    return {
        "os.system": Runs(os.system, touch),
        "eval": Runs(builtins.eval, code),
        "exec": Runs(builtins.exec, code),
        "open": Runs(builtins.open, str(canary), "w"),
        "import": Runs(builtins.__import__, "antigravity"),
        "getattr": Runs(builtins.getattr, torch.Tensor, "tolist"),
        "Popen": Runs(subprocess.Popen, ["touch", str(canary)]),
        "torch.load": Runs(torch.load, str(canary)),
        "torch.hub": Runs(torch.hub.load_state_dict_from_url, f"file://{canary}"),
        "state": RunsOnState(),
    }


@pytest.mark.parametrize("name", payloads("x"))
@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "top"])
def test_code_in_a_checkpoint_never_runs(tmp_path, name, place):
    canary = tmp_path / "canary"
    evil = payloads(canary)[name]
    saved = {"state_dict": {"w": torch.ones(2)}, "hyper_parameters": {"lr": 0.1}}
    if place == "top":
        saved["evil"] = evil
    else:
        saved[place]["evil"] = evil
    path = tmp_path / "x.ckpt"
    torch.save(saved, path)
    header = read_header(path)
    assert "w" in header.tensors
    assert load_tensors(path)["w"].tolist() == [1, 1]
    shown = (header.extras if place == "top" else header.extras[place])["evil"]
    assert isinstance(shown, (str, list, dict))
    assert not canary.exists()


def test_the_payload_would_run_elsewhere(tmp_path):
    """The canary of the test above is alive: an ordinary load does trip it."""
    canary = tmp_path / "canary"
    torch.save({"evil": payloads(canary)["os.system"]}, tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert canary.exists()


def test_nothing_is_imported(tmp_path):
    """A class of a module that is there, but not imported, stays so; so do the rules' names."""
    pickled = b"\x80\x02(cantigravity\nfly\ncthis\ns\n)R\x93t."
    before = set(sys.modules)
    with pytest.raises(CheckpointError):
        unpickle(pickled, "x")
    found = unpickle(b"\x80\x02cantigravity\nfly\n.", "x")
    assert found == Global("antigravity.fly")
    assert set(sys.modules) == before


def test_build_cannot_change_the_reader():
    """BUILD and attribute state on a name that the reader knows leave the reader as it was."""
    rules = dict(names._APPLY)
    for name in (b"collections\nOrderedDict", b"torch._utils\n_rebuild_tensor_v2"):
        pickled = b"\x80\x02c" + name + b"\n}X\x08\x00\x00\x00__call__K\x01s\x86b."
        unpickle(pickled.replace(b"\x86b", b"b"), "x")
    assert rules == names._APPLY
    assert Foreign("a").items is None


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**900), 2**900)
    | st.floats(allow_nan=False)
    | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=5) | st.integers(-9, 9), inner, max_size=5)
        | st.tuples(inner, inner, inner, inner)
        | st.tuples(inner, inner)
        | st.tuples(inner)
    ),
    max_leaves=40,
)


@settings(max_examples=100, deadline=None)
@given(value=PLAIN, protocol=st.integers(2, 5))
def test_plain_values_equal_the_standard_unpickler(value, protocol):
    data = pickle.dumps(value, protocol)
    if protocol % 2:
        data = pickletools.optimize(data)
    assert unpickle(data, "x") == value


@settings(max_examples=25, deadline=None)
@given(value=st.sets(st.integers(0, 99)), protocol=st.integers(2, 5))
def test_sets_become_lists(value, protocol):
    assert sorted(unpickle(pickle.dumps(value, protocol), "x")) == sorted(value)
    assert sorted(unpickle(pickle.dumps(frozenset(value), protocol), "x")) == sorted(value)


def test_shared_and_recursive_values():
    shared = [1]
    first, second = unpickle(pickle.dumps([shared, shared], 2), "x")
    assert first is second
    loop: list = []
    loop.append((loop,))
    found = unpickle(pickle.dumps(loop, 2), "x")
    assert found[0][0] is found


# Bombs: each would take gigabytes, hours or the interpreter in the standard unpickler -----------


def save_pickle(path, pickled):
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("x/data.pkl", pickled)
    return path


def nested_tuple_key(depth: int) -> bytes:
    return b"\x80\x02})" + b"\x85" * depth + b"K\x01s."


BOMBS = {
    "memo index": b"\x80\x02}r\xff\xff\xff\xff.",
    "bytes8": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "bytearray8": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "text length": b"\x80\x02X\xff\xff\xff\xffabc.",
    "long4": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "deep key": nested_tuple_key(100_000),
    "wide key": b"\x80\x02}q\x00" + b"(" + b"K\x01" * 10_000 + b"tK\x01s.",
    "exponential key": b"\x80\x02})"
    + b"".join(b"q\x01h\x01h\x01\x86" for _ in range(60))
    + b"K\x01s.",
    "deep tuple": b"\x80\x02}X\x01\x00\x00\x00a)" + b"\x85" * 100_000 + b"s.",
    "deep list": b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * 50_000 + b"a" * 49_999 + b"s.",
    "exponential list": b"\x80\x02}X\x01\x00\x00\x00a]"
    + b"".join(b"q\x01]h\x01ah\x01a" for _ in range(60))
    + b"s.",
    "colliding keys": b"\x80\x02}("
    + b"".join(
        b"\x8a\x10" + (k * (2**61 - 1)).to_bytes(16, "little") + b"N" for k in range(1, 50_000)
    )
    + b"u.",
    "recursive rebuild": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\nq\x00"
    + b"h\x00NNN(t"
    + b"h\x00" * 3
    + b".",
    "endless name": b"\x80\x02c" + b"a" * 100_000 + b"\nb\n.",
    "growing name": b"\x80\x04\x8c\xff" + b"a" * 255 + b"\x94\x8c\xff" + b"b" * 255 + b"\x94\x93.",
    "no stop": b"\x80\x02" + b"N" * 1000,
    "empty": b"",
    "huge": b"\x80\x02" + b"N" * (33 << 20) + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_soon_in_an_error(tmp_path, name):
    path = save_pickle(tmp_path / "x.ckpt", BOMBS[name])
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"x\.ckpt"):
        read_header(path)
    assert time.process_time() - start < 20  # generous: undefended ones take hours


@pytest.mark.parametrize("name", ["deep key", "wide key", "exponential key", "colliding keys"])
def test_keys_are_refused_before_they_are_hashed(name):
    with pytest.raises(CheckpointError, match="as a dictionary key"):
        unpickle(BOMBS[name], "x")


def test_the_number_of_values_is_limited():
    assert unpickle(b"\x80\x02" + b"]" * 999 + b".", "x", max_values=1000) == []
    with pytest.raises(CheckpointError, match="more than 1000"):
        unpickle(b"\x80\x02" + b"]" * 1000 + b".", "x", max_values=1000)
    with pytest.raises(CheckpointError, match=f"more than {inert.MAX_VALUES}"):
        unpickle(b"\x80\x02" + b"]" * inert.MAX_VALUES + b".", "x")


def test_nested_type_rebuilds_are_bounded():
    """_rebuild_from_type_v2 applied to itself, thousands deep."""
    rebuild = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00"
    depth = 10_000
    # args_0 = (); args_n = (rebuild, None, args_(n-1), None)
    arguments = b")q\x01" + b"0(h\x00Nh\x01Ntq\x01" * depth
    pickled = b"\x80\x02" + rebuild + arguments + b"R."
    with pytest.raises(CheckpointError, match="damaged"):
        unpickle(pickled, "x")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02(I1\nt.",  # text instruction of protocol 0
        b"\x80\x02P1\n.",  # persistent id as text
        b"\x80\x02\x82\x01.",  # extension registry
        b"\x80\x02X\x01\x00\x00\x00aQ.",  # foreign persistent id
        b"\x80\x02(X\x07\x00\x00\x00storageNNNNtQ.",
        b"\x80\x02K\x01K\x02a.",  # append to a number
        b"\x80\x02K\x01K\x02K\x03s.",  # set an item of a number
        b"\x80\x02}(K\x01u.",  # key without value
        b"\x80\x02}]K\x01s.",  # a list as key
        b"\x80\x02K\x01K\x02R.",  # apply without argument list
        b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",  # no UTF-8
        b"\x80\x02h\x05.",  # memo never set
        b"\x80\x02t.",  # no mark
        b"\x80\x02.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",  # too few arguments
        b"ccollections\nOrderedDict\n]\x85K\x01\x86R.",
    ],
)
def test_damaged_pickles(pickled):
    with pytest.raises(CheckpointError, match=r"^here"):
        unpickle(pickled, "here")


def test_a_storage_of_two_lengths():
    """The smaller one would be a second, copied storage."""
    reference = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x00\x00\x00\x00K"
    )
    both = b"\x80\x02]" + b"".join(reference + bytes([n]) + b"tQa" for n in (2, 2)) + b"."
    assert len(unpickle(both, "x")) == 2
    both = b"\x80\x02]" + b"".join(reference + bytes([n]) + b"tQa" for n in (2, 1)) + b"."
    with pytest.raises(CheckpointError, match="storage '0' in two ways"):
        unpickle(both, "x")


def test_a_name_applied_to_a_value_stays_foreign():
    found = unpickle(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R)R)\x81}b.", "x")
    assert type(found) is Foreign
    assert found.name == "os.system"


@pytest.mark.parametrize("module", ["__builtin__", "builtins"])
def test_both_spellings_of_builtins(module):
    pickled = b"\x80\x02c" + module.encode() + b"\nset\n](K\x01K\x02e\x85R."
    assert unpickle(pickled, "x") == [1, 2]
