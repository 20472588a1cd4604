"""The selective scan in plain torch: on any device, in float32 or float64, from any first state.

All states together are n times larger than the output. Only those before each chunk of time steps
are kept for the backward pass; the others are computed again there, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from panovlm.models.mamba.arguments import check_shapes, common_dtype

CHUNK = 16
"""Time steps between two kept states."""
STATES_AT_ONCE_CPU = 1 << 16
"""Most states (batch x n x d) that advance together on a CPU, where a chunk must fit the cache."""
STATES_AT_ONCE = 1 << 22
"""The same on other devices, where it only bounds the working memory."""


def scan_from(
    start: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scan sequences that begin with a given state.

    Args:
        start: state before the first time step, ``[b, d, n]``; ``None``: zero.
        u: signal ``[b, d, l]``; it and the others are those of
            :func:`~panovlm.models.mamba.scan.selective_scan`.
        delta: step sizes ``[b, d, l]``, before bias and softplus.
        A: diagonal state matrix ``[d, n]``.
        B: input matrix of every time step ``[b, n, l]``.
        C: output matrix of every time step ``[b, n, l]``.
        D: weight of the direct path ``[d]``.
        z: gate ``[b, d, l]``.
        delta_bias: added to ``delta``, ``[d]``.
        delta_softplus: put ``delta`` and its bias through a softplus.

    Returns:
        ``[b, d, l]`` in the dtype of ``u``, and the state after the last time step, ``[b, d, n]``
        in the dtype of the scan.

    Raises:
        ValueError: the shapes do not fit together.
    """
    check_shapes(u, A, start=start, delta=delta, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    dtype = common_dtype((start, u, delta, A, B, C, D, z, delta_bias))

    def time_first(t: Tensor) -> Tensor:
        return t.to(dtype).permute(2, 0, 1).contiguous()

    with without_autocast(u.device):
        signal, step = time_first(u), time_first(delta)
        if delta_bias is not None:
            step = step + delta_bias.to(dtype)
        if delta_softplus:
            step = nn.functional.softplus(step)
        decays = A.to(dtype).t().contiguous()
        if start is None:
            before = signal.new_zeros(u.shape[0], *decays.shape)
        else:
            before = start.to(dtype).transpose(1, 2).contiguous()
        inputs = (step, step * signal, decays, time_first(B), time_first(C), before)
        y, after = _scan(*inputs)
        if D is not None:
            y = y + signal * D.to(dtype)
        if z is not None:
            y = y * nn.functional.silu(time_first(z))
    return y.permute(1, 2, 0).to(u.dtype), after.transpose(1, 2)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep matrix products in the dtype of their operands, on devices that know autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


# The recurrence alone. From here on time comes first and width last: ``delta``, ``x`` and ``y`` are
# [l, b, d] with x = delta * u, ``A`` is [n, d], ``B`` and ``C`` are [l, b, n], states [b, n, d].
# The width is the longest axis, and element-wise kernels are quick along a long last axis.


def _scan(
    delta: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, before: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``y`` and the last state, from the state ``before`` the first time step."""
    inputs = (delta, x, A, B, C, before)
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return _Scan.apply(*inputs)
    return _forward(*inputs, starts=None)


class _Scan(torch.autograd.Function):
    """The recurrence as one step of the autograd graph."""

    @staticmethod
    def forward(
        ctx: Any, delta: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, before: Tensor
    ) -> tuple[Tensor, Tensor]:
        length, batch, width = x.shape
        starts = x.new_empty(-(-length // CHUNK), batch, A.shape[0], width)
        y, after = _forward(delta, x, A, B, C, before, starts)
        ctx.save_for_backward(delta, x, A, B, C, starts)
        return y, after

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        dy, d_after = grad_outputs
        with without_autocast(dy.device):
            return _backward(ctx.saved_tensors, dy.contiguous(), d_after)


def _forward(
    delta: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    before: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return ``y`` and the last state [b, n, d], from the state ``before`` the first time step.

    The state before each chunk is written to ``starts`` [chunks, b, n, d].
    """
    y, after = torch.empty_like(x), torch.empty_like(before)
    for rows, columns in _blocks(x, A):
        a = A[:, columns]
        decay, states = _buffers(x[:, rows, columns], a)
        states[0] = before[rows, :, columns]
        for i, times in enumerate(_chunks(len(x))):
            n = times.stop - times.start
            here = (times, rows, columns)
            if starts is not None:
                starts[i, rows, :, columns] = states[0]
            _advance(delta[here], x[here], a, B[times, rows], decay[:n], states[: n + 1])
            y[here] = _contract(C[times, rows], states[1 : n + 1])
            states[0] = states[n]
        after[rows, :, columns] = states[0]
    return y, after


@once_differentiable
def _backward(saved: tuple[Tensor, ...], dy: Tensor, d_after: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of ``delta``, ``x``, ``A``, ``B``, ``C`` and the first state.

    With g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}, the gradient of h_t (that of the last state
    joins the last), they are sums over g_t h_{t-1} exp(delta_t A) (for delta and A), g_t B_t (x),
    g_t x_t (B) and h_t dy_t (C); that of the first state is exp(delta_1 A) g_1.
    """
    delta, x, A, B, C, starts = saved
    d_delta, dx = torch.empty_like(delta), torch.empty_like(x)
    dA, dB, dC = torch.zeros_like(A), torch.zeros_like(B), torch.zeros_like(C)
    d_before = torch.empty_like(starts[0])
    for rows, columns in _blocks(x, A):
        a = A[:, columns]
        decay, states = _buffers(x[:, rows, columns], a)
        grads = torch.empty_like(decay)
        carry = d_after[rows, :, columns].clone()
        for i, times in reversed(list(enumerate(_chunks(len(x))))):
            n = times.stop - times.start
            here, at = (times, rows, columns), (times, rows)
            e, h, g = decay[:n], states[: n + 1], grads[:n]
            h[0] = starts[i, rows, :, columns]
            _advance(delta[here], x[here], a, B[at], e, h)

            torch.mul(dy[here].unsqueeze(2), C[at].unsqueeze(3), out=g)
            g[-1] += carry
            later_first = pairwise(g.unbind()[::-1])
            for e_after, (after, now) in zip(e.unbind()[:0:-1], later_first, strict=True):
                now.addcmul_(e_after, after)
            torch.mul(e[0], g[0], out=carry)

            dx[here] = _contract(B[at], g)
            dB[at] += _contract(x[here], g.transpose(2, 3))
            dC[at] += _contract(dy[here], h[1:].transpose(2, 3))
            e.mul_(h[:-1]).mul_(g)  # the gradient of delta_t A, entry by entry
            d_delta[here] = torch.mul(e, a, out=g).sum(2)
            dA[:, columns] += e.mul_(delta[here].unsqueeze(2)).sum((0, 1))
        d_before[rows, :, columns] = carry
    return d_delta, dx, dA, dB, dC, d_before


def _advance(delta: Tensor, x: Tensor, A: Tensor, B: Tensor, decay: Tensor, states: Tensor) -> None:
    """Run one chunk from ``states[0]``: fill ``decay`` and ``states[1:]``."""
    torch.mul(delta.unsqueeze(2), A, out=decay).exp_()
    torch.mul(x.unsqueeze(2), B.unsqueeze(3), out=states[1:])
    for e, (before, now) in zip(decay, pairwise(states), strict=True):
        now.addcmul_(e, before)


def _contract(weights: Tensor, values: Tensor) -> Tensor:
    """Sum ``values`` [l, b, k, m] with ``weights`` [l, b, k] over k, to [l, b, m].

    Row vector times matrix: the other way round the library is eight times slower on a CPU.
    """
    return torch.matmul(weights.unsqueeze(2), values).squeeze(2)


def _chunks(length: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


def _blocks(x: Tensor, A: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut batch and width into even blocks of bounded size; sequences do not touch each other."""
    (_, batch, width), n = x.shape, A.shape[0]
    limit = STATES_AT_ONCE_CPU if x.device.type == "cpu" else STATES_AT_ONCE
    columns = _even(width, limit // n)
    rows = _even(batch, limit // (n * (columns[0].stop - columns[0].start)))
    return ((r, c) for r in rows for c in columns)


def _even(total: int, most: int) -> list[slice]:
    """Cut ``range(total)`` into the fewest slices of at most ``most`` (at least 1), evenly."""
    pieces = -(-total // max(1, most))
    bounds = [total * i // pieces for i in range(pieces + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _buffers(x: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Working memory of one block: decays [CHUNK, b, n, d] and states [CHUNK + 1, b, n, d]."""
    length, batch, width = x.shape
    steps = min(CHUNK, length)
    size = (batch, A.shape[0], width)
    return x.new_empty(steps, *size), x.new_empty(steps + 1, *size)
