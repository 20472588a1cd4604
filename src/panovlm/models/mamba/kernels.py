"""The selective scan for numba: forwards, and backwards with recomputation.

Only imported where numba is installed and wanted. Work is cut into tasks that share nothing they
write: a *group* of sequences times a *part* of the channels. Gradients that are sums over channels
(B, C) or sequences (A, D, bias) come out once per part or group and are added up by the caller, so
that no result depends on the number of threads. The states before each tile but the first are kept
for the backward pass; the others are computed again there. While a tile is at work, the next one is
fetched from memory, a ``share`` of its steps with every few entries of the state.

Tensors ``[batch, length, width]`` come as flat arrays with the strides of their first two axes and
the place of their first time step, the last one where the scan goes back in time (its stride is
negative then); the third axis has stride 1.
"""

from __future__ import annotations

from panovlm.models.mamba.compiled import jit
from panovlm.models.mamba.exponentials import ZERO
from panovlm.models.mamba.lanes import add_folded, load, prefetch, store
from panovlm.models.mamba.tiles import (
    B_SUMS,
    C_SUMS,
    D_BIAS,
    D_D,
    D_DELTA,
    DY,
    DZ,
    ROOM,
    Inputs,
    Integers,
    U,
    Y,
    advance,
    begin_gradients,
    fetch_inputs,
    finish,
    finish_gradients,
    floats,
    load_inputs,
    load_tile,
    load_weights,
    place,
    prepare,
    retreat,
    store_tile,
)
from panovlm.models.mamba.vectors import CHANNELS, STATES, TILE, Floats


@jit
def forward(
    first: int,
    last: int,
    sizes: Integers,
    strides: Integers,
    inputs: Inputs,
    softplus: bool,
    kept: Floats,
    y: Floats,
) -> None:
    """Do the tasks ``first`` to ``last`` (exclusive) of the scan.

    Args:
        first: first task.
        last: task after the last.
        sizes: batch, length, width, n, sequences of a group, parts of the channels.
        strides: of the first two axes, and the first place, of u, delta, B, C, z and y, one row
            each.
        inputs: u, delta, A ``[block, n, CHANNELS]`` times log2(e), which makes decays powers of
            two, B, C, D, z and bias; the last three may be empty; n is a multiple of ``STATES``.
        softplus: whether the step sizes go through a softplus.
        kept: to fill with the states before each tile but the first,
            ``[batch, block, tile - 1, n, CHANNELS]``, or empty.
        y: to fill with the output ``[batch, length, width]``.
    """
    batch, length, width, n, group, parts = sizes
    blocks, tiles, states = -(-width // CHANNELS), -(-length // TILE), n * CHANNELS
    work, h = floats(ROOM), floats(states)
    A, B, C = inputs[2:5]
    step_b, step_c = strides[2, 1], strides[3, 1]
    share = -(-TILE * STATES // max(n, 1))
    for task in range(first, last):
        rows, part = task // parts * group, task % parts
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            channel, a = block * CHANNELS, block * states
            w = min(CHANNELS, width - channel)
            load_weights(work, inputs, channel, w)
            for row in range(rows, min(rows + group, batch)):
                h[:] = ZERO
                for tile in range(tiles):
                    begin = tile * TILE
                    steps = min(TILE, length - begin)
                    keep = len(kept) and tile + 1 < tiles
                    after = ((row * blocks + block) * (tiles - 1) + tile) * states
                    load_inputs(work, inputs, strides, row, begin, channel, steps, w)
                    prepare(work, softplus, False, steps)
                    b, c = place(strides, 2, row, begin), place(strides, 3, row, begin)
                    for k in range(0, n, STATES):
                        i, entry = k * CHANNELS, load(A, a + k * CHANNELS)
                        state = load(h, i)
                        state = advance(
                            work, entry, state, B, b + k, step_b, C, c + k, step_c, steps, False
                        )
                        store(h, i, state)
                        if keep:
                            store(kept, after + i, state)
                        t = k // STATES * share
                        end = min(t + share, TILE)
                        fetch_inputs(inputs, strides, row, begin + TILE, channel, t, end)
                    if len(inputs[6]):
                        finish(work, steps)
                    at = place(strides, 5, row, begin) + channel
                    store_tile(work, Y, y, at, strides[5, 1], steps, w)


@jit
def backward(
    first: int,
    last: int,
    sizes: Integers,
    strides: Integers,
    inputs: Inputs,
    softplus: bool,
    kept: Floats,
    dy: Floats,
    gradients: Inputs,
) -> None:
    """Do the tasks ``first`` to ``last`` (exclusive) of the gradients.

    With g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}, the gradient of h_t, they are sums over
    g_t h_{t-1} exp(delta_t A) (for delta and A), g_t B_t (x = delta u), g_t x_t (B) and h_t dy_t
    (C), where dy is the gradient before the gate.

    Args:
        first: as in :func:`forward`.
        last: as there.
        sizes: as there.
        strides: as there, but with rows for dy and for du, d_delta and dz in the place of y's.
        inputs: as there.
        softplus: as there.
        kept: the states that it kept.
        dy: gradient of the output.
        gradients: in the order of ``inputs``. Those of u, delta and z are to fill, ``[batch,
            length, width]``; those of D and bias too, one per group of sequences. To add to: that
            of A, ``[group, block, n, CHANNELS]``, and those of B and C, ``[parts, batch, tile, n,
            TILE]``. That of z is empty without gate.
    """
    batch, length, width, n, group, parts = sizes
    blocks, tiles, states = -(-width // CHANNELS), -(-length // TILE), n * CHANNELS
    work, start, carry = floats(ROOM), floats(states), floats(states)
    start[:] = ZERO
    A, B, C = inputs[2:5]
    gated = len(inputs[6])
    step_b, step_c = strides[2, 1], strides[3, 1]
    share = -(-TILE * STATES // max(n, 1))
    du, d_delta, dA, dB, dC, dD, dz, d_bias = gradients
    for task in range(first, last):
        rows, part = task // parts * group, task % parts
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            channel, a = block * CHANNELS, block * states
            d_a = task // parts * blocks * states + a
            w = min(CHANNELS, width - channel)
            load_weights(work, inputs, channel, w)
            work[D_D : D_D + 2 * CHANNELS] = ZERO
            for row in range(rows, min(rows + group, batch)):
                carry[:] = ZERO
                for tile in range(tiles - 1, -1, -1):
                    begin = tile * TILE
                    steps = min(TILE, length - begin)
                    before = ((row * blocks + block) * (tiles - 1) + tile - 1) * states
                    load_inputs(work, inputs, strides, row, begin, channel, steps, w)
                    at = place(strides, 5, row, begin) + channel
                    load_tile(work, DY, dy, at, strides[5, 1], steps, w)
                    prepare(work, softplus, True, steps)
                    begin_gradients(work, gated, steps)
                    b, c = place(strides, 2, row, begin), place(strides, 3, row, begin)
                    sums = ((part * batch + row) * tiles + tile) * n * TILE
                    for k in range(0, n, STATES):
                        i, entry = k * CHANNELS, load(A, a + k * CHANNELS)
                        back = load(carry, i)
                        state = load(kept, before + i) if tile else load(start, i)
                        state = advance(
                            work, entry, state, B, b + k, step_b, C, c + k, step_c, steps, True
                        )
                        back = retreat(
                            work,
                            entry,
                            state,
                            back,
                            dA,
                            d_a + i,
                            B,
                            b + k,
                            step_b,
                            C,
                            c + k,
                            step_c,
                            steps,
                        )
                        store(carry, i, back)
                        add_folded(work, B_SUMS, dB, sums + k * TILE)
                        add_folded(work, C_SUMS, dC, sums + k * TILE)
                        if tile:
                            step = k // STATES * share
                            end = min(step + share, TILE)
                            fetch_inputs(inputs, strides, row, begin - TILE, channel, step, end)
                            for t in range(begin - TILE + step, begin - TILE + end):
                                prefetch(dy, place(strides, 5, row, t) + channel)
                    finish_gradients(work, softplus, gated, steps)
                    at = place(strides, 6, row, begin) + channel
                    store_tile(work, U, du, at, strides[6, 1], steps, w)
                    store_tile(work, D_DELTA, d_delta, at, strides[6, 1], steps, w)
                    if gated:
                        store_tile(work, DZ, dz, at, strides[6, 1], steps, w)
            at = task // parts * width + channel
            store_tile(work, D_D, dD, at, 0, 1, w)
            store_tile(work, D_BIAS, d_bias, at, 0, 1, w)
