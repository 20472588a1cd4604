"""Keeps the conversations of a packed sequence apart.

A token sees the beginning that all conversations of its row share (segment 0) and the earlier
tokens of its own conversation. Its position counts on from the shared beginning, so that a
conversation gives the same output as in a sequence of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_positions(segments: Tensor) -> Tensor:
    """Return the position of every token within its conversation.

    Args:
        segments: int ``[B, L]``: 0 first, then each conversation in one piece, padding -1.

    Returns:
        int64 ``[B, L]``: place in the shared beginning, or its length plus the place in the
        token's own conversation.
    """
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    start = torch.where(begins, index, 0).cummax(dim=1).values
    shared = (segments == 0).sum(dim=1, keepdim=True)
    return index - start + torch.where(segments == 0, 0, shared)


def segment_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to the attention scores.

    Args:
        segments: int ``[B, L]`` as for :func:`segment_positions`.
        dtype: of the scores.

    Returns:
        ``[B, 1, L, L]``: 0 where a token (row) sees another (column), else the smallest number.
    """
    length = segments.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    own, other = segments[:, :, None], segments[:, None, :]
    sees = earlier & ((other == 0) | (other == own))
    mask = torch.zeros(sees.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]
