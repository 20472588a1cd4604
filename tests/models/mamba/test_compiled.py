"""Where numba keeps what it compiled."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

numba = pytest.importorskip("numba")

from panovlm.models.mamba import compiled  # noqa: E402


def test_a_change_in_any_source_makes_numba_compile_anew(tmp_path, monkeypatch) -> None:
    (tmp_path / "one.py").write_text("A = 1\n", encoding="utf-8")
    before = compiled.digest_of_sources(tmp_path)
    (tmp_path / "two.py").write_text("B = 2\n", encoding="utf-8")
    assert compiled.digest_of_sources(tmp_path) != before
    assert compiled.digest_of_sources(Path(compiled.__file__).parent) == compiled.SOURCES

    (tmp_path / "halves.py").write_text("def half(x):\n    return x / 2\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    assert compiled.jit(importlib.import_module("halves").half)(3.0) == 1.5
    kept = [path.name for path in (tmp_path / "__pycache__").glob("*.nbi")]
    assert len(kept) == 1 and compiled.SOURCES in kept[0]
