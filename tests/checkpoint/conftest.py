"""The original system's model and files, for the tests of this folder.

Tests have no package, so that its two modules are loaded from their files.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _module(name: str) -> ModuleType:
    full = f"panovlm_tests_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


@pytest.fixture(scope="session")
def original() -> ModuleType:
    """Independent implementation of the original system's model."""
    return _module("original")


@pytest.fixture(scope="session")
def files() -> ModuleType:
    """Writers of the original system's files."""
    return _module("original_files")


@pytest.fixture(scope="session")
def backbones(files, tmp_path_factory):
    """Tiny backbones on disk, as ``vision`` and ``language`` folders by short name."""
    return files.write_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="session")
def build(original, backbones):
    """Build an original model; equal specifications give the same object."""
    built = {}

    def of(**settings):
        key = repr(sorted(settings.items()))
        if key not in built:
            built[key] = original.build(original.Spec(**settings), backbones)
        return built[key]

    return of


@pytest.fixture
def write(files, backbones, tmp_path):
    """Write a run folder of the original system in ``tmp_path``; see ``files.write_run``."""

    def run(model, **options):
        return files.write_run(tmp_path, model, backbones, **options)

    return run
