"""Samples: the rows of tables with their images found, rows about one panorama grouped.

One row is one sample. Nothing is guessed: a cell, column, row or image that is missing is an error
that names the file and the row.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from panovlm.config.image_input import PLAIN, ImageInput
from panovlm.data.rows import Row, Rows, Turn
from panovlm.data.tables import expanded, table_rows
from panovlm.errors import DataError
from panovlm.panorama.picture import Image, Picture, Stored, is_there

_SHOWN = 5
"""How many faults of one table an error spells out."""


@dataclass(frozen=True)
class Sample:
    """A panorama and a conversation about it."""

    image: Image
    """The path of an equirectangular picture, or what more there is to say of it."""
    turns: tuple[Turn, ...]
    source: str
    """Where it stands: ``file.csv:12``, the line on which the row begins (1 is the header), or
    ``file.json[3]``, its place in a list."""
    columns: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    """The row's other columns, such as ``query`` or ``kind``."""
    weight: float = 1.0
    """How often it is taken per epoch of training, on average."""


def read_tables(
    files: Iterable[str | Path],
    *,
    data_dir: str = "",
    check_images: bool = True,
    image_input: ImageInput = PLAIN,
    stream_blocks: int | None = None,
) -> list[Sample]:
    """Read tables of any form, one after the other; see :mod:`~panovlm.data.tables`.

    Relative image paths start at ``data_dir`` when it is given. Otherwise they start at the folder
    of the table, or, when none of the table's images is there, at the working directory.

    Args:
        files: Tables, in the order of the samples. None gives no samples.
        data_dir: Base of relative image paths.
        check_images: Refuse a table that names an image file which does not exist.
        image_input: How pictures show the sphere of which the row says nothing.
        stream_blocks: Row groups of Parquet files that are kept in memory while they are read as
            they are; None: such files are copied, so that every row can be read alone.

    Returns:
        One sample per row.

    Raises:
        DataError: A table is missing or no text, lacks a column, a cell or all rows, holds a
            conversation that cannot be used, or names images that do not exist.
    """
    samples: list[Sample] = []
    for name in files:
        for file in expanded(Path(name)):
            rows = table_rows(file, image_input, stream_blocks)
            samples += _read_table(file, rows, data_dir, check_images)
    return samples


def group_rows(
    samples: Sequence[Sample], count: int, seed: int, epoch: int = 0
) -> list[tuple[Sample, ...]]:
    """Group rows about one image, up to ``count`` together, so that its views are computed once.

    Rows of different weights stay apart. Which rows meet, and in which order, is drawn anew from
    ``(seed, epoch)``; the number of groups and the image of each are the same in every epoch, so
    that a loader can resume in any of them.

    Args:
        samples: Rows; those about one image need not be neighbours.
        count: Most rows of one group, at least 1. With 1 every row is a group, in its place.
        seed: Seed of the draw.
        epoch: Number of the pass over the data.

    Returns:
        Groups, ordered by the first row of their image.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1")
    if count == 1:
        return [(sample,) for sample in samples]
    by_image: dict[tuple[Image, float], list[Sample]] = {}
    for sample in samples:
        by_image.setdefault((sample.image, sample.weight), []).append(sample)
    rng = random.Random(f"{seed}/{epoch}")
    groups: list[tuple[Sample, ...]] = []
    for rows in by_image.values():
        rng.shuffle(rows)
        # Equal shares, so that no row is left alone by chance.
        parts = math.ceil(len(rows) / count)
        groups += [tuple(rows[part::parts]) for part in range(parts)]
    return groups


def one_per_image(samples: Sequence[Sample]) -> list[Sample]:
    """Return one row per panorama, for a stage that reads no text."""
    return list({sample.image: sample for sample in reversed(samples)}.values())[::-1]


def samples_of(file: Path, rows: Sequence[Row], data_dir: str) -> list[Sample]:
    """Turn the rows of a table into samples, their images found by the rule of read_tables."""
    images = _resolve(file, [row.url for row in rows], data_dir)
    return [
        Sample(
            image if isinstance(image, Path) and row.input.is_plain else Picture(image, row.input),
            row.turns,
            row.source,
            row.columns,
        )
        for row, image in zip(rows, images, strict=True)
    ]


def _resolve(file: Path, urls: Sequence[str | Stored], data_dir: str) -> list[Path | Stored]:
    """Turn the images that a table names into paths."""
    base = Path(data_dir).expanduser() if data_dir else file.parent
    images = [base / url if isinstance(url, str) else url for url in urls]
    if not data_dir and not any(is_there(Picture(image)) for image in images):
        here = [Path(url) if isinstance(url, str) else url for url in urls]
        if any(is_there(Picture(image)) for image in here):
            return here
    return images


def _read_table(file: Path, rows: Rows, data_dir: str, check_images: bool) -> list[Sample]:
    usable: list[Row] = []
    for row in rows:
        if isinstance(row, DataError):
            raise row
        usable.append(row)
    samples = samples_of(file, usable, data_dir)
    if check_images:
        _check_images(file, samples)
    return samples


def _check_images(file: Path, samples: Sequence[Sample]) -> None:
    present = {image: is_there(image) for image in {sample.image for sample in samples}}
    missing = [sample for sample in samples if not present[sample.image]]
    if not missing:
        return
    shown = "".join(f"\n  {sample.source}: {sample.image}" for sample in missing[:_SHOWN])
    more = f"\n  and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    raise DataError(
        f"{file}: the images of {len(missing)} of {len(samples)} rows do not exist:{shown}{more}\n"
        "A relative path starts at paths.data_dir when that is set; otherwise at the folder of "
        "the table, or, when none of the images is there, at the working directory. Set "
        "paths.data_dir, or mend the paths in the table"
    )
