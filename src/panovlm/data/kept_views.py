"""Views of panoramas that are kept on disk."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from panovlm.config.schema import Settings
from panovlm.data.cache import naming
from panovlm.data.samples import Sample
from panovlm.data.store import DamagedEntryError, Store, key_of, picture_identity, size_text
from panovlm.panorama.identity import rendering_identity
from panovlm.panorama.picture import Image
from panovlm.panorama.pipeline import ViewPipeline

_logger = logging.getLogger(__name__)

_TYPICAL = (512, 1024)
"""Height and width of a panorama whose views are as large as those of others."""


class OnDisk(NamedTuple):
    """Where views are kept, and the GiB that they may take there."""

    folder: Path
    limit: float


def on_disk(settings: Settings) -> OnDisk | None:
    """Return where an experiment keeps views, if on disk."""
    if settings.training.cache_views != "disk":
        return None
    return OnDisk(Path(settings.paths.cache_dir), settings.training.cache_limit)


class KeptViews:
    """Renders the views of a panorama once, and keeps them.

    An entry is known by the bytes of the picture, which are therefore read whenever its views are
    asked for; they are not decoded. Loader processes may share one.

    Args:
        folder: Where the views are kept.
        pipeline: Renders them.
    """

    def __init__(self, folder: Path, pipeline: ViewPipeline) -> None:
        self._store = Store(folder, "views")
        self._pipeline = pipeline
        self._rendering = rendering_identity(pipeline.settings)

    def views(self, sample: Sample) -> NDArray[np.uint8]:
        """Return the views [V, h, w, 3] of a sample's panorama, 0 to 255.

        Raises:
            DataError: The image cannot be read; the message names the row.
            ConfigError: Its views cannot be kept.
        """
        with naming(sample):
            return self._of(sample.image)

    def load(self, image: Image) -> NDArray[np.float32]:
        """Return the normalised views [V, 3, h, w] of a picture, as the pipeline loads it.

        Raises:
            DataError: It cannot be read.
            ConfigError: Its views cannot be kept.
        """
        return self._pipeline.normalise(self._of(image))

    def require_room(self, panoramas: int, limit: float) -> str:
        """Refuse to keep more than a limit.

        Args:
            panoramas: How many there are.
            limit: GiB on disk.

        Returns:
            What is kept, in words.

        Raises:
            ConfigError: The views of all of them take more.
        """
        size = self._pipeline.render(np.zeros((*_TYPICAL, 3), np.uint8)).nbytes
        self._store.require_room(panoramas, 0, size, limit)
        return (
            f"the views of {panoramas} panoramas are kept in {self._store.folder}: "
            f"{size_text(size)} each, {size_text(panoramas * size)} in all"
        )

    def _of(self, image: Image) -> NDArray[np.uint8]:
        key = self._key(image)
        views = self._kept(key)
        if views is None:
            views = self._pipeline.read(image)
            if self._key(image) == key:  # else another program is writing the picture just now
                self._store.write(key, {"views": torch.from_numpy(views)})
        return views

    def _key(self, image: Image) -> str:
        return key_of({"picture": picture_identity(image), "rendering": self._rendering})

    def _kept(self, key: str) -> NDArray[np.uint8] | None:
        """Return views that are there; those that are damaged are not, which is told."""
        try:
            found = self._store.read(key)
        except DamagedEntryError as error:
            _logger.warning("%s; the views are rendered anew", error)
            return None
        return None if found is None else found["views"].numpy()
