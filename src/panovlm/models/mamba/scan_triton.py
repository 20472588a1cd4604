"""The scan on a GPU by Triton's kernels: the numbers of plain torch, in one launch each way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from panovlm.models.mamba import kernels_triton as kernels
from panovlm.models.mamba.arguments import width_last
from panovlm.models.mamba.tiles_triton import Steps

TILE = 8
"""Time steps between two kept states."""
STATES_OF_A_PROGRAM = 256
"""Entries of states (channels x n) that a program, of one warp, takes through time: few, so that
there are many programs, and that the backward pass, which needs those of a whole tile at once,
moves little of them out of the registers."""
PROGRAMS = 1024
"""Programs of the backward pass that suffice for a large GPU; each has sums of its own for B and C,
and takes several blocks of channels where there are more."""


class TritonCall:
    """The arguments of one call as the kernels take them."""

    def __init__(
        self, tensors: Sequence[Tensor | None], delta_softplus: bool, reverse: bool
    ) -> None:
        u, delta, A, B, C, D, z, delta_bias = tensors
        assert u is not None and delta is not None and A is not None
        assert B is not None and C is not None
        self.batch, self.width, self.length = u.shape
        self.n, self.reverse = A.shape[1], reverse
        self.sequences = (width_last(u), width_last(delta), width_last(B), width_last(C))
        self.z = None if z is None else width_last(z)
        self.vectors = (
            _dense(A),
            None if D is None else _dense(D),
            None if delta_bias is None else _dense(delta_bias),
        )
        states = _power_of_2(self.n)
        channels = min(max(1, STATES_OF_A_PROGRAM // states), _power_of_2(self.width))
        self.blocks = -(-self.width // channels)
        self.parts = min(self.blocks, -(-PROGRAMS // max(1, self.batch)))
        self.options = {
            "SOFTPLUS": delta_softplus,
            "CHANNELS": channels,
            "STATES": states,
            "TILE": TILE,
            "num_warps": 1,
        }

    def room_for_states(self) -> Tensor:
        """Return memory for the states before every tile but the first."""
        tiles = -(-self.length // TILE)
        return self._float32(self.batch, max(0, tiles - 1), self.width, self.n)

    def forward(self, kept: Tensor | None) -> Tensor:
        """Return the output; write states to ``kept`` if it is there."""
        y = self._like(self.sequences[0])
        self._run(kernels.forward, self.blocks, kept, self._steps(y))
        return y.transpose(1, 2)

    def backward(self, kept: Tensor, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the eight tensors."""
        u, delta, B, C = self.sequences
        A, D, delta_bias = self.vectors
        du, d_delta = self._like(u), self._like(delta)
        dz = None if self.z is None else self._like(self.z)
        dA = self._float32(self.batch, self.width, self.n)
        dD, d_bias = (self._float32(self.batch, self.width) for _ in range(2))
        dB, dC = (self._float32(self.parts * self.batch, self.length, self.n) for _ in range(2))
        self._run(
            kernels.backward,
            self.parts,
            kept,
            self._steps(width_last(dy)),
            self._steps(du),
            self._steps(d_delta),
            dA,
            self._steps(dB),
            self._steps(dC),
            dD,
            self._steps(dz),
            d_bias,
        )
        dB, dC = (t.unflatten(0, (self.parts, self.batch)) for t in (dB, dC))
        return (
            du.transpose(1, 2),
            d_delta.transpose(1, 2),
            _total(dA, A),
            _total(dB, B).transpose(1, 2),
            _total(dC, C).transpose(1, 2),
            None if D is None else _total(dD, D),
            None if dz is None else dz.transpose(1, 2),
            None if delta_bias is None else _total(d_bias, delta_bias),
        )

    def _run(self, kernel: Callable[..., None], programs: int, *more: object) -> None:
        """Launch so many programs for every sequence."""
        u, delta, B, C = (self._steps(t) for t in self.sequences)
        A, D, delta_bias = self.vectors
        inputs = (u, delta, A, B, C, D, self._steps(self.z), delta_bias)
        if self.batch and programs:
            with _on(A.device):
                launch = cast("Any", kernel)[(self.batch, programs)]
                launch(*inputs, *more, self.length, self.width, self.n, **self.options)

    def _steps(self, t: Tensor | None) -> Steps | None:
        """Return how the scan walks through a tensor ``[b, l, d]``."""
        if t is None:
            return None
        row, step, _ = t.stride()
        return Steps(t[:, -1:], row, -step) if self.reverse else Steps(t, row, step)

    def _like(self, t: Tensor) -> Tensor:
        """Return room for a tensor of the size and type of this one, and dense."""
        return torch.empty(t.shape, dtype=t.dtype, device=t.device)

    def _float32(self, *size: int) -> Tensor:
        """Return room for float32 numbers, whatever torch's default type."""
        return torch.empty(size, dtype=torch.float32, device=self.vectors[0].device)


def _power_of_2(number: int) -> int:
    """Return the smallest one that is not below."""
    return 1 << max(0, number - 1).bit_length()


def _dense(t: Tensor) -> Tensor:
    return t.detach().contiguous()


def _total(sums: Tensor, t: Tensor) -> Tensor:
    """Add up what each sequence, or each part of the channels, adds to the gradient of a tensor."""
    return sums.sum(0).to(t.dtype)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Launch on the device of the tensors, whichever is the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
