"""VICReg between the overlapping columns of neighbouring views.

Two views that stand side by side show one strip of the panorama twice. The loss of Bardes, Ponce
and LeCun (VICReg, 2022, equations 1-6) asks the tokens of both pictures of that strip to agree
(invariance) without collapsing to a point (variance) or to a line (covariance).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from panovlm.config.schema import ModelSettings
from panovlm.errors import ConfigError
from panovlm.models.vision.grid import Grid

STD_EPSILON = 1e-4
"""Added to a variance before its root, whose slope is infinite at zero."""
LARGEST_LOSS = 1e6


@dataclass(frozen=True)
class VICRegTerms:
    """The loss and what it is made of, each a scalar."""

    total: Tensor
    """What to minimise: weighted sum of the terms, at most 1e6, times ``vicreg_loss_weight``."""
    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def overlap_grid(count: int) -> tuple[int, int] | None:
    """Return (rows, columns) of ``count`` tokens, or ``None``.

    A square, or one row more than columns; the rule of the overlap loss is narrower than that of
    the positions.
    """
    columns = isqrt(count)
    if columns * columns == count:
        return columns, columns
    return (columns + 1, columns) if (columns + 1) * columns == count else None


def patch_grid(count: int, *, has_class_token: bool) -> tuple[int, int, int]:
    """Return (leading tokens to leave out, rows, columns) of a view's tokens.

    The first token is left out when it must be a class token: the others fill a square and all
    of them do not, or the tower has one and only the others fill a grid. Queries that fill a grid
    by themselves are kept whole, whatever tower they read.

    Raises:
        ConfigError: the tokens fill no grid.
    """
    whole, rest = overlap_grid(count), overlap_grid(count - 1) if count > 1 else None
    square_rest = rest is not None and rest[0] == rest[1]
    square_whole = whole is not None and whole[0] == whole[1]
    if rest and ((square_rest and not square_whole) or (has_class_token and not whole)):
        return 1, *rest
    if whole:
        return 0, *whole
    raise ConfigError(
        f"the overlap loss cannot lay {count} tokens per view on a grid; a square, or one row "
        "more than columns, is needed (with or without a class token). Set vicreg_loss_weight: 0, "
        "or give the resampler another number of query tokens."
    )


def vicreg_overlap_loss(
    features: Tensor,
    *,
    num_views: int,
    settings: ModelSettings,
    has_class_token: bool,
    leading_global: bool,
    grid: Grid | None = None,
) -> VICRegTerms:
    """Compare the right columns of every view with the left columns of the next one.

    The views form a ring: the last one is compared with the first. ``max(1, floor(columns ·
    overlap_ratio))`` columns are compared. Everything is computed in float32.

    Args:
        features: ``[B·V, S', D]``, the views of a sample one after the other, in order of yaw.
        num_views: views V per sample.
        settings: ``overlap_ratio``, ``global_view`` and the ``vicreg_*`` settings. ``pairwise``
            takes variance and covariance over the tokens of one side of one pair, ``batchwise``
            over all tokens of all pairs.
        has_class_token: whether the tower's sequence begins with a class token.
        leading_global: whether the first view shows the whole panorama; with ``global_view``
            ``"apart"`` it takes no part.
        grid: rows and columns of a view's tokens, as the resampler tells them; ``None``: as
            :func:`patch_grid` lays them out.

    Returns:
        The terms, unweighted, and the weighted total. All are zero, with gradients of zero, when
        fewer than two views remain or ``vicreg_loss_weight`` is 0.

    Raises:
        ConfigError: the tokens fill no grid, or the rows of ``features`` are no samples of V views.
    """
    if num_views < 1 or features.shape[0] % num_views:
        raise ConfigError(
            f"the overlap loss got tokens of {features.shape[0]} views, which are no samples of "
            f"{num_views} views each."
        )
    views = features.unflatten(0, (-1, num_views))
    if leading_global and settings.global_view == "apart":
        views = views[:, 1:]
    if views.shape[1] < 2 or settings.vicreg_loss_weight == 0:
        zero = features.flatten()[:0].float().sum()
        return VICRegTerms(zero, zero, zero, zero)
    with torch.autocast(features.device.type, enabled=False):
        placed = (0, *grid) if grid else patch_grid(views.shape[2], has_class_token=has_class_token)
        right, left = _sides(views.float(), settings.overlap_ratio, placed)
        return _terms(right, left, settings)


def _sides(views: Tensor, overlap: float, placed: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return both sides of every pair, ``[pairs, L, D]``, from views ``[B, V, S', D]``.

    ``placed`` is (leading tokens to leave out, rows, columns) of a view's tokens.
    """
    skip, rows, columns = placed
    grids = views[:, :, skip:].unflatten(2, (rows, columns))
    shared = max(1, int(columns * overlap))
    right = grids[..., columns - shared :, :]
    left = grids[..., :shared, :].roll(-1, dims=1)
    return right.flatten(2, 3).flatten(0, 1), left.flatten(2, 3).flatten(0, 1)


def _terms(right: Tensor, left: Tensor, settings: ModelSettings) -> VICRegTerms:
    sides = torch.cat((right, left))
    groups = sides if settings.vicreg_mode == "pairwise" else sides.flatten(0, 1)[None]
    invariance = (right - left).square().mean()
    variance = variance_term(groups, settings.vicreg_gamma)
    covariance = covariance_term(groups)
    total = limited_total(invariance, variance, covariance, settings)
    return VICRegTerms(total, invariance, variance, covariance)


def limited_total(
    invariance: Tensor, variance: Tensor, covariance: Tensor, settings: ModelSettings
) -> Tensor:
    """Return the weighted sum of the terms, at most 1e6, times ``vicreg_loss_weight``."""
    total = (
        settings.vicreg_similarity_weight * invariance
        + settings.vicreg_variance_weight * variance
        + settings.vicreg_covariance_weight * covariance
    )
    return settings.vicreg_loss_weight * total.clamp(max=LARGEST_LOSS)


def variance_term(groups: Tensor, gamma: float) -> Tensor:
    """Return how far channels of groups ``[G, L, D]`` fall short of a deviation of ``gamma``."""
    std = (groups.var(dim=1, correction=0) + STD_EPSILON).sqrt()
    return (gamma - std).relu().mean()


def covariance_term(groups: Tensor) -> Tensor:
    """Return the mean over groups ``[G, L, D]`` of the squared off-diagonal covariances over D.

    The squares of all entries of ``XᵀX`` and of ``XXᵀ`` have one sum, so the smaller of the two
    matrices is built: an overlap has far fewer tokens than a token has channels.
    """
    _, tokens, width = groups.shape
    centred = groups - groups.mean(dim=1, keepdim=True)
    gram = centred @ centred.mT if tokens < width else centred.mT @ centred
    every = gram.square().sum(dim=(1, 2))
    diagonal = centred.square().sum(dim=1).square().sum(dim=1)
    divisor = max(tokens - 1, 1)  # one token has no covariance, and its centred value is zero
    return ((every - diagonal) / (divisor**2 * width)).mean()
