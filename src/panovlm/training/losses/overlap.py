"""The overlap loss of stage vision: which one, between which tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panovlm.config.schema import ModelSettings
from panovlm.errors import ConfigError
from panovlm.models.vision.directions import TokenDirections
from panovlm.models.vision.grid import Grid
from panovlm.training.losses.contrast import barlow_twins, dense_cl, info_nce
from panovlm.training.losses.pairs import Sides, column_pairs, direction_pairs, gather
from panovlm.training.losses.vicreg import (
    covariance_term,
    limited_total,
    patch_grid,
    variance_term,
    vicreg_overlap_loss,
)


@dataclass(frozen=True)
class OverlapTokens:
    """The resampled tokens of a batch, and how they lie.

    Attributes:
        features: ``[B·V, S', D]``, the views of a sample one after the other.
        num_views: views V per sample.
        has_class_token: whether the tower's sequence begins with a class token.
        leading_global: whether the first view shows the whole panorama.
        grid: rows and columns of a view's tokens, as the resampler tells them.
        directions: where they look.
    """

    features: Tensor
    num_views: int
    has_class_token: bool
    leading_global: bool
    grid: Grid | None
    directions: TokenDirections

    def sides(self, settings: ModelSettings) -> list[Sides]:
        """Return the tokens that show the same, in float32, by ``overlap_pairs``.

        Raises:
            ConfigError: nobody knows where the tokens lie, or no two views have tokens in common.
        """
        views = self.features.float().unflatten(0, (-1, self.num_views))
        count = views.shape[2]
        if settings.overlap_pairs == "directions":
            rays = self.directions.of(count, self.grid)
            pairs = direction_pairs(rays)
            if not pairs:
                raise ConfigError(
                    "no two views have two tokens in common that look the same way; raise "
                    "image_processing.overlap_ratio or fov_deg, or give views more tokens."
                )
            tiles = views[:, -len(rays.sphere.views) :, rays.grid.extra :]
            return gather(tiles, pairs)
        placed = (0, *self.grid) if self.grid else None
        skip, rows, columns = placed or patch_grid(count, has_class_token=self.has_class_token)
        tiles = views[:, int(self.leading_global and settings.global_view == "apart") :, skip:]
        return gather(tiles, column_pairs(tiles.shape[1], rows, columns, settings.overlap_ratio))


def overlap_loss(tokens: OverlapTokens, settings: ModelSettings) -> dict[str, Tensor]:
    """Compare tokens that show the same.

    Args:
        tokens: the batch.
        settings: ``overlap_loss``, ``overlap_pairs`` and what belongs to them.

    Returns:
        ``total``, what to minimise, times ``vicreg_loss_weight``, and what it is made of.

    Raises:
        ConfigError: the tokens cannot be paired.
    """
    if settings.overlap_loss == "vicreg" and settings.overlap_pairs == "columns":
        terms = vicreg_overlap_loss(
            tokens.features,
            num_views=tokens.num_views,
            settings=settings,
            has_class_token=tokens.has_class_token,
            leading_global=tokens.leading_global,
            grid=tokens.grid,
        )
        parts = ("total", "invariance", "variance", "covariance")
        return {name: getattr(terms, name) for name in parts}
    with torch.autocast(tokens.features.device.type, enabled=False):
        sides = tokens.sides(settings)
        match settings.overlap_loss:
            case "vicreg":
                return _vicreg(sides, settings)
            case "barlow_twins":
                found = barlow_twins(sides, settings.overlap_redundancy_weight)
            case "info_nce":
                found = info_nce(sides, settings.overlap_temperature)
            case "dense_cl":
                found = dense_cl(sides, settings.overlap_temperature, settings.overlap_dense_weight)
    return {**found, "total": settings.vicreg_loss_weight * found["total"]}


def _vicreg(sides: Sequence[Sides], settings: ModelSettings) -> dict[str, Tensor]:
    """Return VICReg between pairs of any lengths; every pair of views counts alike."""
    invariance = torch.stack([(a - b).square().mean() for a, b in sides]).mean()
    if settings.vicreg_mode == "batchwise":
        groups = [torch.cat([side.flatten(0, 1) for pair in sides for side in pair])[None]]
    else:
        groups = [torch.cat(pair) for pair in sides]
    gamma = settings.vicreg_gamma
    variance = torch.stack([variance_term(group, gamma) for group in groups]).mean()
    covariance = torch.stack([covariance_term(group) for group in groups]).mean()
    total = limited_total(invariance, variance, covariance, settings)
    return {
        "total": total,
        "invariance": invariance,
        "variance": variance,
        "covariance": covariance,
    }
