"""PanoVLM: vision-language models on 360° panoramas.

The names below are the stable Python interface; they are imported when they are first used, so
that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panovlm.checkpoint.repair.metadata import add_metadata
    from panovlm.checkpoint.resolve import Resolution, resolve
    from panovlm.config.load import load_settings
    from panovlm.errors import (
        CheckpointError,
        ConfigError,
        ContradictionError,
        DataError,
        PanoVLMError,
    )
    from panovlm.models.model import PanoramaVLM

_HOMES = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "ContradictionError": "errors",
    "DataError": "errors",
    "PanoVLMError": "errors",
    "PanoramaVLM": "models.model",
    "Resolution": "checkpoint.resolve",
    "add_metadata": "checkpoint.repair.metadata",
    "load_settings": "config.load",
    "resolve": "checkpoint.resolve",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ContradictionError",
    "DataError",
    "PanoVLMError",
    "PanoramaVLM",
    "Resolution",
    "add_metadata",
    "load_settings",
    "resolve",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'panovlm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"panovlm.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
