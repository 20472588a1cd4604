"""Views as the rest of the model gets them from the tower."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from panovlm.errors import ConfigError


class SeenViews(NamedTuple):
    """What the tower makes of the views of some panoramas."""

    features: Tensor
    """``[B, V, S, Dv]``"""
    size: tuple[int, int]
    """(height, width) of a view in pixels."""

    @property
    def num_views(self) -> int:
        """Views V per panorama."""
        return self.features.shape[1]


Views = Tensor | SeenViews
"""Normalised views ``[B, V, 3, h, w]``, or what the tower makes of them."""


def as_views(pixel_values: Tensor) -> Tensor:
    """Return ``[B, V, 3, h, w]``; four dimensions mean one view."""
    if pixel_values.ndim == 4:
        return pixel_values.unsqueeze(1)
    if pixel_values.ndim != 5:
        raise ConfigError(
            f"pixel_values has shape {list(pixel_values.shape)}; [B, V, 3, h, w] was expected."
        )
    return pixel_values
