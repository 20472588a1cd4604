"""Losses between tokens that show the same, beside VICReg: Barlow Twins, InfoNCE, DenseCL."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from panovlm.training.losses.pairs import Sides

VARIANCE_EPSILON = 1e-5
"""Added to a variance before its root, so that a collapsed channel gives zeros, not NaN."""


def barlow_twins(sides: Sequence[Sides], redundancy_weight: float) -> dict[str, Tensor]:
    """Make the correlation matrix between both sides the identity (Zbontar et al. 2021).

    All tokens of all pairs and panoramas are taken together.

    Returns:
        ``total``; ``on_diagonal``, the squared distance of the diagonal from 1; ``off_diagonal``,
        the squares beside it.
    """
    first, second = (
        _standardised(torch.cat([side[k].flatten(0, 1) for side in sides])) for k in (0, 1)
    )
    correlation = first.mT @ second / len(first)
    diagonal = correlation.diagonal()
    on_diagonal = (1 - diagonal).square().sum()
    off_diagonal = correlation.square().sum() - diagonal.square().sum()
    total = on_diagonal + redundancy_weight * off_diagonal
    return {"total": total, "on_diagonal": on_diagonal, "off_diagonal": off_diagonal}


def info_nce(sides: Sequence[Sides], temperature: float) -> dict[str, Tensor]:
    """Find a token's partner among all tokens of that overlap (van den Oord et al. 2018).

    The others are those of the same two views of the same panorama: no two of them show the same,
    and the loss does not depend on what else is in the batch. Both ways are averaged, then the
    pairs of views.

    Returns:
        ``total``.
    """
    losses = [_contrast(normalize(a, dim=-1), normalize(b, dim=-1), temperature) for a, b in sides]
    return {"total": torch.stack(losses).mean()}


def dense_cl(sides: Sequence[Sides], temperature: float, dense_weight: float) -> dict[str, Tensor]:
    """Tell panoramas from each other, by whole overlaps and by single tokens (Wang et al. 2021).

    A whole overlap is the mean of its tokens. In the dense part a token's partner comes from the
    geometry, not from the likeness of features as in the paper, and the others are the whole
    overlaps of the other panoramas. One panorama alone gives zero.

    Returns:
        ``total``, ``whole`` and ``dense``.
    """
    whole, dense = zip(*(_both_ways(a, b, temperature) for a, b in sides), strict=True)
    parts = {"whole": torch.stack(whole).mean(), "dense": torch.stack(dense).mean()}
    total = (1 - dense_weight) * parts["whole"] + dense_weight * parts["dense"]
    return {"total": total, **parts}


def _standardised(tokens: Tensor) -> Tensor:
    """Return tokens ``[N, D]`` with mean 0 and variance 1 in every channel."""
    centred = tokens - tokens.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + VARIANCE_EPSILON).sqrt()


def _contrast(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of finding partners, both ways; ``a`` and ``b`` are [B, L, D]."""
    logits = a @ b.mT / temperature
    target = torch.arange(logits.shape[1], device=a.device).expand(len(logits), -1)
    ways = (logits, logits.mT)
    return sum((cross_entropy(way.mT, target) for way in ways), a.new_zeros(())) / 2


def _both_ways(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return DenseCL's two parts for one pair of views, averaged over both ways."""
    means = [normalize(side.mean(1), dim=-1)[None] for side in (a, b)]
    whole = _contrast(means[0], means[1], temperature)
    dense = (_dense(a, b, temperature) + _dense(b, a, temperature)) / 2
    return whole, dense


def _dense(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of a token's partner against the other panoramas' overlaps."""
    others = normalize(b.mean(1), dim=-1)  # [B, D]
    a, b = normalize(a, dim=-1), normalize(b, dim=-1)
    partner = (a * b).sum(-1, keepdim=True)
    others = a @ others.mT  # [B, L, B]
    own = torch.eye(len(a), dtype=torch.bool, device=a.device)[:, None]
    logits = torch.cat((partner, others.masked_fill(own, -torch.inf)), -1) / temperature
    return (logits.logsumexp(-1) - logits[..., 0]).mean()
