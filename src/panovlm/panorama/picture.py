"""Where the picture of a panorama is, and how it shows the sphere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from panovlm.config.image_input import PLAIN, ImageInput


class Stored(Protocol):
    """A picture inside another file. It is hashable, and its text names its place."""

    def open(self) -> BinaryIO:
        """Open it for reading and seeking.

        Raises:
            OSError: it is not there any more.
        """
        ...


@dataclass(frozen=True)
class Picture:
    """The picture of a panorama."""

    file: Path | Stored
    """A file of its own, or its place in one that holds several."""
    input: ImageInput = PLAIN
    """How it shows the sphere."""

    def open(self) -> BinaryIO:
        """Open it for reading and seeking.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        return self.file.open("rb") if isinstance(self.file, Path) else self.file.open()

    def __str__(self) -> str:
        """Return its place, and what is declared of it."""
        return str(self.file) if self.input.is_plain else f"{self.file} ({self.input})"


Image = Path | Picture
"""What a row names: the path of an equirectangular picture, or more than that."""

Source = str | Image
"""What is read: the same, or the path as text."""


def as_picture(source: Source) -> Picture:
    """Return the picture that is meant."""
    return source if isinstance(source, Picture) else Picture(Path(source))


def is_there(image: Image) -> bool:
    """Tell whether the file of an image exists; what stands inside of one does."""
    file = image.file if isinstance(image, Picture) else image
    return not isinstance(file, Path) or file.is_file()
