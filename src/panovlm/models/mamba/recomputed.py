"""A compiled scan as one step of the autograd graph; its states are computed anew for gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Call(Protocol):
    """The arguments of one call as the kernels of a backend take them."""

    def __init__(
        self, tensors: Sequence[Tensor | None], delta_softplus: bool, reverse: bool
    ) -> None: ...

    def room_for_states(self) -> Tensor:
        """Return memory for the states that :meth:`backward` begins with."""
        ...

    def forward(self, kept: Tensor | None) -> Tensor:
        """Return the output ``[b, d, l]``; write states to ``kept`` if it is there."""
        ...

    def backward(self, kept: Tensor, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the eight tensors."""
        ...


def scan(
    backend: type[Call], tensors: Sequence[Tensor | None], delta_softplus: bool, reverse: bool
) -> Tensor:
    """Scan by the kernels of a backend.

    Args:
        backend: which.
        tensors: u, delta, A, B, C, D, z and delta_bias as :func:`selective_scan` takes them.
        delta_softplus: put delta and its bias through a softplus.
        reverse: begin with the last time step.

    Returns:
        ``[b, d, l]`` in the dtype of ``u``.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Scan.apply(backend, delta_softplus, reverse, *tensors)
    return backend(tensors, delta_softplus, reverse).forward(None)


class _Scan(torch.autograd.Function):
    """The whole scan as one step."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: type[Call],
        delta_softplus: bool,
        reverse: bool,
        *tensors: Tensor | None,
    ) -> Tensor:
        call = backend(tensors, delta_softplus, reverse)
        kept = call.room_for_states()
        ctx.save_for_backward(*tensors, kept)
        ctx.call = (backend, delta_softplus, reverse)
        return call.forward(kept)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None, None, None, *_gradients(*ctx.call, grad_outputs[0], *ctx.saved_tensors)


@once_differentiable
def _gradients(
    backend: type[Call], delta_softplus: bool, reverse: bool, dy: Tensor, *saved: Tensor
) -> tuple[Tensor | None, ...]:
    *tensors, kept = saved
    return backend(tensors, delta_softplus, reverse).backward(kept, dy)
