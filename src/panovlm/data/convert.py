"""A published data set written as a table of conversations."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panovlm.atomic import atomic_write
from panovlm.data.published import LAYOUTS, Found
from panovlm.errors import DataError


@dataclass(frozen=True)
class Converted:
    """What was written."""

    rows: int
    images: int
    """Different ones."""
    left_out: tuple[str, ...]
    """Rows that could not be used, each with the reason."""


def convert(layout: str, source: Path, output: Path, *, images: Path | None = None) -> Converted:
    """Write the rows of a data set as JSON lines; paths of images are relative to the file.

    Rows that cannot be used, and those whose image is not there, are left out and told.

    Args:
        layout: one of :data:`~panovlm.data.published.LAYOUTS`.
        source: the data set.
        output: the table to write; its folder must exist.
        images: folder of the images, for layouts that keep them apart.

    Raises:
        DataError: the data set is not of this layout, or not one row can be used; then nothing is
            written.
        CheckpointError: the table cannot be written.
    """
    usable: list[Found] = []
    left_out: list[str] = []
    for found in LAYOUTS[layout](source, images):
        if isinstance(found, DataError):
            left_out.append(str(found))
        elif not found.image.is_file():
            left_out.append(f"{found.source}: {found.image} does not exist")
        else:
            usable.append(found)
    if not usable:
        first = f"; the first of {len(left_out)} rows: {left_out[0]}" if left_out else ""
        raise DataError(f"{source} holds no panorama where {layout} has them{first}")
    base = output.parent.resolve()
    with atomic_write(output) as file:
        for line in _lines(usable, base):
            file.write(line.encode())
    return Converted(len(usable), len({found.image for found in usable}), tuple(left_out))


def _lines(rows: list[Found], base: Path) -> Iterator[str]:
    for row in rows:
        entry: dict[str, Any] = {"image": Path(os.path.relpath(row.image, base)).as_posix()}
        entry["conversations"] = [
            {"from": who, "value": text}
            for turn in row.turns
            for who, text in zip(("human", "gpt"), turn, strict=True)
        ]
        yield json.dumps({**entry, **row.columns}, ensure_ascii=False) + "\n"
