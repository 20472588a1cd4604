"""Tables of panoramas and texts: CSV files read into samples, rows about one panorama grouped.

A table has the columns ``url`` (path of a panorama) and either ``instruction`` + ``response``, or
``query`` + ``annotation``; with both pairs present the first is used. One row is one sample. Every
cell is text and stays as it is: an empty cell is an empty string and ``nan`` is a word. Nothing is
guessed: a cell, column, row or image that is missing is an error that names the file and the row.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from panovlm.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader

QUERY_TEMPLATE = (
    'In this panoramic image, please provide a concise but detailed description of "{query}".'
)
"""User text of a row that gives a ``query`` instead of an ``instruction``."""

_SHOWN = 5
"""How many faults of one table an error spells out."""

Turn = tuple[str, str]
"""(user text, answer)."""


@dataclass(frozen=True)
class Sample:
    """A panorama and a conversation about it."""

    image: Path
    turns: tuple[Turn, ...]
    source: str
    """Where it stands: ``file.csv:12``, the line on which the row begins (1 is the header)."""
    columns: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    """The row's other columns, such as ``query`` or ``kind``."""


def read_tables(
    files: Iterable[str | Path], *, data_dir: str = "", check_images: bool = True
) -> list[Sample]:
    """Read CSV tables (UTF-8, with or without byte order mark), one after the other.

    Relative image paths start at ``data_dir`` when it is given. Otherwise they start at the folder
    of the table, or, when none of the table's images is there, at the working directory.

    Args:
        files: Tables, in the order of the samples. None gives no samples.
        data_dir: Base of relative image paths.
        check_images: Refuse a table that names an image file which does not exist.

    Returns:
        One sample per row.

    Raises:
        DataError: A table is missing, is no CSV text, lacks a column, a cell or all rows, or names
            images that do not exist.
    """
    samples: list[Sample] = []
    for file in files:
        samples += _read_table(Path(file), data_dir, check_images)
    return samples


def group_rows(
    samples: Sequence[Sample], count: int, seed: int, epoch: int = 0
) -> list[tuple[Sample, ...]]:
    """Group rows about one image, up to ``count`` together, so that its views are computed once.

    Which rows meet, and in which order, is drawn anew from ``(seed, epoch)``; the number of
    groups and the image of each are the same in every epoch, so that a loader can resume in any
    of them.

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
    by_image: dict[Path, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image, []).append(sample)
    rng = random.Random(f"{seed}/{epoch}")
    groups: list[tuple[Sample, ...]] = []
    for rows in by_image.values():
        rng.shuffle(rows)
        # Equal shares, so that no row is left alone by chance.
        parts = math.ceil(len(rows) / count)
        groups += [tuple(rows[part::parts]) for part in range(parts)]
    return groups


def _read_table(file: Path, data_dir: str, check_images: bool) -> list[Sample]:
    rows = _read_rows(file)
    columns = list(rows[0][1])
    for column in ("url", *_text_columns(file, columns)):
        if column not in columns:
            raise DataError(f"{file}: column {column!r} is missing; the columns are {columns}")
    images = _resolve_images(file, [(line, row["url"].strip()) for line, row in rows], data_dir)
    if check_images:
        _check_images(file, images)
    return [
        _sample(image, row, f"{file}:{line}")
        for (line, row), (_, image) in zip(rows, images, strict=True)
    ]


def _text_columns(file: Path, columns: Sequence[str]) -> tuple[str, str]:
    """Return the pair of columns that holds question and answer."""
    pairs = (("instruction", "response"), ("query", "annotation"))
    for pair in pairs:
        if set(pair) <= set(columns):
            return pair
    for pair in pairs:
        if set(pair) & set(columns):
            return pair
    raise DataError(
        f"{file}: a table needs the columns 'instruction' and 'response', or 'query' and "
        f"'annotation'; the columns are {list(columns)}"
    )


def _sample(image: Path, row: Mapping[str, str], source: str) -> Sample:
    used = {"url"}
    if "instruction" in row and "response" in row:
        turn = (row["instruction"], row["response"])
        used |= {"instruction", "response"}
    else:
        turn = (QUERY_TEMPLATE.format(query=row["query"]), row["annotation"])
        used |= {"annotation"}
    return Sample(image, (turn,), source, {k: v for k, v in row.items() if k not in used})


def _read_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Read (line number, row) pairs; empty lines are no rows."""
    if not file.is_file():
        what = "is a folder, expected a CSV file" if file.is_dir() else "does not exist"
        raise DataError(f"table {file} {what}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return _parse_rows(file, csv.reader(stream, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}); save the table as UTF-8") from error


def _parse_rows(file: Path, reader: Reader) -> list[tuple[int, dict[str, str]]]:
    header: list[str] | None = None
    rows: list[tuple[int, dict[str, str]]] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{file}:{line}: the row is no valid CSV: {error}") from error
        if cells is None:
            break
        if not cells:
            continue
        if header is None:
            header = _header(file, cells)
        else:
            rows.append((line, _row(file, line, header, cells)))
    if not rows:
        raise DataError(f"{file} has no rows; expected a header line and at least one row")
    return rows


def _header(file: Path, cells: Sequence[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{file}: columns {repeated} occur more than once in the header {header}")
    return header


def _row(file: Path, line: int, header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) < len(header):
        raise DataError(
            f"{file}:{line}: cell {header[len(cells)]!r} is missing; the row has {len(cells)} "
            f"cells, the header {len(header)} ({', '.join(header)})"
        )
    if len(cells) > len(header):
        raise DataError(
            f"{file}:{line}: the row has {len(cells)} cells, the header only {len(header)} "
            f"({', '.join(header)}); put text that contains a comma in double quotes"
        )
    return dict(zip(header, cells, strict=True))


def _resolve_images(
    file: Path, urls: Sequence[tuple[int, str]], data_dir: str
) -> list[tuple[int, Path]]:
    """Turn the cells of column ``url`` into paths, by the rule of :func:`read_tables`."""
    for line, url in urls:
        if not url:
            raise DataError(f"{file}:{line}: cell 'url' is empty, expected the path of an image")
        if "://" in url:
            raise DataError(
                f"{file}:{line}: url {url!r} is an address, expected the path of an image file; "
                "download the images and put their paths into the table"
            )
    base = Path(data_dir).expanduser() if data_dir else file.parent
    images = [(line, base / url) for line, url in urls]
    if not data_dir and not any(image.is_file() for _, image in images):
        here = [(line, Path(url)) for line, url in urls]
        if any(image.is_file() for _, image in here):
            return here
    return images


def _check_images(file: Path, images: Sequence[tuple[int, Path]]) -> None:
    present: dict[Path, bool] = {}
    for _, image in images:
        if image not in present:
            present[image] = image.is_file()
    missing = [(line, image) for line, image in images if not present[image]]
    if not missing:
        return
    shown = "".join(f"\n  {file}:{line}: {image}" for line, image in missing[:_SHOWN])
    more = f"\n  and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    raise DataError(
        f"{file}: the images of {len(missing)} of {len(images)} rows do not exist:{shown}{more}\n"
        "A relative path starts at paths.data_dir when that is set; otherwise at the folder of "
        "the table, or, when none of the images is there, at the working directory. Set "
        "paths.data_dir, or mend the column 'url'"
    )
