"""The pixels of a picture that Pillow has opened, by the quickest way that gives the same ones."""

from __future__ import annotations

import re
from typing import BinaryIO, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

ORIENTATION = 0x0112
"""EXIF tag of how the camera was held; from 5 on, width and height change places."""

_MARK = re.compile(rb"\xff[^\x00\xd0-\xd7]")
"""A mark in a JPEG file's codes that does not belong to them."""

_START_OF_SCAN = 0xDA
_END_OF_PICTURE = b"\xff\xd9"

_SCALES = {1: cv2.IMREAD_COLOR_RGB, 2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2}
"""How cv2 is told how finely to decode; its flag of halves with colours has them as BGR. At smaller
scales Pillow's copies take no longer than looking for damage."""

_STRIP = 64
"""Rows that go to numpy at once."""


def decoded(file: Image.Image, stream: BinaryIO, finer: int) -> NDArray[np.uint8]:
    """Return the pixels [H, W, 3] of a picture of any mode, turned by its EXIF orientation.

    Args:
        file: What Pillow opened, not loaded yet.
        stream: What it was opened from.
        finer: How many of the file's pixels one of ``file`` stands for, along each side.

    Raises:
        OSError: The file is damaged or cut off; other errors of Pillow likewise.
        ValueError: Its pixels have 32 bits.
    """
    if isinstance(file, JpegImageFile) and finer in _SCALES:
        pixels = _jpeg(file, stream, _SCALES[finer])
        if pixels is not None:
            return pixels
    ImageOps.exif_transpose(file, in_place=True)
    return _rgb(file)


def _jpeg(file: JpegImageFile, stream: BinaryIO, scale: int) -> NDArray[np.uint8] | None:
    """Decode a JPEG file by cv2: the same decoder as Pillow's, but into numpy's memory.

    Returns None where more must be done (other colours, turned pictures), and where Pillow may have
    to say what is wrong.
    """
    if file.mode != "RGB" or file.getexif().get(ORIENTATION, 1) != 1:
        return None
    place = stream.tell()
    stream.seek(0)
    content = stream.read()
    stream.seek(place)
    if not _is_plain(content):
        return None
    flags = scale | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cast("NDArray[np.uint8] | None", cv2.imdecode(np.frombuffer(content, np.uint8), flags))
    return pixels if pixels is not None and pixels.shape == (file.height, file.width, 3) else None


def _is_plain(content: bytes) -> bool:
    """Tell whether a JPEG file has one scan, and no marks within but those that belong there.

    Others are those of progressive files, and of damage that Pillow reports and cv2 does not.
    """
    place, mark = 2, 0
    while mark != _START_OF_SCAN and content[place : place + 1] == b"\xff":
        mark = int.from_bytes(content[place + 1 : place + 2])
        place += 2 + int.from_bytes(content[place + 2 : place + 4])
    found = _MARK.search(content, place)
    return found is not None and found[0] == _END_OF_PICTURE


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
    # In strips, since Pillow gives its memory to numpy by way of a copy, and that of a whole
    # picture takes longer to get from the system than to write.
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        if strip.mode != "RGB":  # else it would be copied all the same
            strip = strip.convert("RGB")
        pixels[top : top + _STRIP] = np.asarray(strip)
    return pixels
