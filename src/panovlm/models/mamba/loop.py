"""Sequences that follow each other round a closed loop, such as the views of a panorama.

Every time step sees exactly one lap: its own sequence up to itself, and before that the other
sequences of its loop, the farthest first. So the result does not depend on which of them is called
the first one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panovlm.models.mamba.scan_torch import scan_from


def loop_scan(
    members: int,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """Scan sequences that begin with what the others of their loop leave behind.

    A sequence turns the state h at its beginning into P h + q at its end. With q from a first scan
    and P = exp(A times the sum of its step sizes), the state before sequence v is
    q(v-1) + P(v-1) q(v-2) + ... over the other sequences of the loop, numbers taken round it.

    Args:
        members: sequences per loop; they stand one after the other in the batch.
        u: signal ``[b, d, l]``; it and the others are those of
            :func:`~panovlm.models.mamba.scan.selective_scan`.
        delta: step sizes ``[b, d, l]``, before bias and softplus.
        A: diagonal state matrix ``[d, n]``.
        B: input matrix of every time step ``[b, n, l]``.
        C: output matrix of every time step ``[b, n, l]``.
        D: weight of the direct path ``[d]``.
        z: gate ``[b, d, l]``.
        delta_bias: added to ``delta``, ``[d]``.

    Returns:
        ``[b, d, l]`` in the dtype of ``u``.
    """
    start = None
    if members > 1:
        shared = (u, delta, A, B, C)
        _, left = scan_from(None, *shared, delta_bias=delta_bias, delta_softplus=True)
        wide = torch.promote_types(delta.dtype, left.dtype)
        steps = nn.functional.softplus(delta.to(wide) + delta_bias.to(wide)[:, None]).sum(2)
        decay = torch.exp(steps[:, :, None] * A)  # P, [b, d, n]
        start = _before_each(left.unflatten(0, (-1, members)), decay.unflatten(0, (-1, members)))
    return scan_from(start, u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)[0]


def _before_each(left: Tensor, decay: Tensor) -> Tensor:
    """Return the state before every sequence from q and P, ``[loops, members, d, n]``, flat."""
    state = torch.zeros_like(left)
    for back in range(left.shape[1] - 1, 0, -1):
        state = decay.roll(back, 1) * state + left.roll(back, 1)
    return state.flatten(0, 1)


def loop_past(x: Tensor, members: int, steps: int) -> Tensor:
    """Return what comes before every sequence of a loop.

    Args:
        x: ``[b, l, d]``, the ``members`` sequences of a loop one after the other.
        members: sequences per loop.
        steps: time steps to return.

    Returns:
        ``[b, steps, d]``; a loop shorter than that goes round more than once.
    """
    length = x.shape[1]
    loops = x.unflatten(0, (-1, members)).flatten(1, 2)  # [loops, members · l, d]
    first = length * torch.arange(members, device=x.device)[:, None]
    places = (first + torch.arange(-steps, 0, device=x.device)) % (members * length)
    return loops[:, places].flatten(0, 1)
