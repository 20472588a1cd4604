"""Damaged checkpoints end in a result or in an error of PanoVLM.

``benchmarks/fuzz_readers.py`` runs the same cases by the hundred thousand.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

CASES = 100
KEPT = {
    "DCP": [18274],  # chunks with elements of a tensor without
    "ZeRO-2": [716],  # a name that no file system takes
    "ZeRO-3": [37, 547, 558],
    # Messages that named no file:
    "run folder": [461, 1119],
    "adapters": [409],
    "split": [725, 47767, 69559],  # and layers of the overlap head without their weights
}
"""Cases that once ended otherwise."""


@pytest.fixture(scope="module")
def fuzzing():
    name = "panovlm_tests_fuzzing"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("fuzzing.py"))
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


READERS = ["torch", "torch before 1.6", "safetensors", "index", "DCP", "ZeRO-2", "ZeRO-3"]
FOLDERS = ["run folder", "adapters", "split"]


@pytest.mark.parametrize("name", READERS + FOLDERS)
def test_damage(fuzzing, dcp_writer, zero, small, tmp_path, name):
    cases = [*range(CASES), *KEPT.get(name, [])]
    result = fuzzing.fuzz(name, cases, tmp_path, fuzzing.Writers(dcp_writer, zero, small))
    assert result.faults == {}
    assert set(result.outcomes) == {"read", "refused"}


def test_every_reader_is_damaged(fuzzing):
    assert list(fuzzing.READERS) == READERS + FOLDERS


def test_a_fault_is_noticed(fuzzing, dcp_writer, zero, small, tmp_path, monkeypatch):
    """The machinery itself: another error, a hang, and a wrong result each count."""

    def broken(path):
        raise KeyError("x")

    def slow(path):
        while True:
            pass

    writers = fuzzing.Writers(dcp_writer, zero, small)
    outcome = fuzzing.outcome
    monkeypatch.setattr(fuzzing, "SECONDS", 0.1)
    for index, bad in enumerate((broken, slow)):
        folder = tmp_path / str(index)
        folder.mkdir()
        ends = iter([outcome, bad, outcome])
        reader = fuzzing.READERS["torch"]._replace(read=lambda path, ends=ends: next(ends)(path))
        monkeypatch.setitem(fuzzing.READERS, "torch", reader)
        result = fuzzing.fuzz("torch", [0, 1], folder, writers)
        assert list(result.faults) == [0]
        assert result.faults[0] == ("KeyError: 'x'" if bad is broken else "hang")
