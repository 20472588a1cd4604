from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from panovlm.config.base import StrictModel
from panovlm.config.schema import Recipe, Settings
from panovlm.models.resamplers.recipe import ResamplerSettings

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_settings", DOCS / "make_settings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_current(maker: ModuleType) -> None:
    written = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert written == maker.page(), "run: python docs/make_settings.py"


def test_every_block_is_on_the_page(maker: ModuleType) -> None:
    shown = {model for _, model in maker.BLOCKS}
    missing = _blocks_below(Settings) - shown - {Settings, Recipe, ResamplerSettings}
    assert not missing


def test_every_field_has_a_meaning(maker: ModuleType) -> None:
    silent = [
        f"{name}.{field}"
        for name, model in maker.BLOCKS
        for field in model.model_fields
        if not maker._meanings(model).get(field)
    ]
    assert not silent


def _blocks_below(model: type[StrictModel]) -> set[type[StrictModel]]:
    """Return the settings classes that the fields of a class mention, at any depth."""
    found = {model}
    for info in model.model_fields.values():
        for part in _parts(info.annotation):
            if isinstance(part, type) and issubclass(part, StrictModel):
                found |= _blocks_below(part)
    return found


def _parts(annotation: object) -> list[object]:
    return [annotation, *(p for arg in getattr(annotation, "__args__", ()) for p in _parts(arg))]
