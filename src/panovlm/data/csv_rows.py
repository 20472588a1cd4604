"""CSV tables: a header line, then one question and answer per row.

The columns are ``url`` (path of a panorama) and either ``instruction`` + ``response``, or
``query`` + ``annotation``; with both pairs present the first is used. Every cell is text and stays
as it is: an empty cell is an empty string and ``nan`` is a word.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from panovlm.data.rows import Row, Rows, checked_url
from panovlm.errors import DataError
from panovlm.panorama.picture import Stored

QUERY_TEMPLATE = (
    'In this panoramic image, please provide a concise but detailed description of "{query}".'
)
"""User text of a row that gives a ``query`` instead of an ``instruction``."""

_PAIRS = (("instruction", "response"), ("query", "annotation"))

Line = tuple[int, list[str]]
"""Number of the line on which a row begins (1 is the first), and the row's cells."""


def csv_rows(file: Path, text: str) -> Rows:
    """Read a CSV table.

    Args:
        file: named in messages and sources.
        text: its content.

    Yields:
        Rows, and errors in place of those that cannot be used.

    Raises:
        DataError: The table lacks a column or all rows, so that nothing of it can be used.
    """
    lines = _lines(file, text)
    first = next(lines, None)
    if isinstance(first, DataError):
        raise first
    header = _header(file, first[1]) if first else []
    empty = True
    for line in lines:
        empty = False
        yield line if isinstance(line, DataError) else _row(file, header, line)
    if empty:
        raise DataError(f"{file} has no rows; expected a header line and at least one row")


def _lines(file: Path, text: str) -> Iterator[Line | DataError]:
    """Yield the rows as cells; empty lines are none."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield DataError(f"{file}:{line}: the row is no valid CSV: {error}")
            continue
        if cells is None:
            return
        if cells:
            yield line, cells


def _header(file: Path, cells: Sequence[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{file}: columns {repeated} occur more than once in the header {header}")
    for column in ("url", *text_columns(str(file), header)):
        if column not in header:
            raise DataError(f"{file}: column {column!r} is missing; the columns are {header}")
    return header


def text_columns(source: str, columns: Sequence[str]) -> tuple[str, str]:
    """Return the pair of columns that holds question and answer; one of them may be missing.

    Raises:
        DataError: there is no such column.
    """
    for pair in _PAIRS:
        if set(pair) <= set(columns):
            return pair
    for pair in _PAIRS:
        if set(pair) & set(columns):
            return pair
    raise DataError(
        f"{source}: a table needs the columns 'instruction' and 'response', or 'query' and "
        f"'annotation'; the columns are {list(columns)}"
    )


def _row(file: Path, header: Sequence[str], line: Line) -> Row | DataError:
    number, cells = line
    source = f"{file}:{number}"
    if len(cells) < len(header):
        return DataError(
            f"{source}: cell {header[len(cells)]!r} is missing; the row has {len(cells)} "
            f"cells, the header {len(header)} ({', '.join(header)})"
        )
    if len(cells) > len(header):
        return DataError(
            f"{source}: the row has {len(cells)} cells, the header only {len(header)} "
            f"({', '.join(header)}); put text that contains a comma in double quotes"
        )
    row = dict(zip(header, cells, strict=True))
    try:
        return cells_row(source, row, checked_url(source, row.pop("url"), "cell 'url'"))
    except DataError as error:
        return error


def cells_row(source: str, row: Mapping[str, str], url: str | Stored) -> Row:
    """Return the row whose cells hold a question and its answer.

    Args:
        source: place of the row.
        row: its cells by the names of their columns, which hold one of the two pairs.
        url: its picture.
    """
    used: set[str] = set()
    if "instruction" in row and "response" in row:
        turn = (row["instruction"], row["response"])
        used |= {"instruction", "response"}
    else:
        turn = (QUERY_TEMPLATE.format(query=row["query"]), row["annotation"])
        used |= {"annotation"}
    return Row(source, url, (turn,), {k: v for k, v in row.items() if k not in used})
