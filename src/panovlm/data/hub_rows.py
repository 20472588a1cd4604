"""Hugging Face data sets in local files: Parquet, Arrow, saved data sets and image folders.

A row has a picture in the column ``image`` (or ``url``), as bytes or as a path, and beside it the
columns of a CSV table or a conversation. Texts are read at once, a picture when it is needed. The
library ``datasets`` keeps files open as memory maps; Parquet files, in which no row can be read
alone, it copies into its cache first. Streamed, they are read as they are, one row group after the
other (``data.stream_blocks``).
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from panovlm.data.objects import object_row
from panovlm.data.rows import Rows
from panovlm.data.windows import memory_window
from panovlm.errors import ConfigError, DataError
from panovlm.panorama.picture import Stored

_IMAGES = ("image", "url")
_BOTH = "struct<bytes: binary, path: string>"
_BYTES = (_BOTH, "binary", "large_binary")
_PATHS = ("string", "large_string", "null")
"""Types of Arrow."""
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class Cell:
    """A picture in a row of a data set that is open as a memory map."""

    source: str
    """Place of the row."""
    row: int
    column: str
    """Column of the pictures."""
    table: Any = field(compare=False, repr=False)
    """The memory map; another process opens the same file anew."""

    def open(self) -> BinaryIO:
        """Open it for reading and seeking; nothing is copied."""
        return _opened(self.table.column(self.column)[self.row], self.source)

    def __str__(self) -> str:
        """Return its place, such as ``train.arrow[12]``."""
        return self.source


@dataclass(frozen=True)
class StreamedCell:
    """A picture in a row of a Parquet file, read together with the row group that it stands in."""

    file: Path
    group: int
    row: int
    """Within the group."""
    column: str
    keep: int
    """Row groups that a process keeps."""

    def open(self) -> BinaryIO:
        """Open it for reading and seeking."""
        try:
            return _opened(_group(self)[self.row], str(self))
        except _library("pyarrow").ArrowException as error:
            raise OSError(f"{self.file} is damaged: {error}") from error

    def __str__(self) -> str:
        """Return its place, such as ``train.parquet{3}[12]``: row 12 of row group 3."""
        return f"{self.file}{{{self.group}}}[{self.row}]"


def is_hub_data(file: Path) -> bool:
    """Tell whether a file or folder is read as a data set."""
    return file.suffix.lower() in (".parquet", ".arrow") or file.is_dir()


def hub_rows(file: Path, stream_blocks: int | None = None) -> Rows:
    """Read the rows of a data set, without its pictures.

    Args:
        file: the file or folder.
        stream_blocks: read Parquet row group by row group, and keep so many of them; None: copy it
            to Arrow, so that every row can be read alone.

    Yields:
        Rows, and errors in place of those that cannot be used.

    Raises:
        DataError: it is no data set, is damaged, or lacks pictures.
        ConfigError: the library that reads it is not installed.
    """
    _check_there(file)
    pyarrow, datasets = _library("pyarrow"), _library("datasets")
    faults = (pyarrow.ArrowException, datasets.exceptions.DatasetsError, OSError, ValueError)
    empty = True
    try:
        streamed = stream_blocks is not None and file.suffix.lower() == ".parquet"
        rows = _streamed(file, stream_blocks or 1) if streamed else _mapped(file, datasets)
        for row in rows:
            empty = False
            yield row
    except faults as error:
        raise DataError(f"{file} cannot be read as a data set: {error}") from error
    if empty:
        raise DataError(f"{file} has no rows; expected at least one")


def _mapped(file: Path, datasets: Any) -> Rows:
    """Read a data set through a memory map."""
    table = _opened_set(file, datasets).data
    name, _ = _image_column(file, table.schema)

    def cell(row: int) -> Stored:
        return Cell(f"{file}[{row}]", row, name, table)

    texts = _texts(table.schema, name)
    yield from _rows(file, table.select([*texts, name]).to_batches(), name, cell)


def _streamed(file: Path, keep: int) -> Rows:
    """Read the texts of a Parquet file; its pictures stay where they are."""
    parquet = importlib.import_module("pyarrow.parquet")
    with parquet.ParquetFile(file) as opened:
        name, inside = _image_column(file, opened.schema_arrow)
        texts = _texts(opened.schema_arrow, name) + ([] if inside else [name])
        first = 0
        for group in range(opened.num_row_groups):

            def cell(row: int, group: int = group, first: int = first) -> Stored:
                return StreamedCell(file, group, row - first, name, keep)

            table = opened.read_row_group(group, columns=texts)
            batches = table.to_batches() or [table]
            yield from _rows(file, batches, None if inside else name, cell, first)
            first += opened.metadata.row_group(group).num_rows


def _rows(
    file: Path,
    batches: Iterable[Any],
    name: str | None,
    cell: Callable[[int], Stored],
    first: int = 0,
) -> Rows:
    """Read batches of rows.

    Args:
        file: named in messages.
        batches: tables of Arrow.
        name: column of pictures among theirs; None: they have none, all pictures are stored.
        cell: gives the stored picture of a row.
        first: number of the first row.
    """
    numbers = count(first)
    for batch in batches:
        paths = _paths(batch.column(name)) if name else [None] * batch.num_rows
        texts = batch.drop_columns([name]) if name else batch
        for path, values in zip(paths, texts.to_pylist(), strict=True):
            row = next(numbers)
            yield object_row(f"{file}[{row}]", values, cell(row) if path is None else path)


def _paths(column: Any) -> list[str | None]:
    """Return the paths that a column of pictures gives, None where it holds a picture's bytes."""
    kind = str(column.type)
    if kind == _BOTH:
        stored = column.field("bytes").is_valid().to_pylist()
        named = column.field("path").to_pylist()
        return [None if inside else path or "" for inside, path in zip(stored, named, strict=True)]
    if kind in _PATHS:
        return [path or "" for path in column.to_pylist()]
    return [None] * len(column)


def _image_column(file: Path, schema: Any) -> tuple[str, bool]:
    """Return the column of pictures, and whether it can hold their bytes."""
    found = [name for name in _IMAGES if name in schema.names]
    if len(found) != 1:
        raise DataError(
            f"{file}: expected one column of pictures, 'image' or 'url'; the columns are "
            f"{schema.names}"
        )
    kind = str(schema.field(found[0]).type)
    if kind not in (*_PATHS, *_BYTES):
        raise DataError(
            f"{file}: column {found[0]!r} holds {kind}, expected one picture per row, as bytes, as "
            "a path, or both as datasets writes them (struct<bytes: binary, path: string>)"
        )
    return found[0], kind in _BYTES


def _texts(schema: Any, image: str) -> list[str]:
    """Return the other columns, without those that hold bytes: further pictures, say."""
    return [
        name
        for name in schema.names
        if name != image and "binary" not in str(schema.field(name).type)
    ]


def _opened(value: Any, source: str) -> BinaryIO:
    """Open the bytes of a picture, in a struct as ``datasets`` writes them or bare."""
    pyarrow = _library("pyarrow")
    held = value["bytes"] if isinstance(value, pyarrow.StructScalar) else value
    if not held.is_valid:
        raise OSError(f"{source} holds no picture")
    return memory_window(memoryview(held.as_buffer()).cast("B"))


_groups: OrderedDict[tuple[Path, int, str], Any] = OrderedDict()
"""Row groups that this process read last."""
_reading = Lock()
"""Of a process's threads one reads at a time, so that none reads what another does."""


def _group(cell: StreamedCell) -> Any:
    """Return the pictures of a row group, read if they are not kept."""
    key = (cell.file, cell.group, cell.column)
    with _reading:
        if key not in _groups:
            parquet = importlib.import_module("pyarrow.parquet")
            with parquet.ParquetFile(cell.file) as opened:
                _groups[key] = opened.read_row_group(cell.group, columns=[cell.column]).column(0)
        _groups.move_to_end(key)
        while len(_groups) > cell.keep:
            _groups.popitem(last=False)
        return _groups[key]


def _opened_set(file: Path, datasets: Any) -> Any:
    """Return a data set of ``datasets``."""
    if file.suffix.lower() == ".arrow":
        return datasets.Dataset.from_file(str(file))
    if file.is_file():
        return datasets.load_dataset("parquet", data_files=[str(file)], split="train")
    if (file / "state.json").is_file():
        return datasets.load_from_disk(str(file))
    found = datasets.load_dataset("imagefolder", data_dir=str(file), drop_labels=True)
    if len(found) != 1:
        raise DataError(f"{file} holds several splits; name one folder: {', '.join(found)}")
    return next(iter(found.values()))


def _check_there(file: Path) -> None:
    """Refuse what is no data set at once, whether or not there is a library to read it."""
    if file.is_file() or any((file / name).is_file() for name in ("state.json", *_METADATA)):
        return
    if not file.exists():
        raise DataError(f"table {file} does not exist")
    if (file / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in file.iterdir() if (path / "state.json").is_file())
        raise DataError(f"{file} holds several splits; name one of them: {', '.join(splits)}")
    raise DataError(
        f"table {file} is a folder, expected a file, a data set that was saved by save_to_disk, or "
        f"pictures beside {' or '.join(_METADATA)}"
    )


def _library(name: str) -> Any:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            "reading Parquet, Arrow and saved data sets needs the library datasets: "
            "pip install 'panovlm[datasets]'"
        ) from error
    if name == "datasets":
        module.disable_progress_bars()
    return module
