"""What the overlap loss has made of the tokens: whether they collapsed, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from panovlm.training.losses.pairs import Sides

MOST = 1024
"""Tokens that the effective rank is measured on, evenly chosen."""

TINY = 1e-30
"""Least sum of singular values to divide by."""


@torch.no_grad()
def overlap_statistics(sides: Sequence[Sides]) -> dict[str, Tensor]:
    """Measure the tokens of all pairs.

    Args:
        sides: tokens of two views that show the same.

    Returns:
        Scalars: ``std``, the mean over channels of the standard deviation, 0 where all tokens are
        one; ``effective_rank``, how many directions the tokens fill (Roy and Vetterli 2007), 1
        where they lie on a line; ``cosine``, the mean likeness of partners; ``retrieval``, the
        share of tokens whose partner is the most alike of its view's tokens in that overlap.
    """
    tokens = torch.cat([side.flatten(0, 1) for pair in sides for side in pair])
    # Half precision has too few digits to tell which of a view's tokens is the most alike.
    with torch.autocast(tokens.device.type, enabled=False):
        cosines, hits = zip(*(_alignment(a, b) for a, b in sides), strict=True)
        return {
            "std": tokens.std(dim=0, correction=0).mean(),
            "effective_rank": effective_rank(tokens),
            "cosine": torch.cat(cosines).mean(),
            "retrieval": torch.cat(hits).mean(),
        }


def effective_rank(tokens: Tensor) -> Tensor:
    """Return the exponential of the entropy of the singular values of centred tokens ``[N, D]``."""
    chosen = tokens[:: -(-len(tokens) // MOST)].float()
    values = torch.linalg.svdvals(chosen - chosen.mean(dim=0))
    total = values.sum()
    share = values / total.clamp(min=TINY)  # one point has no directions: rank 1
    return torch.special.entr(share).sum().exp()


def _alignment(a: Tensor, b: Tensor) -> Sides:
    """Return the cosine of every pair of partners ``[B · L]``, and whether they find each other."""
    likeness = normalize(a, dim=-1) @ normalize(b, dim=-1).mT  # [B, L, L]
    partner = torch.arange(likeness.shape[1], device=a.device)
    found = likeness.argmax(dim=-1) == partner
    return likeness.diagonal(dim1=1, dim2=2).reshape(-1), found.float().reshape(-1)
