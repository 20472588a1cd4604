"""The scan on a CPU by compiled loops: the numbers of plain torch, several times faster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from panovlm.models.mamba import kernels
from panovlm.models.mamba.arguments import width_last
from panovlm.models.mamba.constants import LOG2_E
from panovlm.models.mamba.vectors import CHANNELS, STATES, TILE

STEPS_OF_A_TASK = 64
"""Short sequences are grouped until a task has about as many time steps."""
TASKS = 32
"""Channels are split until there are about as many tasks."""
STATES_OF_A_THREAD = 1 << 18
"""States (batch x length x width x n) for which it pays to wake another thread."""


class NumbaCall:
    """The arguments of one call as the kernels take them."""

    def __init__(
        self, tensors: Sequence[Tensor | None], delta_softplus: bool, reverse: bool
    ) -> None:
        u, delta, A, B, C, D, z, delta_bias = tensors
        assert u is not None and delta is not None and A is not None
        assert B is not None and C is not None
        self.batch, self.width, self.length = u.shape
        self.n = A.shape[1]
        self.entries = -(-self.n // STATES) * STATES
        self.reverse = reverse
        narrow = [self._filled(t) for t in (B, C)]
        gate = _nothing(3) if z is None else z
        self.sequences = [width_last(t) for t in (u, delta, *narrow, gate)]
        self.vectors = [_nothing() if t is None else t.contiguous() for t in (D, delta_bias)]
        self.has_D, self.has_z, self.has_bias = (t is not None for t in (D, z, delta_bias))
        self.delta_softplus = delta_softplus
        group = max(1, STEPS_OF_A_TASK // max(1, self.length))
        self.groups = -(-self.batch // group)
        self.blocks = -(-self.width // CHANNELS)
        self.tiles = -(-self.length // TILE)
        self.A = self._in_blocks(A.detach() * LOG2_E)
        self.parts = min(self.blocks, max(1, TASKS // max(1, self.groups)))
        sizes = (self.batch, self.length, self.width, self.entries, group, self.parts)
        self.sizes = np.array(sizes)
        self.states = self.batch * self.length * self.width * self.n

    def room_for_states(self) -> Tensor:
        """Return memory for the states before every tile but the first."""
        rows = self.batch * self.blocks * max(0, self.tiles - 1)
        return _empty(rows * self.entries * CHANNELS)

    def forward(self, kept: Tensor | None) -> Tensor:
        """Return the output; write states to ``kept`` if it is there."""
        kept = _nothing() if kept is None else kept
        y = _empty(self.batch, self.length, self.width)
        self._run(kernels.forward, [*self.sequences, y], _flat(kept), _flat(y))
        return y.transpose(1, 2)

    def backward(self, kept: Tensor, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the eight tensors."""
        size = (self.batch, self.length, self.width)
        du, d_delta = _empty(*size), _empty(*size)
        dz = _empty(*size) if self.has_z else _empty(0)
        dA = _zeros(self.groups, self.blocks, self.entries, CHANNELS)
        dD, d_bias = _empty(self.groups, self.width), _empty(self.groups, self.width)
        dB, dC = (_zeros(self.parts, self.batch, self.tiles, self.entries, TILE) for _ in range(2))
        gradients = tuple(_flat(t) for t in (du, d_delta, dA, dB, dC, dD, dz, d_bias))
        dy = width_last(dy)
        self._run(kernels.backward, [*self.sequences, dy, du], _flat(kept), _flat(dy), gradients)
        return (
            du.transpose(1, 2),
            d_delta.transpose(1, 2),
            _total(dA).transpose(1, 2).flatten(0, 1)[: self.width, : self.n],
            self._in_time(_total(dB)),
            self._in_time(_total(dC)),
            _total(dD) if self.has_D else None,
            dz.transpose(1, 2) if self.has_z else None,
            _total(d_bias) if self.has_bias else None,
        )

    def _run(self, kernel: Callable[..., None], sequences: Sequence[Tensor], *more: object) -> None:
        """Share the tasks of a kernel among as many threads as torch may use."""
        u, delta, B, C, z = (_flat(t) for t in sequences[:5])
        D, bias = (_flat(t) for t in self.vectors)
        strides = np.array([self._walk(t) for t in sequences])
        inputs = (u, delta, _flat(self.A), B, C, D, z, bias)
        arguments = (self.sizes, strides, inputs, self.delta_softplus, *more)
        tasks = self.groups * self.parts
        threads = min(torch.get_num_threads(), tasks, 1 + self.states // STATES_OF_A_THREAD)
        if threads <= 1:
            kernel(0, tasks, *arguments)
            return
        waiting = deque(range(tasks))

        def work() -> None:
            while True:
                try:
                    task = waiting.popleft()
                except IndexError:
                    return
                kernel(task, task + 1, *arguments)

        with ThreadPoolExecutor(threads - 1) as pool:
            others = [pool.submit(work) for _ in range(threads - 1)]
            work()
        for other in others:
            other.result()

    def _walk(self, t: Tensor) -> tuple[int, int, int]:
        """Return the steps to the next sequence and time, and where the first time lies."""
        row, step, _ = t.stride()
        return (row, -step, (self.length - 1) * step) if self.reverse else (row, step, 0)

    def _filled(self, t: Tensor) -> Tensor:
        """Append zeros to ``[batch, n, length]`` where n is no multiple of ``STATES``."""
        missing = self.entries - self.n
        return nn.functional.pad(t, (0, 0, 0, missing)) if missing else t

    def _in_blocks(self, A: Tensor) -> Tensor:
        """Turn ``[width, n]`` into ``[block, n, CHANNELS]``, with zeros beyond width and n."""
        missing = (0, self.entries - self.n, 0, self.blocks * CHANNELS - self.width)
        padded = nn.functional.pad(A, missing)
        return padded.view(self.blocks, CHANNELS, self.entries).transpose(1, 2).contiguous()

    def _in_time(self, t: Tensor) -> Tensor:
        """Turn ``[batch, tile, n, TILE]`` into ``[batch, n, length]``, in the order of time."""
        t = t.transpose(1, 2).flatten(2)[:, : self.n, : self.length]
        return t.flip(2) if self.reverse else t


def _empty(*size: int) -> Tensor:
    """Return room for float32 numbers.

    numpy's, not torch's: it asks the system for huge pages where much is wanted. The states that
    are kept for gradients are fresh memory in every step, whose small pages took longer than the
    scan's own writing.
    """
    return torch.from_numpy(np.empty(size, np.float32))


def _zeros(*size: int) -> Tensor:
    return _empty(*size).zero_()


def _total(t: Tensor) -> Tensor:
    """Add up what groups or parts have found."""
    return t[0] if len(t) == 1 else t.sum(0)


def _nothing(axes: int = 1) -> Tensor:
    return _empty(*(0,) * axes)


def _flat(t: Tensor) -> npt.NDArray[np.float32]:
    """Return the memory from the first to the last element of a tensor."""
    if not t.numel():
        return np.empty(0, np.float32)
    span = 1 + sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True))
    return t.detach().as_strided((span,), (1,)).numpy()
