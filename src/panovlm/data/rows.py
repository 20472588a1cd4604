"""One row of a table, whatever the form of its file, before its image is looked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from panovlm.config.image_input import PLAIN, ImageInput
from panovlm.errors import DataError
from panovlm.panorama.picture import Stored

Turn = tuple[str, str]
"""(user text, answer)."""


@dataclass(frozen=True)
class Row:
    """A conversation and the panorama that it names."""

    source: str
    """Where it stands: ``file.csv:12`` (a line) or ``file.json[3]`` (a place in a list)."""
    url: str | Stored
    """Path of the panorama as it is written, or its picture inside the file of the rows."""
    turns: tuple[Turn, ...]
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    """What else the row says, such as ``query`` or ``kind``."""
    input: ImageInput = PLAIN
    """How the picture shows the sphere."""


Rows = Iterator[Row | DataError]
"""The rows of a file in order; one that cannot be used is the error that says why."""


def checked_url(source: str, url: str, name: str) -> str:
    """Return the path of an image without outer white space.

    Args:
        source: place of the row.
        url: what stands there.
        name: how the row calls it.

    Raises:
        DataError: it is empty, or an address.
    """
    url = url.strip()
    if not url:
        raise DataError(f"{source}: {name} is empty, expected the path of an image")
    if "://" in url:
        raise DataError(
            f"{source}: url {url!r} is an address, expected the path of an image file; "
            "download the images and put their paths into the table"
        )
    return url


def read_text(file: Path) -> str:
    """Return the text of a table, without a byte order mark; line ends stay.

    Raises:
        DataError: there is no such file, or it is not UTF-8.
    """
    if not file.is_file():
        what = "is a folder, expected a file" if file.is_dir() else "does not exist"
        raise DataError(f"table {file} {what}")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}); save the table as UTF-8") from error
