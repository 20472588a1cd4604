"""What the scan does to one tile, as loops that numba compiles and inlines into its kernels.

A *tile* is ``TILE`` time steps of ``LANES`` neighbouring channels, and the innermost loop always
runs over the channels, whose number is fixed: LLVM makes vector instructions of it whatever the
size of the state. For it to see that nothing overlaps, all tiles of a task lie in one array at
fixed distances, and states that change from step to step have a row for each of them.

Constants are float32 throughout: a Python number would make the loops double. An index that might
be negative costs a branch in numba, hence the slices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from panovlm.models.mamba import constants

Floats: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.int64]
Float: TypeAlias = np.float32
Inputs: TypeAlias = tuple[Floats, Floats, Floats, Floats, Floats, Floats, Floats, Floats]
Function = TypeVar("Function", bound=Callable[..., object])

TILE = 8
"""Time steps between two kept states."""
LANES = 64
"""Channels that advance together: two vectors of AVX-512, four of AVX2."""
SIZE = TILE * LANES
U, RAW, DELTA, X, Y, Z, DY, DZ, DX, D_DELTA, DECAY = (i * SIZE for i in range(11))
H, G = 11 * SIZE, 12 * SIZE + LANES  # one row more: the states before the first or after the last
D, BIAS, D_D, D_BIAS = (13 * SIZE + (2 + i) * LANES for i in range(4))
ROOM = 13 * SIZE + 6 * LANES
"""Where the tiles and vectors of a task lie in its working memory."""

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
LOG2_E, LN_2 = np.float32(constants.LOG2_E), np.float32(constants.LN_2)
LN_2_HIGH, LN_2_LOW = np.float32(constants.LN_2_HIGH), np.float32(constants.LN_2_LOW)
LOWEST, HIGHEST = np.float32(-125), np.float32(127.4)
"""Exponents beyond which :func:`exp2` saturates, at 2e-38 and 2e38."""
ROUND = np.float32(1.5 * 2**23)
"""Adding it leaves the nearest whole number in the low bits of a float32."""
P1, P2, P3, P4, P5, P6 = (
    np.float32(c)
    for c in (0.6931472029, 0.2402264791, 0.0555033247, 0.0096184374, 0.0013398875, 0.0001535336)
)
"""2**r on [-1/2, 1/2], fitted for the relative error (2e-9) with value 1 at 0."""
Q1, Q2, Q3, Q4 = (np.float32(c) for c in constants.ARTANH)


def jit(function: Function, *, inlined: bool = False) -> Function:
    """Compile at the first call; keep the result on disk where numba finds a place for it.

    ``contract`` allows fused multiply-adds and no reordering: rounding by ``ROUND`` relies on it.
    """
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"contract"},
        "forceinline": inlined,
    }
    try:
        return cast("Function", numba.njit(cache=not inlined, **options)(function))
    except RuntimeError:  # no folder to write to: every process compiles for itself
        return cast("Function", numba.njit(**options)(function))


def inlined(function: Function) -> Function:
    """Compile as a part of the functions that call this one."""
    return jit(function, inlined=True)


@inlined
def scaled_exp2(r: Float, exponent: Float) -> Float:
    """Return 2**r times two to the power that ``ROUND`` left in the low bits of ``exponent``."""
    power = ONE + r * (P1 + r * (P2 + r * (P3 + r * (P4 + r * (P5 + r * P6)))))
    shift = np.int32(np.float32(exponent).view(np.int32) << np.int32(23))
    return np.int32(np.float32(power).view(np.int32) + shift).view(np.float32)


@inlined
def exp2(x: Float) -> Float:
    """Return 2**x, saturated at 2e-38 and 2e38."""
    x = LOWEST if x < LOWEST else x  # this way round, a NaN stays
    x = HIGHEST if x > HIGHEST else x
    exponent = x + ROUND
    return scaled_exp2(x - (exponent - ROUND), exponent)


@inlined
def exp(x: Float) -> Float:
    """Return e**x; unlike ``exp2(x * LOG2_E)`` as exact for a large x as for a small one."""
    x = LOWEST * LN_2 if x < LOWEST * LN_2 else x
    x = HIGHEST * LN_2 if x > HIGHEST * LN_2 else x
    exponent = x * LOG2_E + ROUND
    whole = exponent - ROUND
    return scaled_exp2(((x - whole * LN_2_HIGH) - whole * LN_2_LOW) * LOG2_E, exponent)


@inlined
def sigmoid(x: Float) -> Float:
    """Return 1 / (1 + e**-x)."""
    return ONE / (ONE + exp(-x))


@inlined
def log1p_exp(x: Float) -> Float:
    """Return log(1 + e**x), as max(x, 0) + 2 artanh(e / (2 + e)) with e = e**-|x|."""
    e = exp(-abs(x))
    s = e / (TWO + e)
    q = s * s
    series = ONE + q * (Q1 + q * (Q2 + q * (Q3 + q * Q4)))
    return max(x, ZERO) + TWO * s * series


@inlined
def floats(number: int) -> Floats:
    """Return an array that is not filled."""
    return np.empty(number, np.float32)


@inlined
def copy(source: Floats, target: Floats) -> None:
    """Copy as many values as the shorter one has."""
    for i in range(min(len(source), len(target))):
        target[i] = source[i]


@inlined
def load(
    work: Floats, to: int, source: Floats, at: int, stride: int, steps: int, width: int
) -> None:
    """Copy ``[steps, width]`` into a tile; channels beyond ``width`` become zero."""
    for t in range(steps):
        line = source[at + t * stride : at + t * stride + width]
        for c in range(width):
            work[to + t * LANES + c] = line[c]
        for c in range(width, LANES):
            work[to + t * LANES + c] = ZERO


@inlined
def store(
    work: Floats, tile: int, target: Floats, at: int, stride: int, steps: int, w: int
) -> None:
    """Copy a tile to ``[steps, w]`` of a tensor."""
    for t in range(steps):
        line = target[at + t * stride : at + t * stride + w]
        for c in range(w):
            line[c] = work[tile + t * LANES + c]


@inlined
def load_weights(work: Floats, a: Floats, inputs: Inputs, channel: int, w: int, n: int) -> None:
    """Load what belongs to channels; A ``[n, LANES]`` times log2(e): decays are powers of two."""
    _, _, A, _, _, skip, _, bias = inputs
    for c in range(LANES):
        work[D + c] = skip[channel + c] if c < w and len(skip) else ZERO
        work[BIAS + c] = bias[channel + c] if c < w and len(bias) else ZERO
        for k in range(n):
            a[k * LANES + c] = A[(channel + c) * n + k] * LOG2_E if c < w else ZERO


@inlined
def prepare(work: Floats, softplus: bool, steps: int) -> None:
    """Finish the step sizes, weight the signal with them, and begin the output with D u."""
    for t in range(steps):
        for c in range(LANES):
            i = t * LANES + c
            work[RAW + i] += work[BIAS + c]
            work[Y + i] = work[D + c] * work[U + i]
    for i in range(steps * LANES):
        raw = work[RAW + i]
        work[DELTA + i] = log1p_exp(raw) if softplus else raw
        work[X + i] = work[DELTA + i] * work[U + i]


@inlined
def advance(
    work: Floats,
    a: Floats,
    B: Floats,
    step_b: int,
    C: Floats,
    step_c: int,
    steps: int,
) -> None:
    """Run one entry of the state through a tile, from row 0 of ``H``; add what it puts out."""
    for t in range(steps):
        now, b, o = work[t * LANES :], B[t * step_b], C[t * step_c]
        for c in range(LANES):
            decay = exp2(now[DELTA + c] * a[c])
            state = decay * now[H + c] + b * now[X + c]
            now[DECAY + c] = decay
            now[H + LANES + c] = state
            now[Y + c] += o * state


@inlined
def retreat(
    work: Floats,
    a: Floats,
    dA: Floats,
    B: Floats,
    step_b: int,
    C: Floats,
    step_c: int,
    steps: int,
) -> None:
    """Run its gradient back, from row ``steps`` of ``G``.

    Leaves the addends of the gradients of B and C in ``DECAY`` and ``H``, whose values are used up.
    """
    for t in range(steps - 1, -1, -1):
        now, b, o = work[t * LANES :], B[t * step_b], C[t * step_c]
        for c in range(LANES):
            g = o * now[DY + c] + now[G + LANES + c]
            back = now[DECAY + c] * g
            flow = back * now[H + c]  # the gradient of delta A
            now[G + c] = back
            now[DX + c] += b * g
            now[D_DELTA + c] += flow * a[c]
            dA[c] += flow * now[DELTA + c]
            now[H + LANES + c] *= now[DY + c]
            now[DECAY + c] = g * now[X + c]


@inlined
def add_sums(
    work: Floats, tile: int, folded: Floats, target: Floats, at: int, n: int, steps: int
) -> None:
    """Add the sum of every row of a tile to ``target[at + t * n]``.

    All rows are folded at once, neighbour onto neighbour, which vector instructions do well.
    """
    values, number = work[tile:], steps * LANES
    while number > steps:
        number //= 2
        fold(values, folded[:number])
        values, folded = folded, folded[number:]
    for t in range(steps):
        target[at + t * n] += values[t]


@inlined
def fold(source: Floats, target: Floats) -> None:
    """Add neighbours: half as many values come out."""
    for i in range(len(target)):
        target[i] = source[2 * i] + source[2 * i + 1]


@inlined
def load_tile(
    work: Floats,
    inputs: Inputs,
    strides: Integers,
    row: int,
    begin: int,
    channel: int,
    steps: int,
    w: int,
) -> None:
    """Load signal, step sizes and gate of a tile."""
    u, delta, _, _, _, _, z, _ = inputs
    load(work, U, u, place(strides, 0, row, begin) + channel, strides[0, 1], steps, w)
    load(work, RAW, delta, place(strides, 1, row, begin) + channel, strides[1, 1], steps, w)
    if len(z):
        load(work, Z, z, place(strides, 4, row, begin) + channel, strides[4, 1], steps, w)


@inlined
def place(strides: Integers, tensor: int, row: int, step: int) -> int:
    """Return where a time step of a tensor begins in its flat array."""
    return row * strides[tensor, 0] + step * strides[tensor, 1] + strides[tensor, 2]


@inlined
def prepare_gradients(work: Floats, gated: int, steps: int) -> None:
    """Take the gradient of the output back through the gate; begin the sums."""
    for i in range(steps * LANES):
        if gated:
            z, gate = work[Z + i], sigmoid(work[Z + i])
            work[DZ + i] = work[DY + i] * gate * (ONE + z * (ONE - gate))  # times y
            work[DY + i] *= z * gate
        work[DX + i] = ZERO
        work[D_DELTA + i] = ZERO


@inlined
def finish_gradients(work: Floats, softplus: bool, gated: int, steps: int) -> None:
    """Complete the gradients of u (in place of it), delta, z, D and bias."""
    for t in range(steps):
        for c in range(LANES):
            i = t * LANES + c
            u, dx, dy = work[U + i], work[DX + i], work[DY + i]
            d_delta = work[D_DELTA + i] * LN_2 + dx * u
            d_delta = d_delta * sigmoid(work[RAW + i]) if softplus else d_delta
            work[D_DELTA + i] = d_delta
            work[D_BIAS + c] += d_delta
            work[D_D + c] += dy * u
            work[U + i] = dx * work[DELTA + i] + dy * work[D + c]
            work[DZ + i] = work[DZ + i] * work[Y + i] if gated else ZERO
