"""Rows out of objects: the JSON of a shard or the row of a data set, with its picture apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from panovlm.data.conversations import conversation_row, is_conversation, text_of
from panovlm.data.csv_rows import cells_row, text_columns
from panovlm.data.rows import Row, checked_url
from panovlm.errors import DataError
from panovlm.panorama.picture import Stored


def object_row(source: str, value: object, picture: str | Stored) -> Row | DataError:
    """Return the row that an object says about a picture, or the error that tells why not.

    Args:
        source: place of the object.
        value: a conversation as in a JSON table, or question and answer under the names of a CSV
            table's columns.
        picture: what it is about.
    """
    try:
        if not isinstance(value, Mapping):
            raise DataError(f"{source}: expected an object with 'conversations' or 'instruction'")
        if isinstance(picture, str):
            picture = checked_url(source, picture, "the path of its picture")
        entry = cast("Mapping[str, Any]", value)
        if is_conversation(entry):
            return conversation_row(source, entry, picture)
        cells = {name: text_of(cell) for name, cell in entry.items() if cell is not None}
        missing = [name for name in text_columns(source, list(entry)) if name not in cells]
        if missing:
            raise DataError(f"{source}: {missing[0]!r} is missing; its keys are {sorted(cells)}")
        return cells_row(source, cells, picture)
    except DataError as error:
        return error
