"""Batches whose views are cut, coloured and normalised on the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from panovlm.data.augment import STRENGTH, Tint, jitter
from panovlm.data.collate import Batch
from panovlm.errors import ConfigError
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
        _prove_jitter(views.device)
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


@cache
def _prove_jitter(device: torch.device) -> None:
    """Colour a picture of noise both ways, before any other.

    Raises:
        ConfigError: The installed OpenCV rounds otherwise than is known here.
    """
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 128, 3), dtype=np.uint8)
    for tint in (Tint(*[1 - STRENGTH] * 3), Tint(*[1 + STRENGTH] * 3)):
        found = jitter_each(torch.from_numpy(noise)[None].to(device), [tint])
        if not np.array_equal(found[0].cpu().numpy(), jitter(noise, tint)):
            raise ConfigError(
                f"colours that are changed on {device} are not those of the loader, with the "
                "libraries installed here: use views_on loader, or no augment"
            )


def _multiplied(views: Tensor, matrix: np.ndarray) -> Tensor:
    """Multiply pixels [..., 3] with a matrix [3, 4] as cv2.transform does."""
    single = matrix.astype(np.float32)
    single[:, 3] += np.float32(0.5)
    whole = np.rint(single * (1 << BITS)).astype(np.int32).tolist()
    red, green, blue = views.int().unbind(-1)
    rows = [(red * r + green * g + blue * b + rest) >> BITS for r, g, b, rest in whole]
    return torch.stack(rows, -1).clamp_(0, 255).to(torch.uint8)
