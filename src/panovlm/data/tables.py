"""Tables of any form, read row by row.

=====================================  =============================================================
named                                  holds
=====================================  =============================================================
``.tar``                               pictures and JSON (:mod:`~panovlm.data.shards`)
``.parquet``, ``.arrow``, a folder     a Hugging Face data set (:mod:`~panovlm.data.hub_rows`)
``.json``, ``.jsonl``, ``.ndjson``,    conversations (:mod:`~panovlm.data.conversations`)
or beginning with ``{`` or ``[``
anything else                          CSV (:mod:`~panovlm.data.csv_rows`)
=====================================  =============================================================

Texts are UTF-8, with or without byte order mark. A name with ``*``, ``?`` or a range such as
``{000..011}`` means several files.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from panovlm.config.image_input import PLAIN, ImageInput
from panovlm.data.conversations import json_rows
from panovlm.data.csv_rows import csv_rows
from panovlm.data.hub_rows import hub_rows, is_hub_data
from panovlm.data.image_columns import declared
from panovlm.data.rows import Row, Rows, read_text
from panovlm.data.shards import PACKED, shard_rows
from panovlm.errors import DataError

_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}", re.ASCII)
_MOST = 1_000_000
"""Files that a range may mean."""


def expanded(file: Path) -> list[Path]:
    """Return the files that a name means: that one, or those of a pattern, in their order.

    ``{000..011}`` are all twelve numbers, each with as many digits as the first; ``*`` and ``?``
    stand for what is there.

    Raises:
        DataError: nothing matches.
    """
    if file.exists():
        return [file]
    found = [
        path
        for name in _numbered(str(file))
        for path in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])  # noqa: PTH207
    ]
    if not found:
        raise DataError(f"table {file}: no file has such a name")
    return [Path(path) for path in found]


def is_text(file: Path) -> bool:
    """Tell whether a table is a text: CSV or JSON."""
    return not (file.name.lower().endswith((".tar", *PACKED)) or is_hub_data(file))


def table_rows(
    file: Path, image_input: ImageInput = PLAIN, stream_blocks: int | None = None
) -> Rows:
    """Read a table and go on behind rows with a fault.

    Args:
        file: the table, not a pattern.
        image_input: how pictures show the sphere of which the row says nothing.
        stream_blocks: read Parquet files as they are, and keep so many row groups of them; None:
            copy them so that every row can be read alone.

    Yields:
        Rows, and errors in place of those that cannot be used.

    Raises:
        DataError: nothing of the table can be used.
    """
    for row in _rows(file, stream_blocks):
        yield row if isinstance(row, DataError) else _with_input(row, image_input)


def _rows(file: Path, stream_blocks: int | None) -> Rows:
    name = file.name.lower()
    if is_hub_data(file):
        return hub_rows(file, stream_blocks)
    if not is_text(file):
        return shard_rows(file)
    text = read_text(file)
    if name.endswith(_JSON_SUFFIXES) or text.lstrip()[:1] in ("{", "["):
        return json_rows(file, text)
    return csv_rows(file, text)


def _numbered(name: str) -> Iterator[str]:
    """Yield the names that the first range of a name means, and those of the ranges behind it."""
    span = _RANGE.search(name)
    if span is None:
        yield name
        return
    first, last = int(span[1]), int(span[2])
    if not first <= last < first + _MOST:
        raise DataError(f"table {name}: {span[0]} is no range of up to {_MOST} numbers")
    for number in range(first, last + 1):
        yield from _numbered(f"{name[: span.start()]}{number:0{len(span[1])}}{name[span.end() :]}")


def _with_input(row: Row, image_input: ImageInput) -> Row | DataError:
    try:
        found = declared(row.source, row.columns, image_input)
    except DataError as error:
        return error
    return row if found.is_plain else replace(row, input=found)
