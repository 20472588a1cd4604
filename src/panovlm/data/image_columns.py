"""What the rows of a table declare about their pictures."""

from __future__ import annotations

from collections.abc import Mapping

from panovlm.config.image_input import ImageInput
from panovlm.config.problems import ValidationError
from panovlm.errors import DataError

COLUMNS = {f"image_{name}": name for name in ImageInput.model_fields}
"""Column of a table → field of :class:`ImageInput`."""


def declared(source: str, columns: Mapping[str, str], default: ImageInput) -> ImageInput:
    """Return how a row's picture shows the sphere: as the row says, else as the settings say.

    Args:
        source: place of the row.
        columns: its further columns; empty cells say nothing.
        default: ``data.input`` of the settings; it holds for rows that declare nothing.

    Raises:
        DataError: what the row declares is impossible.
    """
    said = {
        name: columns[column].strip()
        for column, name in COLUMNS.items()
        if columns.get(column, "").strip()
    }
    if not said:
        return default
    try:
        return ImageInput.model_validate(said)
    except ValidationError as error:
        faults = "; ".join(
            f"image_{problem}" if problem.path else problem.what for problem in error.problems
        )
        raise DataError(f"{source}: its picture cannot be as declared: {faults}") from error
