"""The batch of all training processes: their tokens put together, gradients included."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from panovlm.config.schema import ModelSettings


def gathers(settings: ModelSettings) -> bool:
    """Tell whether the overlap loss is one loss over the batches of all training processes."""
    chosen = settings.overlap_gather
    wanted = settings.overlap_loss != "vicreg" if chosen is None else chosen
    return wanted and _processes() > 1


def gather_samples(features: Tensor) -> Tensor:
    """Put the tokens of all processes together, those of process 0 first.

    Every process computes the same loss of the same tensor, so that the gradient that the others
    have for this process's part is the one it has itself. It is therefore not fetched, but taken
    times the number of processes: DDP divides by that, and the gradients of the weights are those
    of one process with the whole batch.

    Args:
        features: ``[N, ...]``; N may differ between processes, what follows may not.
    """
    return _Gather.apply(features)


def mean_items(items: int, device: torch.device) -> float:
    """Return the mean over all processes of the number of items."""
    total = torch.tensor(float(items), dtype=torch.float32, device=device)
    distributed.all_reduce(total)
    return total.item() / _processes()


class _Gather(torch.autograd.Function):
    """All processes' tensors one after the other; back goes this process's part."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        rank, processes = distributed.get_rank(), _processes()
        lengths = [torch.zeros(1, dtype=torch.int64, device=own.device) for _ in range(processes)]
        distributed.all_gather(lengths, torch.full_like(lengths[0], len(own)))
        counts = [int(length) for length in lengths]
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(processes)]
        distributed.all_gather(parts, padded)
        ctx.start, ctx.count, ctx.processes = sum(counts[:rank]), counts[rank], processes
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient[ctx.start : ctx.start + ctx.count] * ctx.processes


def _processes() -> int:
    """Return how many processes train together."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1
