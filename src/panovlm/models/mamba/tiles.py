"""What the scan does to one tile, as functions that numba compiles and inlines into its kernels.

A *tile* is ``TILE`` time steps of ``LANES`` neighbouring channels, a row of lanes for each step.
All tiles of a task lie in one array, at distances that are no power of two: such ones would contend
for the same places in the processor's cache.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from panovlm.models.mamba.compiled import inlined
from panovlm.models.mamba.exponentials import LN_2, ONE, ZERO, exp2, log1p_exp, sigmoid
from panovlm.models.mamba.lanes import (
    LANES,
    PIECE,
    TILE,
    Floats,
    Lanes,
    load,
    load_first,
    store,
    store_first,
    store_sums,
)

Integers: TypeAlias = npt.NDArray[np.int64]
Inputs: TypeAlias = tuple[Floats, Floats, Floats, Floats, Floats, Floats, Floats, Floats]

SIZE = TILE * LANES
APART = SIZE + LANES
"""A row more than a tile has: that of the states holds those before the first step too."""
U, RAW, DELTA, X, Y, Z, DY, DZ, DX, D_DELTA, DECAY, H, B_SUMS, C_SUMS = (
    i * APART for i in range(14)
)
D, BIAS, D_D, D_BIAS = (14 * APART + i * LANES for i in range(4))
ROOM = 14 * APART + 4 * LANES
"""Where the tiles and rows of a task lie in its working memory."""


@inlined
def floats(number: int) -> Floats:
    """Return an array, not filled, that begins with a line of the cache, as rows then do."""
    room = np.empty(number + 16, np.float32)
    first = -room.ctypes.data % 64 // 4
    return room[first : first + number]


@inlined
def load_tile(
    work: Floats, to: int, source: Floats, at: int, stride: int, steps: int, width: int
) -> None:
    """Copy ``[steps, width]`` into a tile; channels beyond ``width`` become zero."""
    for t in range(steps):
        if width == LANES:
            store(work, to + t * LANES, load(source, at + t * stride))
        else:
            store(work, to + t * LANES, load_first(source, at + t * stride, width))


@inlined
def store_tile(
    work: Floats, tile: int, target: Floats, at: int, stride: int, steps: int, width: int
) -> None:
    """Copy a tile to ``[steps, width]`` of a tensor."""
    for t in range(steps):
        if width == LANES:
            store(target, at + t * stride, load(work, tile + t * LANES))
        else:
            store_first(target, at + t * stride, load(work, tile + t * LANES), width)


@inlined
def copy(source: Floats, at: int, target: Floats, to: int, rows: int) -> None:
    """Copy rows of lanes."""
    for i in range(0, rows * LANES, LANES):
        store(target, to + i, load(source, at + i))


@inlined
def load_inputs(
    work: Floats,
    inputs: Inputs,
    strides: Integers,
    row: int,
    begin: int,
    channel: int,
    steps: int,
    width: int,
) -> None:
    """Load signal, step sizes and gate of a tile."""
    u, delta, _, _, _, _, z, _ = inputs
    at = place(strides, 0, row, begin) + channel
    load_tile(work, U, u, at, strides[0, 1], steps, width)
    at = place(strides, 1, row, begin) + channel
    load_tile(work, RAW, delta, at, strides[1, 1], steps, width)
    if len(z):
        at = place(strides, 4, row, begin) + channel
        load_tile(work, Z, z, at, strides[4, 1], steps, width)


@inlined
def place(strides: Integers, tensor: int, row: int, step: int) -> int:
    """Return where a time step of a tensor begins in its flat array."""
    return row * strides[tensor, 0] + step * strides[tensor, 1] + strides[tensor, 2]


@inlined
def load_weights(work: Floats, inputs: Inputs, channel: int, width: int) -> None:
    """Load what belongs to channels."""
    skip, bias = inputs[5], inputs[7]
    load_tile(work, D, skip, channel, 0, 1, min(width, len(skip)))
    load_tile(work, BIAS, bias, channel, 0, 1, min(width, len(bias)))


@inlined
def prepare(work: Floats, softplus: bool, steps: int) -> None:
    """Finish the step sizes, weight the signal with them, and begin the output with D u."""
    skip, bias = load(work, D), load(work, BIAS)
    for i in range(0, steps * LANES, LANES):
        u, raw = load(work, U + i), load(work, RAW + i) + bias
        delta = log1p_exp(raw) if softplus else raw
        store(work, RAW + i, raw)
        store(work, DELTA + i, delta)
        store(work, X + i, delta * u)
        store(work, Y + i, skip * u)


@inlined
def finish(work: Floats, steps: int) -> None:
    """Put the output through the gate."""
    for i in range(0, steps * LANES, LANES):
        z = load(work, Z + i)
        store(work, Y + i, load(work, Y + i) * z * sigmoid(z))


@inlined
def advance(
    work: Floats,
    a: Lanes,
    state: Lanes,
    B: Floats,
    b: int,
    step_b: int,
    C: Floats,
    c: int,
    step_c: int,
    steps: int,
) -> Lanes:
    """Run one entry of the state through a tile and return it; add what it puts out."""
    for t in range(steps):
        i = t * LANES
        decay = exp2(load(work, DELTA + i) * a)
        state = decay * state + B[b + t * step_b] * load(work, X + i)
        store(work, Y + i, load(work, Y + i) + C[c + t * step_c] * state)
    return state


@inlined
def advance_keeping(
    work: Floats,
    a: Lanes,
    state: Lanes,
    B: Floats,
    b: int,
    step_b: int,
    C: Floats,
    c: int,
    step_c: int,
    steps: int,
) -> None:
    """Do the same for :func:`retreat`, which needs all decays and states."""
    store(work, H, state)
    for t in range(steps):
        i = t * LANES
        decay = exp2(load(work, DELTA + i) * a)
        state = decay * state + B[b + t * step_b] * load(work, X + i)
        store(work, DECAY + i, decay)
        store(work, H + LANES + i, state)
        store(work, Y + i, load(work, Y + i) + C[c + t * step_c] * state)


@inlined
def retreat(
    work: Floats,
    a: Lanes,
    back: Lanes,
    dA: Floats,
    at: int,
    B: Floats,
    b: int,
    step_b: int,
    C: Floats,
    c: int,
    step_c: int,
    steps: int,
) -> Lanes:
    """Run the gradient of the state back and return it; add what it gives to the others.

    The addends of the gradients of B and C are left to be folded.
    """
    d_a, state = load(dA, at), load(work, H + steps * LANES)
    for t in range(steps - 1, -1, -1):
        i = t * LANES
        dy = load(work, DY + i)
        g = back + C[c + t * step_c] * dy
        back = load(work, DECAY + i) * g
        store_sums(work, C_SUMS + t * PIECE, state * dy)
        state = load(work, H + i)
        flow = back * state  # the gradient of delta A
        d_a = d_a + flow * load(work, DELTA + i)
        store(work, D_DELTA + i, load(work, D_DELTA + i) + flow * a)
        store(work, DX + i, load(work, DX + i) + B[b + t * step_b] * g)
        store_sums(work, B_SUMS + t * PIECE, g * load(work, X + i))
    store(dA, at, d_a)
    return back


@inlined
def begin_gradients(work: Floats, gated: int, steps: int) -> None:
    """Take the gradient of the output back through the gate; begin the sums."""
    for i in range(0, steps * LANES, LANES):
        if gated:
            z, dy = load(work, Z + i), load(work, DY + i)
            gate = sigmoid(z)
            store(work, DZ + i, dy * gate * (ONE + z * (ONE - gate)))  # times y
            store(work, DY + i, dy * z * gate)
        store(work, DX + i, ZERO)
        store(work, D_DELTA + i, ZERO)


@inlined
def finish_gradients(work: Floats, softplus: bool, gated: int, steps: int) -> None:
    """Complete the gradients of u (in place of it), delta, z, D and bias."""
    skip, d_skip, d_bias = load(work, D), load(work, D_D), load(work, D_BIAS)
    for i in range(0, steps * LANES, LANES):
        u, dx, dy = load(work, U + i), load(work, DX + i), load(work, DY + i)
        d_delta = load(work, D_DELTA + i) * LN_2 + dx * u
        if softplus:
            d_delta = d_delta * sigmoid(load(work, RAW + i))
        d_bias = d_bias + d_delta
        d_skip = d_skip + dy * u
        store(work, D_DELTA + i, d_delta)
        store(work, U + i, dx * load(work, DELTA + i) + dy * skip)
        if gated:
            store(work, DZ + i, load(work, DZ + i) * load(work, Y + i))
    store(work, D_D, d_skip)
    store(work, D_BIAS, d_bias)
