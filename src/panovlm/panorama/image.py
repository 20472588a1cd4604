"""Reading panoramas from files, as 8-bit RGB, with nothing guessed and nothing hidden."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from panovlm.errors import DataError
from panovlm.panorama.cubemap import cube_to_erp, face_size
from panovlm.panorama.decode import ORIENTATION, decoded
from panovlm.panorama.gpano import complete, is_part, refuse_beside
from panovlm.panorama.partial import whole_of_part, whole_size
from panovlm.panorama.picture import Picture, Source, as_picture

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

Reduction = Callable[[int, int], int]
"""From the height and width of a panorama to what both may be divided by: 1, 2, 4, ..."""

_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xae\x42\x60\x82"}
"""Last bytes of a file that was written to its end."""


def _full(_height: int, _width: int) -> int:
    return 1


def read_panorama(source: Source, reduction: Reduction = _full) -> NDArray[np.uint8]:
    """Read a panorama, as an equirectangular picture of the whole sphere.

    The EXIF orientation is applied. Transparency is dropped, as Pillow's ``convert("RGB")`` does;
    grey pictures get three equal channels; 16-bit pictures are scaled to 8 bits. A picture whose
    GPano metadata call it a part of a panorama is put into its place there, with black around it.
    So is one that is declared to be a part; faces of a cube, where declared, are projected.

    Args:
        source: A JPEG, PNG, WebP or any other file that Pillow reads.
        reduction: How small the panorama may be. JPEG files of whole panoramas are decoded smaller
            by up to that, at most an eighth, which takes less time and averages areas; others come
            in full.

    Returns:
        Pixels [H, W, 3], RGB, 0 to 255.

    Raises:
        DataError: The file is missing, damaged, cut off, of 32-bit pixels, smaller than 100 x 50
            pixels, has GPano metadata that cannot be, or is not of the declared layout.
    """
    picture = as_picture(source)
    finer = 1
    try:
        with picture.open() as stream, Image.open(stream) as file:
            xmp = _bytes(file.info.get("xmp", b""))
            if picture.input.is_plain and not is_part(xmp, _upright(file)):
                finer = _decode_smaller(file, reduction)
            pixels = _whole(decoded(file, stream, finer), picture, xmp)
    except _DECODER_ERRORS as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else _reason(error, picture)
        raise DataError(f"cannot read the panorama {picture}: {reason}") from error
    height, width = (finer * side for side in pixels.shape[:2])
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        raise DataError(
            f"the panorama {picture} has {width} x {height} pixels; "
            f"at least {MIN_WIDTH} x {MIN_HEIGHT} are needed"
        )
    return pixels


def panorama_size(source: Source) -> tuple[int, int]:
    """Return width and height of a panorama, from the file's header, with its EXIF orientation.

    A part of a panorama of which only its GPano metadata tell has its own size; where the layout is
    declared, the size is that of the whole.

    Raises:
        DataError: The header cannot be read, or the size is not one of the declared layout.
    """
    picture = as_picture(source)
    try:
        with picture.open() as stream, Image.open(stream) as file:
            height, width = _upright(file)
        return _whole_size(picture, width, height)
    except _DECODER_ERRORS as error:
        reason = _reason(error, picture)
        raise DataError(f"cannot read the panorama {picture}: {reason}") from error


def check_panorama(source: Source) -> None:
    """Find out whether :func:`read_panorama` can read a file, without decoding it if possible.

    A JPEG or PNG file with a good header and an end is taken to be whole; damage in between is
    found only when it is read.

    Raises:
        DataError: As :func:`read_panorama`.
    """
    picture = as_picture(source)
    try:
        with picture.open() as stream:
            with Image.open(stream) as file:
                mark, mode, size = _END_MARKS.get(file.format or ""), file.mode, file.size
                stated = "xmp" in file.info and not picture.input.is_plain
            if mark is not None and mode not in ("I", "F") and min(size) >= MIN_WIDTH:
                stream.seek(-len(mark), os.SEEK_END)
                if stream.read() == mark and not stated:
                    if not picture.input.is_plain:
                        panorama_size(picture)
                    return
    except (*_DECODER_ERRORS, DataError):
        pass  # told below, by what reads it
    read_panorama(picture)


def _whole(pixels: NDArray[np.uint8], picture: Picture, xmp: bytes) -> NDArray[np.uint8]:
    """Return the whole sphere of which a picture shows the pixels [h, w, 3]."""
    if picture.input.is_plain:
        return complete(pixels, xmp)
    refuse_beside(xmp, picture.input)
    if picture.input.layout == "erp":
        return whole_of_part(pixels, picture.input)
    return cube_to_erp(pixels, picture.input)


def _whole_size(picture: Picture, width: int, height: int) -> tuple[int, int]:
    """Return width and height of the panorama that a picture of this size declares."""
    if picture.input.is_plain:
        return width, height
    if picture.input.layout == "erp":
        whole_height, whole_width = whole_size(picture.input, width, height)
        return whole_width, whole_height
    side = face_size(picture.input, width, height)
    return 4 * side, 2 * side


def _reason(error: Exception, picture: Picture) -> str:
    """Say why a file cannot be read; Pillow names an open file by its place in memory."""
    if isinstance(error, UnidentifiedImageError):
        return f"cannot identify image file {str(picture.file)!r}"
    return str(error)


def _upright(picture: Image.Image) -> tuple[int, int]:
    """Return height and width of a picture once it is turned by its EXIF orientation."""
    width, height = picture.size
    return (width, height) if picture.getexif().get(ORIENTATION, 1) >= 5 else (height, width)


def _decode_smaller(picture: Image.Image, reduction: Reduction) -> int:
    """Choose the scale at which a JPEG file is decoded; nothing happens with other files.

    Returns how many of the file's pixels one that is decoded stands for, along each side.

    Only scales that divide both sides are taken: the last pixel of others would lie partly beyond
    the seam.
    """
    factor = min(reduction(*_upright(picture)), 8)
    full = width, height = picture.size
    while factor > 1 and (width % factor or height % factor):
        factor //= 2
    if factor > 1:
        picture.draft(None, (width // factor, height // factor))
    return full[0] // picture.size[0]


def _bytes(xmp: object) -> bytes:
    """Return an XMP packet as bytes, which Pillow gives as text for some formats."""
    return xmp if isinstance(xmp, bytes) else str(xmp).encode()
