"""Batches whose views are cut, coloured and normalised on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from panovlm.data.augment import Tint
from panovlm.data.collate import Batch
from panovlm.panorama.device import DeviceViews

BITS = 10
"""Of the fraction of the numbers by which cv2.transform multiplies 8-bit pixels."""


def with_views(batch: Batch, device_views: DeviceViews) -> Batch:
    """Return a batch with views in place of the panoramas that they are cut from.

    Raises:
        ConfigError: The device does not give the loader's pixels.
    """
    made = batch.copy()
    views = device_views.cut(made.pop("uncut"))
    tints = made.pop("tints", None)
    if tints is not None:
        views = jitter_each(views, tints)
    made["pixel_values"] = device_views.normalise(views)
    return made


def jitter_each(views: Tensor, tints: Sequence[Tint]) -> Tensor:
    """Do what :func:`~panovlm.data.augment.jitter` does, with the same bits, on any device.

    Args:
        views: uint8 [B, V, h, w, 3].
        tints: B of them.
    """
    pixels = views[0, ..., 0].numel()
    # The only numbers that the device is waited for.
    totals = views.sum((1, 2, 3), dtype=torch.int64).tolist()
    return torch.stack(
        [
            _multiplied(one, Tint(*tint).matrix(np.array(total, np.float64) / pixels))
            for one, tint, total in zip(views, tints, totals, strict=True)
        ]
    )


def _multiplied(views: Tensor, matrix: np.ndarray) -> Tensor:
    """Multiply pixels [..., 3] with a matrix [3, 4] as cv2.transform does."""
    single = matrix.astype(np.float32)
    single[:, 3] += np.float32(0.5)
    whole = np.rint(single * (1 << BITS)).astype(np.int32).tolist()
    red, green, blue = views.int().unbind(-1)
    rows = [(red * r + green * g + blue * b + rest) >> BITS for r, g, b, rest in whole]
    return torch.stack(rows, -1).clamp_(0, 255).to(torch.uint8)
