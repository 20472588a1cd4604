"""Tables of panoramas and texts: files read into samples, rows about one panorama grouped.

A table is a CSV file (:mod:`~panovlm.data.csv_rows`) or holds conversations in JSON
(:mod:`~panovlm.data.conversations`). One row is one sample. Nothing is guessed: a cell, column, row
or image that is missing is an error that names the file and the row.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from panovlm.data.conversations import json_rows
from panovlm.data.csv_rows import csv_rows
from panovlm.data.rows import Row, Rows, Turn, read_text
from panovlm.errors import DataError

_SHOWN = 5
"""How many faults of one table an error spells out."""

_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class Sample:
    """A panorama and a conversation about it."""

    image: Path
    turns: tuple[Turn, ...]
    source: str
    """Where it stands: ``file.csv:12``, the line on which the row begins (1 is the header), or
    ``file.json[3]``, its place in a list."""
    columns: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    """The row's other columns, such as ``query`` or ``kind``."""
    weight: float = 1.0
    """How often it is taken per epoch of training, on average."""


def read_tables(
    files: Iterable[str | Path], *, data_dir: str = "", check_images: bool = True
) -> list[Sample]:
    """Read tables (UTF-8, with or without byte order mark), one after the other.

    Files named ``.json``, ``.jsonl`` or ``.ndjson``, and others that begin with ``{`` or ``[``,
    hold conversations in JSON; all others are CSV.

    Relative image paths start at ``data_dir`` when it is given. Otherwise they start at the folder
    of the table, or, when none of the table's images is there, at the working directory.

    Args:
        files: Tables, in the order of the samples. None gives no samples.
        data_dir: Base of relative image paths.
        check_images: Refuse a table that names an image file which does not exist.

    Returns:
        One sample per row.

    Raises:
        DataError: A table is missing or no text, lacks a column, a cell or all rows, holds a
            conversation that cannot be used, or names images that do not exist.
    """
    samples: list[Sample] = []
    for file in files:
        samples += _read_table(Path(file), data_dir, check_images)
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
    by_image: dict[tuple[Path, float], list[Sample]] = {}
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


def table_rows(file: Path) -> Rows:
    """Read a table of any form, as :func:`read_tables` does, and go on behind rows with a fault.

    Yields:
        Rows, and errors in place of those that cannot be used.

    Raises:
        DataError: Nothing of the table can be used.
    """
    text = read_text(file)
    if file.suffix.lower() in _JSON_SUFFIXES or text.lstrip()[:1] in ("{", "["):
        return json_rows(file, text)
    return csv_rows(file, text)


def resolve_images(file: Path, urls: Sequence[str], data_dir: str) -> list[Path]:
    """Turn the images that a table names into paths, by the rule of :func:`read_tables`."""
    base = Path(data_dir).expanduser() if data_dir else file.parent
    images = [base / url for url in urls]
    if not data_dir and not any(image.is_file() for image in images):
        here = [Path(url) for url in urls]
        if any(image.is_file() for image in here):
            return here
    return images


def sample_of(row: Row, image: Path) -> Sample:
    """Return a row with its image found."""
    return Sample(image, row.turns, row.source, row.columns)


def _read_table(file: Path, data_dir: str, check_images: bool) -> list[Sample]:
    rows: list[Row] = []
    for row in table_rows(file):
        if isinstance(row, DataError):
            raise row
        rows.append(row)
    images = resolve_images(file, [row.url for row in rows], data_dir)
    samples = [sample_of(row, image) for row, image in zip(rows, images, strict=True)]
    if check_images:
        _check_images(file, samples)
    return samples


def _check_images(file: Path, samples: Sequence[Sample]) -> None:
    present = {image: image.is_file() for image in {sample.image for sample in samples}}
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
