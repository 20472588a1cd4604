"""The image processor of a vision tower, from its Hugging Face configuration.

Covers the processors that resize, crop the centre, rescale and normalise: SigLIP, CLIP, DINOv2 and
their like. Same pixels as the Pillow backend of transformers, without importing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from PIL import Image

from panovlm.config.base import StrictModel
from panovlm.config.problems import ValidationError
from panovlm.config.readers import Before, Limits
from panovlm.errors import ConfigError
from panovlm.panorama.cuts import Pixels, resize

Pixel = Annotated[int, Limits(ge=1)]


class BoxSize(StrictModel):
    """A size of two fixed sides, in pixels."""

    height: Pixel
    width: Pixel


class EdgeSize(StrictModel):
    """A size given by its shorter side, in pixels; the picture keeps its proportions."""

    shortest_edge: Pixel


def _square(value: object) -> object:
    """Read one number as a square."""
    return {"height": value, "width": value} if isinstance(value, int) else value


class VisionProcessor(StrictModel):
    """What a tower's image processor does to a picture, in this order.

    Fields and defaults are those of ``preprocessor_config.json``; what else stands there does not
    concern pixels and is ignored. Old files give sizes as one number.
    """

    do_resize: bool = True
    size: BoxSize | EdgeSize | None = None
    resample: Image.Resampling = Image.Resampling.BICUBIC
    do_center_crop: bool = False
    crop_size: Annotated[BoxSize | None, Before(_square)] = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None

    @classmethod
    def _before(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keep what is said about pixels; read a plain number as ``size`` as old processors did.

        It is the shorter side where the centre is cropped afterwards (CLIP), else a square.
        """
        kept = {name: values[name] for name in cls.model_fields if values.get(name) is not None}
        size = kept.get("size")
        if isinstance(size, int):
            crops = kept.get("do_center_crop", False)
            kept["size"] = {"shortest_edge": size} if crops else _square(size)
        return kept

    def _check(self) -> None:
        """Refuse a step whose numbers are missing."""
        for step, fields in (
            ("do_resize", ("size",)),
            ("do_center_crop", ("crop_size",)),
            ("do_normalize", ("image_mean", "image_std")),
        ):
            missing = [field for field in fields if getattr(self, field) is None]
            if getattr(self, step) and missing:
                raise ValueError(f"{step} is on, but {' and '.join(missing)} missing")

    def resized(self, picture: Pixels) -> Pixels:
        """Resize and crop a picture [h, w, 3], keeping its 8 bits."""
        size = self.target((picture.shape[0], picture.shape[1]))
        picture = resize(picture, size, self.resample)
        if self.crop is None:
            return picture
        kept = np.zeros((*self.crop, 3), np.uint8)
        source, target = self.places(size)
        kept[target] = picture[source]
        return kept

    def target(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) to which a picture of ``size`` is resized."""
        return _target(self.size, size) if self.do_resize and self.size is not None else size

    @property
    def crop(self) -> tuple[int, int] | None:
        """The (height, width) that is kept of a resized picture; None: all of it."""
        if not self.do_center_crop or self.crop_size is None:
            return None
        return self.crop_size.height, self.crop_size.width

    def places(self, size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return which rows and columns of a picture of ``size`` are kept, and where they go.

        Where it is too small, black is left around it.
        """
        rows, columns = (
            _overlap(given, wanted) for given, wanted in zip(size, self.crop or size, strict=True)
        )
        return (rows[0], columns[0]), (rows[1], columns[1])

    def window(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return which part of a picture stays: its top, left, bottom and right edges.

        Args:
            size: (height, width) of the picture in pixels.

        Returns:
            Shares of its height and width; below 0 or above 1 where black is added.
        """
        if self.crop is None:
            return 0.0, 0.0, 1.0, 1.0
        (top, bottom), (left, right) = map(_kept, self.target(size), self.crop)
        return top, left, bottom, right


def read_processor(config: Mapping[str, Any]) -> VisionProcessor:
    """Read the configuration of a tower's image processor.

    Args:
        config: Content of its ``preprocessor_config.json``.

    Raises:
        ConfigError: A field is missing, or asks for something that is not supported.
    """
    try:
        return VisionProcessor.model_validate(config)
    except ValidationError as error:
        faults = "; ".join(map(str, error.problems))
        raise ConfigError(
            f"image_processing.vision_processor cannot be used: {faults}. Expected a processor "
            "that resizes, crops the centre, rescales and normalises (SigLIP, CLIP, DINOv2); "
            "with use_vision_processor false none is needed"
        ) from error


def _target(size: BoxSize | EdgeSize, picture: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) to which a picture of (height, width) is resized."""
    if isinstance(size, BoxSize):
        return size.height, size.width
    height, width = picture
    edge = size.shortest_edge
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def _overlap(given: int, wanted: int) -> tuple[slice, slice]:
    """Return which pixels of an axis are taken, and where they go."""
    if given >= wanted:
        first = (given - wanted) // 2
        return slice(first, first + wanted), slice(wanted)
    first = (wanted - given + 1) // 2
    return slice(given), slice(first, first + given)


def _kept(given: int, wanted: int) -> tuple[float, float]:
    """Return which part of an axis of ``given`` pixels :func:`_overlap` leaves, as shares of it."""
    source, target = _overlap(given, wanted)
    first = (source.start or 0) - (target.start or 0)
    return first / given, (first + wanted) / given
