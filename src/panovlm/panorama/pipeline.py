"""From a panorama to the pixels of the vision tower: cut the views, resize, normalise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panovlm.config.schema import ImageProcessing
from panovlm.errors import ConfigError, DataError
from panovlm.panorama.cuts import Cut, Pixels, resize, resize_by_areas, take_all
from panovlm.panorama.detail import REST, density, rendered
from panovlm.panorama.image import read_panorama
from panovlm.panorama.picture import Source
from panovlm.panorama.processor import VisionProcessor, read_processor
from panovlm.panorama.projection import halving, shrink
from panovlm.panorama.views import SLICED, View, shots_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ViewPipeline:
    """Turns panoramas into the views of one setting; training, evaluation and serving share it.

    With ``use_vision_processor`` the cut pictures are resized and normalised as the tower's own
    processor says, and so have its size; ``normalize``, ``image_mean`` and ``image_std`` do not
    count then. Otherwise they are resized to ``image_size`` (Lanczos), divided by 255 and
    normalised with ``image_mean`` and ``image_std``. With ``rendering`` other than ``exact`` the
    panorama is made smaller first, as far as the views allow it (:mod:`panovlm.panorama.detail`).

    Attributes:
        settings: What it was made of.
        views: What each view shows, in the order of the pixels.
        cuts: How each is cut.
        size: (height, width) of a view, where no processor makes it.
        processor: The tower's own processor, where it makes the views small.
        values: What each of the 256 pixel values becomes in each channel, float32 [1, 256, 3].
    """

    settings: ImageProcessing
    views: tuple[View, ...]
    cuts: tuple[Cut, ...]
    size: tuple[int, int]
    processor: VisionProcessor | None
    values: NDArray[np.float32]

    def __init__(self, settings: ImageProcessing) -> None:
        """Prepare the cuts and the normalisation.

        Raises:
            ConfigError: ``image_size`` is unset, the processor's configuration is missing or not
                supported, or the strategy cannot work with these settings.
        """
        if settings.image_size is None:
            raise ConfigError(
                "image_processing.image_size is unset: give the (height, width) of one view in "
                "pixels, as the vision tower expects it"
            )
        self.settings = settings
        self.size = settings.image_size
        self._strategy = settings.crop_strategy
        config = settings.vision_processor
        given = None if config is None else read_processor(config)
        if settings.use_vision_processor and given is None:
            raise ConfigError(
                "image_processing.use_vision_processor is on, but "
                "image_processing.vision_processor is unset: give the content of the tower's "
                "preprocessor_config.json, or set use_vision_processor to false"
            )
        self.processor = given if settings.use_vision_processor else None
        self.values = _pixel_values(settings, given)
        shots = shots_of(settings)
        self.views = tuple(shot.view for shot in shots)
        self.cuts = tuple(rendered(shot.cut, settings.rendering) for shot in shots)
        self._rest = REST.get(settings.rendering)
        if self._rest is not None:
            _require_free_sizes(settings, self.processor)

    def reduction(self, height: int, width: int) -> int:
        """Return by what a panorama may be divided before it is cut: 1, 2, 4, ...; see `render`."""
        if self._rest is None:
            return 1
        return halving(density((height, width), self.cuts, self.size), self._rest)

    def load(self, source: Source) -> NDArray[np.float32]:
        """Return the normalised views [V, 3, h, w] of a file, decoded no finer than needed.

        Raises:
            DataError: It cannot be read or cut.
        """
        return self.normalise(self.read(source))

    def read(self, source: Source) -> NDArray[np.uint8]:
        """Return the views [V, h, w, 3] of a file, 0 to 255, decoded no finer than needed.

        Raises:
            DataError: It cannot be read or cut.
        """
        return self.render(read_panorama(source, self.reduction))

    def render(self, erp: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut and resize the views.

        Args:
            erp: Panorama [H, W, 3], RGB, 0 to 255.

        Returns:
            Views [V, h, w, 3], RGB, 0 to 255.

        Raises:
            DataError: The panorama is not such an array, or too small or large to be cut.
            ConfigError: The tower's processor gives the views different sizes.
        """
        return self.stack(take_all(self.reduced(erp), self.cuts))

    def reduced(self, erp: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Make a panorama [H, W, 3] as small as the views allow.

        Raises:
            DataError: It is not such an array.
        """
        if erp.dtype != np.uint8 or erp.ndim != 3 or erp.shape[2] != 3:
            raise DataError(
                f"a panorama must be uint8 of shape [height, width, 3], got {erp.dtype} of shape "
                f"{list(erp.shape)}"
            )
        if self._rest is None:
            return erp
        needed = density((erp.shape[0], erp.shape[1]), self.cuts, self.size)
        return shrink(erp, needed, rest=self._rest)

    def stack(self, cut: Sequence[Pixels]) -> NDArray[np.uint8]:
        """Resize pictures that were cut to views [V, h, w, 3].

        Raises:
            ConfigError: The tower's processor gives the views different sizes.
        """
        pictures = [self._resized(picture) for picture in cut]
        self.require_one_size(picture.shape[:2] for picture in pictures)
        return np.stack(pictures)

    def require_one_size(self, sizes: Iterable[tuple[int, ...]]) -> None:
        """Refuse views of different (height, width).

        Raises:
            ConfigError: The tower's processor gives them.
        """
        found = sorted(set(sizes))
        if len(found) > 1:
            raise ConfigError(
                f"image_processing.vision_processor gives the views of crop_strategy "
                f"{self._strategy} different sizes (height, width): {found}. Give it a fixed size "
                "({height, width}) or do_center_crop, or set use_vision_processor to false"
            )

    def normalise(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn pixels [V, h, w, 3], 0 to 255, into what the tower reads: float32 [V, 3, h, w]."""
        count, height, width, _ = views.shape
        values = np.empty((count, 3, height, width), np.float32)
        for view, target in zip(views, values, strict=True):
            for channel, plane in enumerate(cv2.split(view)):
                cv2.LUT(plane, self.values[..., channel], dst=target[channel])
        return values

    def __call__(self, erp: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the normalised views [V, 3, h, w] of a panorama [H, W, 3]; see :meth:`render`."""
        return self.normalise(self.render(erp))

    def _resized(self, picture: Pixels) -> Pixels:
        """Bring a cut picture to the size of a view."""
        if self.processor is not None:
            return self.processor.resized(picture)
        if self._rest is not None:
            return resize_by_areas(picture, self.size)
        return resize(picture, self.size, Image.Resampling.LANCZOS)


def _require_free_sizes(settings: ImageProcessing, processor: VisionProcessor | None) -> None:
    """Refuse to make the panorama smaller where views depend on the number of its pixels.

    Raises:
        ConfigError: They do.
    """
    if processor is not None:
        raise ConfigError(
            f"image_processing.rendering is {settings.rendering}, but use_vision_processor is on, "
            "so that the tower's processor makes the views small: set use_vision_processor to "
            "false (its mean and standard deviation still count), or rendering to exact"
        )
    if settings.crop_strategy in SLICED:
        raise ConfigError(
            f"image_processing.rendering is {settings.rendering}, but crop_strategy "
            f"{settings.crop_strategy} cuts slices in whole pixels of the panorama, which would "
            "lie elsewhere in a smaller one: set rendering to exact"
        )


def _pixel_values(
    settings: ImageProcessing, processor: VisionProcessor | None
) -> NDArray[np.float32]:
    """Return what each of the 256 pixel values becomes in each channel, [1, 256, 3].

    The order of roundings is that of transformers: rescale in float64, the rest in float32.
    """
    values = np.repeat(np.arange(256, dtype=np.float64)[:, None], 3, axis=1)
    if settings.use_vision_processor and processor is not None:
        normalize = processor.do_normalize
        values *= processor.rescale_factor if processor.do_rescale else 1
        mean, std = processor.image_mean, processor.image_std
    else:
        normalize = settings.normalize
        values *= 1 / 255
        mean = settings.image_mean or (processor.image_mean if processor else None)
        std = settings.image_std or (processor.image_std if processor else None)
    table = values.astype(np.float32)
    if normalize:
        table -= np.array(mean or IMAGENET_MEAN, np.float32)
        table /= np.array(std or IMAGENET_STD, np.float32)
    return table[None]
