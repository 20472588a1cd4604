"""Reading panoramas from files, as 8-bit RGB, with nothing guessed and nothing hidden."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from panovlm.errors import DataError
from panovlm.panorama.gpano import complete, is_part

MIN_WIDTH = 100
MIN_HEIGHT = 50

_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for missing, damaged, cut or oversized files, depending on the format."""

_ORIENTATION = 0x0112
"""EXIF tag; from 5 on, width and height change places."""

Reduction = Callable[[int, int], int]
"""From the height and width of a panorama to what both may be divided by: 1, 2, 4, ..."""

_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xae\x42\x60\x82"}
"""Last bytes of a file that was written to its end."""


def _whole(_height: int, _width: int) -> int:
    return 1


def read_panorama(path: str | Path | IO[bytes], reduction: Reduction = _whole) -> NDArray[np.uint8]:
    """Read an equirectangular panorama.

    The EXIF orientation is applied. Transparency is dropped, as Pillow's ``convert("RGB")`` does;
    grey pictures get three equal channels; 16-bit pictures are scaled to 8 bits. A picture whose
    GPano metadata call it a part of a panorama is put into its place there, with black around it.

    Args:
        path: A JPEG, PNG, WebP or any other file that Pillow reads; or one that is open.
        reduction: How small the panorama may be. JPEG files are decoded smaller by up to that, at
            most an eighth, which takes less time and averages areas; others come in full.

    Returns:
        Pixels [H, W, 3], RGB, 0 to 255.

    Raises:
        DataError: The file is missing, damaged, cut off, of 32-bit pixels, smaller than 100 x 50
            pixels, or has GPano metadata that cannot be.
    """
    try:
        with Image.open(path) as file:
            xmp = _bytes(file.info.get("xmp", b""))
            if not is_part(xmp, _upright(file)):
                _decode_smaller(file, reduction)
            ImageOps.exif_transpose(file, in_place=True)
            pixels = complete(_rgb(file), xmp)
    except _DECODER_ERRORS as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"cannot read the panorama {path}: {reason}") from error
    height, width = pixels.shape[:2]
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        raise DataError(
            f"the panorama {path} has {width} x {height} pixels; "
            f"at least {MIN_WIDTH} x {MIN_HEIGHT} are needed"
        )
    return pixels


def panorama_size(path: str | Path) -> tuple[int, int]:
    """Return width and height of a picture, from the file's header, with its EXIF orientation.

    A part of a panorama has its own size, not that of the whole which its GPano metadata tell.

    Raises:
        DataError: The header cannot be read.
    """
    try:
        with Image.open(path) as picture:
            height, width = _upright(picture)
    except _DECODER_ERRORS as error:
        raise DataError(f"cannot read the panorama {path}: {error}") from error
    return width, height


def check_panorama(path: str | Path) -> None:
    """Find out whether :func:`read_panorama` can read a file, without decoding it if possible.

    A JPEG or PNG file with a good header and an end is taken to be whole; damage in between is
    found only when it is read.

    Raises:
        DataError: As :func:`read_panorama`.
    """
    try:
        with Image.open(path) as picture:
            mark, mode, size = _END_MARKS.get(picture.format or ""), picture.mode, picture.size
        if mark is not None and mode not in ("I", "F") and min(size) >= MIN_WIDTH:
            with Path(path).open("rb") as file:
                file.seek(-len(mark), os.SEEK_END)
                if file.read() == mark:
                    return
    except _DECODER_ERRORS:
        pass  # told below, by what reads it
    read_panorama(path)


def _upright(picture: Image.Image) -> tuple[int, int]:
    """Return height and width of a picture once it is turned by its EXIF orientation."""
    width, height = picture.size
    return (width, height) if picture.getexif().get(_ORIENTATION, 1) >= 5 else (height, width)


def _decode_smaller(picture: Image.Image, reduction: Reduction) -> None:
    """Choose the scale at which a JPEG file is decoded; nothing happens with other files.

    Only scales that divide both sides are taken: the last pixel of others would lie partly beyond
    the seam.
    """
    factor = min(reduction(*_upright(picture)), 8)
    width, height = picture.size
    while factor > 1 and (width % factor or height % factor):
        factor //= 2
    if factor > 1:
        picture.draft(None, (width // factor, height // factor))


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels [H, W, 3] of a picture of any mode."""
    if image.mode.startswith("I;16"):
        grey = np.rint(np.asarray(image, np.float64) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are 32-bit (mode {image.mode}), with no defined white; "
            "save it with 8 or 16 bits per channel"
        )
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _bytes(xmp: object) -> bytes:
    """Return an XMP packet as bytes, which Pillow gives as text for some formats."""
    return xmp if isinstance(xmp, bytes) else str(xmp).encode()
