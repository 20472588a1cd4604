"""What a frozen vision tower makes of panoramas, kept on disk."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from panovlm.data.samples import Sample
from panovlm.data.store import DamagedEntryError, Store
from panovlm.errors import DataError
from panovlm.panorama.picture import Image

_MEND = "continue with --resume, which computes it anew"


class KeptFeatures:
    """Features of the panoramas of a run.

    Args:
        store: Where they are kept.
        keys: The entry of every image.
    """

    def __init__(self, store: Store, keys: Mapping[Image, str]) -> None:
        self._store = store
        self._keys = keys

    def of(self, sample: Sample) -> tuple[Tensor, tuple[int, int]]:
        """Return the features [V, S, Dv] of a sample, and the (height, width) of its views.

        Raises:
            DataError: The entry is damaged or was removed since training began.
            ConfigError: The folder cannot be read.
        """
        key = self._keys[sample.image]
        try:
            found = self._store.read(key)
        except DamagedEntryError as error:
            raise DataError(f"{sample.source}: {error}; {_MEND}") from error
        if found is None:
            raise DataError(f"{sample.source}: {self._store.path(key)} was removed; {_MEND}")
        height, width = found["view_size"].tolist()
        return found["features"], (height, width)


def write_features(store: Store, key: str, features: Tensor, view_size: tuple[int, int]) -> None:
    """Keep the features [V, S, Dv] of views of (height, width).

    Raises:
        ConfigError: They cannot be written.
    """
    store.write(key, {"features": features.cpu(), "view_size": torch.tensor(view_size)})
