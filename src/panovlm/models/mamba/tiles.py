"""What the scan does to one tile, as functions that numba compiles and inlines into its kernels.

A *tile* is ``TILE`` time steps of ``CHANNELS`` neighbouring channels, a row for each step; those of
decays and states have a row for each of ``STATES`` entries of the state.
All tiles of a task lie in one array, at distances that are no power of two: such ones would contend
for the same places in the processor's cache.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from panovlm.models.mamba.compiled import inlined
from panovlm.models.mamba.exponentials import (
    LN_2,
    ONE,
    ZERO,
    exp2,
    log1p_exp,
    log1p_exp_and_slope,
    sigmoid,
)
from panovlm.models.mamba.lanes import (
    add_products,
    load,
    load_each,
    load_first,
    load_repeated,
    load_row,
    prefetch,
    store,
    store_first,
    store_products,
)
from panovlm.models.mamba.vectors import CHANNELS, LANES, PIECE, STATES, TILE, Floats, Lanes

Integers: TypeAlias = npt.NDArray[np.int64]
Inputs: TypeAlias = tuple[Floats, Floats, Floats, Floats, Floats, Floats, Floats, Floats]

SIZE = TILE * CHANNELS
APART = SIZE + CHANNELS
U, SLOPE, DELTA, X, Y, Z, DY, DZ, DX, D_DELTA = (i * APART for i in range(10))
DECAY, H = (10 * APART + i * (STATES * SIZE + CHANNELS) for i in range(2))
B_SUMS, C_SUMS = (H + STATES * SIZE + CHANNELS + i * STATES // 2 * TILE * PIECE for i in range(2))
D, BIAS, D_D, D_BIAS = (C_SUMS + STATES // 2 * TILE * PIECE + i * CHANNELS for i in range(4))
ROOM = D_BIAS + CHANNELS
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
        if width == CHANNELS:
            store(work, to + t * CHANNELS, load_row(source, at + t * stride))
        else:
            store(work, to + t * CHANNELS, load_first(source, at + t * stride, width))


@inlined
def store_tile(
    work: Floats, tile: int, target: Floats, at: int, stride: int, steps: int, width: int
) -> None:
    """Copy a tile to ``[steps, width]`` of a tensor."""
    for t in range(steps):
        if width == CHANNELS:
            store(target, at + t * stride, load_row(work, tile + t * CHANNELS))
        else:
            store_first(target, at + t * stride, load_row(work, tile + t * CHANNELS), width)


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
    load_tile(work, DELTA, delta, at, strides[1, 1], steps, width)
    if len(z):
        at = place(strides, 4, row, begin) + channel
        load_tile(work, Z, z, at, strides[4, 1], steps, width)


@inlined
def fetch_inputs(
    inputs: Inputs, strides: Integers, row: int, begin: int, channel: int, first: int, last: int
) -> None:
    """Have time steps of a tile fetched into the cache that :func:`load_inputs` will load.

    In a single loop: one for each tensor takes so long that nothing is gained.
    """
    u, delta, _, _, _, _, z, _ = inputs
    for t in range(begin + first, begin + last):
        prefetch(u, place(strides, 0, row, t) + channel)
        prefetch(delta, place(strides, 1, row, t) + channel)
        if len(z):
            prefetch(z, place(strides, 4, row, t) + channel)


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
def prepare(work: Floats, softplus: bool, slopes: bool, steps: int) -> None:
    """Finish the step sizes, weight the signal with them, and begin the output with D u.

    With ``slopes``, keep those of the step sizes for :func:`finish_gradients`.
    """
    skip, bias = load_row(work, D), load_row(work, BIAS)
    for i in range(0, steps * CHANNELS, CHANNELS):
        u, delta = load_row(work, U + i), load_row(work, DELTA + i) + bias
        if slopes and softplus:
            delta, slope = log1p_exp_and_slope(delta)
            store(work, SLOPE + i, slope)
        elif softplus:
            delta = log1p_exp(delta)
        store(work, DELTA + i, delta)
        store(work, X + i, delta * u)
        store(work, Y + i, skip * u)


@inlined
def finish(work: Floats, steps: int) -> None:
    """Put the output through the gate."""
    for i in range(0, steps * CHANNELS, CHANNELS):
        z = load_row(work, Z + i)
        store(work, Y + i, load_row(work, Y + i) * z * sigmoid(z))


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
    keep: bool,
) -> Lanes:
    """Run entries of the state through a tile and return them; add what they put out.

    With ``keep``, leave all decays, and the states before every step, for :func:`retreat`.
    """
    for t in range(steps):
        row, i = t * CHANNELS, t * LANES
        decay = exp2(load_repeated(work, DELTA + row) * a)
        if keep:
            store(work, DECAY + i, decay)
            store(work, H + i, state)
        state = decay * state + load_each(B, b + t * step_b) * load_repeated(work, X + row)
        add_products(work, Y + row, load_each(C, c + t * step_c), state)
    return state


@inlined
def retreat(
    work: Floats,
    a: Lanes,
    state: Lanes,
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
    d_a = load(dA, at)
    for t in range(steps - 1, -1, -1):
        row, i = t * CHANNELS, t * LANES
        dy = load_repeated(work, DY + row)
        g = back + load_each(C, c + t * step_c) * dy
        back = load(work, DECAY + i) * g
        store_products(work, C_SUMS + t * PIECE, state, dy)
        state = load(work, H + i)
        flow = back * state  # the gradient of delta A
        d_a = d_a + flow * load_repeated(work, DELTA + row)
        add_products(work, D_DELTA + row, flow, a)
        add_products(work, DX + row, load_each(B, b + t * step_b), g)
        store_products(work, B_SUMS + t * PIECE, g, load_repeated(work, X + row))
    store(dA, at, d_a)
    return back


@inlined
def begin_gradients(work: Floats, gated: int, steps: int) -> None:
    """Take the gradient of the output back through the gate; begin the sums."""
    for i in range(0, steps * CHANNELS, CHANNELS):
        if gated:
            z, dy = load_row(work, Z + i), load_row(work, DY + i)
            gate = sigmoid(z)
            store(work, DZ + i, dy * gate * (ONE + z * (ONE - gate)))  # times y
            store(work, DY + i, dy * z * gate)
    work[DX : DX + steps * CHANNELS] = ZERO
    work[D_DELTA : D_DELTA + steps * CHANNELS] = ZERO


@inlined
def finish_gradients(work: Floats, softplus: bool, gated: int, steps: int) -> None:
    """Complete the gradients of u (in place of it), delta, z, D and bias."""
    skip, d_skip, d_bias = load_row(work, D), load_row(work, D_D), load_row(work, D_BIAS)
    for i in range(0, steps * CHANNELS, CHANNELS):
        u, dx, dy = load_row(work, U + i), load_row(work, DX + i), load_row(work, DY + i)
        d_delta = load_row(work, D_DELTA + i) * LN_2 + dx * u
        if softplus:
            d_delta = d_delta * load_row(work, SLOPE + i)
        d_bias = d_bias + d_delta
        d_skip = d_skip + dy * u
        store(work, D_DELTA + i, d_delta)
        store(work, U + i, dx * load_row(work, DELTA + i) + dy * skip)
        if gated:
            store(work, DZ + i, load_row(work, DZ + i) * load_row(work, Y + i))
    store(work, D_D, d_skip)
    store(work, D_BIAS, d_bias)
