"""Joining the views' token grids into one strip along the panorama.

Every mode is a choice of columns: side by side, without the columns that a view shares with the
one before, or resampled at regular places of the strip with the overlaps averaged. Only the mode
``sphere`` knows of true directions; :mod:`panovlm.models.vision.canvas` tells it what to read.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from panovlm.config.schema import ModelSettings
from panovlm.models.vision.canvas import Canvas


def overlap_columns(columns: int, overlap: float) -> int:
    """Return how many of a view's columns the next view shows again (half to even)."""
    return min(max(round(columns * overlap), 0), columns)


def strip_columns(num_views: int, columns: int, settings: ModelSettings) -> int:
    """Return the columns of the stitched strip.

    Args:
        num_views: views V in the strip.
        columns: token columns of one view.
        settings: stitching and overlap.
    """
    if settings.stitching_mode != "resample":
        return columns + (num_views - 1) * (columns - _dropped(columns, settings))
    return columns if settings.stitch_target_to_view_width else _span(num_views, columns, settings)


def stitch(tokens: Tensor, settings: ModelSettings) -> Tensor:
    """Join the views' tokens.

    ``concat`` puts the views side by side; ``drop_overlap`` (and ``stride_views``, the same)
    leaves out the columns of every later view that the one before has; ``resample`` takes
    ``stitch_target_cols`` places of the strip, or as many as it has distinct columns, or as many
    as one view has, and averages where views overlap.

    Args:
        tokens: ``[B, V, rows, columns, D]``, views from left to right, V at least 1.
        settings: ``stitching_mode`` and its options, ``overlap_ratio``.

    Returns:
        ``[B, rows · strip columns, D]``, row-major.
    """
    if settings.stitching_mode == "resample":
        strip = _resample(tokens, settings)
    else:
        first = tokens[:, 0]
        later = tokens[:, 1:, :, _dropped(tokens.shape[3], settings) :]
        strip = torch.cat((first, later.transpose(1, 2).flatten(2, 3)), dim=2)
    return strip.flatten(1, 2)


def read_canvas(tokens: Tensor, strip: Canvas) -> Tensor:
    """Return the strip of the ``sphere`` mode.

    Args:
        tokens: ``[B, V · rows · columns, D]``, those of all tiles that show a place.
        strip: what is read where.

    Returns:
        ``[B, T, D]``.
    """
    index = torch.from_numpy(strip.tokens).to(tokens.device)
    share = torch.from_numpy(strip.weights).to(tokens.device, tokens.dtype)[..., None]
    corners = (tokens[:, index[:, k]] * share[:, k] for k in range(index.shape[1]))
    return sum(corners, tokens.new_zeros(()))


def _dropped(columns: int, settings: ModelSettings) -> int:
    """Return how many columns every later view loses."""
    if settings.stitching_mode == "concat":
        return 0
    return overlap_columns(columns, settings.overlap_ratio)


def _span(num_views: int, columns: int, settings: ModelSettings) -> int:
    """Return the columns that resampled places span: the distinct ones, unless set."""
    shared = overlap_columns(columns, settings.overlap_ratio)
    return settings.stitch_target_cols or num_views * columns - (num_views - 1) * shared


def _resample(tokens: Tensor, settings: ModelSettings) -> Tensor:
    """Return the resampled strip ``[B, rows, strip columns, D]``."""
    views, columns = tokens.shape[1], tokens.shape[3]
    matrix = _resampling(
        views,
        columns,
        overlap_columns(columns, settings.overlap_ratio),
        _span(views, columns, settings),
        strip_columns(views, columns, settings),
        "nearest" if settings.stitch_interp == "nearest" else "bilinear",
    )
    side_by_side = tokens.transpose(1, 2).flatten(2, 3)  # [B, rows, V · columns, D]
    return matrix.to(tokens.device, tokens.dtype) @ side_by_side


@lru_cache(maxsize=16)
def _resampling(
    num_views: int, columns: int, shared: int, span: int, target: int, mode: str
) -> Tensor:
    """Return the matrix ``[target, V · columns]`` that resamples views put side by side.

    The target columns lie at ``linspace(0, span - 1, target)`` of the strip; view v covers it
    from ``v·(columns - shared)`` on. Each view is sampled there, with zeros outside, and the
    samples are averaged with the weight that the same sampling gives a view of ones.

    Sampling is linear, so sampling the unit columns gives its matrix. That is left to
    ``grid_sample`` (aligned corners), whose float32 rounding decides which of two equally near
    columns is the nearest.
    """
    step = columns - shared or columns
    # grid_sample has no coordinate for a picture of one column; a second, empty one gives it.
    canvas = max(columns, 2)
    with torch.inference_mode(mode=False):
        unit = torch.eye(columns, canvas, dtype=torch.float32, device="cpu")[None, :, None, :]
        place = torch.linspace(0, span - 1, target, dtype=torch.float32, device="cpu")
        start = step * torch.arange(num_views, dtype=torch.float32, device="cpu")
        x = 2 * (place - start[:, None]) / (canvas - 1) - 1  # [V, target]
        at = torch.stack((x, torch.zeros_like(x)), dim=-1)[None]  # [1, V, target, (x, y)]
        samples = nn.functional.grid_sample(
            unit, at, mode=mode, padding_mode="zeros", align_corners=True
        )
        samples = samples[0].permute(1, 2, 0)  # [V, target, columns]
        weight = samples.sum(-1, keepdim=True)
        mean = samples * weight / weight.sum(0, keepdim=True).clamp(min=1e-6)
        return mean.transpose(0, 1).reshape(target, num_views * columns)
