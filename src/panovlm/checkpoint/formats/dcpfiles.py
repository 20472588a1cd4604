"""What tells a distributed checkpoint of torch from other folders."""

from __future__ import annotations

from pathlib import Path

METADATA = ".metadata"
"""The file that makes a folder a distributed checkpoint; it is written last."""


def is_dcp(folder: Path) -> bool:
    """Tell whether a folder is a distributed checkpoint."""
    return (folder / METADATA).is_file()
