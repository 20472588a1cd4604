"""The selective scan for numba: forwards, and backwards with recomputation.

Only imported where numba is installed and wanted. Work is cut into tasks that share nothing they
write: a *group* of sequences times a *part* of the channels. Gradients that are sums over channels
(B, C) or sequences (A, D, bias) come out once per part or group and are added up by the caller, so
that no result depends on the number of threads. The states before each tile but the first are kept
for the backward pass; the others are computed again there.

Tensors ``[batch, length, width]`` come as flat arrays with the strides of their first two axes and
the place of their first time step, the last one where the scan goes back in time (its stride is
negative then); the third axis has stride 1. numba's cache looks for changes in this file alone:
whoever changes ``tiles.py`` without installing anew touches this one too.
"""

from __future__ import annotations

from panovlm.models.mamba.tiles import (
    D_BIAS,
    D_D,
    D_DELTA,
    DECAY,
    DY,
    DZ,
    LANES,
    ROOM,
    SIZE,
    TILE,
    ZERO,
    Floats,
    G,
    H,
    Inputs,
    Integers,
    U,
    Y,
    Z,
    add_sums,
    advance,
    copy,
    finish_gradients,
    floats,
    jit,
    load,
    load_tile,
    load_weights,
    place,
    prepare,
    prepare_gradients,
    retreat,
    sigmoid,
    store,
)


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
            each; those of B and C must not be negative.
        inputs: u, delta, A ``[width, n]``, B, C, D, z and bias; the last three may be empty.
        softplus: whether the step sizes go through a softplus.
        kept: to fill with the states before each tile but the first,
            ``[batch, block, tile - 1, n, LANES]``, or empty.
        y: to fill with the output ``[batch, length, width]``.
    """
    batch, length, width, n, group, parts = sizes
    blocks, tiles, states = -(-width // LANES), -(-length // TILE), n * LANES
    work, a, h = floats(ROOM), floats(states), floats(states)
    B, C = inputs[3], inputs[4]
    for task in range(first, last):
        rows, part = task // parts * group, task % parts
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            channel = block * LANES
            w = min(LANES, width - channel)
            load_weights(work, a, inputs, channel, w, n)
            for row in range(rows, min(rows + group, batch)):
                h[:] = ZERO
                for tile in range(tiles):
                    begin = tile * TILE
                    steps = min(TILE, length - begin)
                    if tile and len(kept):
                        at = ((row * blocks + block) * (tiles - 1) + tile - 1) * states
                        copy(h, kept[at:])
                    load_tile(work, inputs, strides, row, begin, channel, steps, w)
                    prepare(work, softplus, steps)
                    b, o = place(strides, 2, row, begin), place(strides, 3, row, begin)
                    for k in range(n):
                        state = h[k * LANES : (k + 1) * LANES]
                        copy(state, work[H:])
                        advance(
                            work,
                            a[k * LANES : (k + 1) * LANES],
                            B[b + k :],
                            strides[2, 1],
                            C[o + k :],
                            strides[3, 1],
                            steps,
                        )
                        copy(work[H + steps * LANES :], state)
                    if len(inputs[6]):
                        for i in range(steps * LANES):
                            work[Y + i] *= work[Z + i] * sigmoid(work[Z + i])
                    at = place(strides, 5, row, begin) + channel
                    store(work, Y, y, at, strides[5, 1], steps, w)


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
            length, width]``; those of A, D and bias too, one per group of sequences; those of B
            and C to add to, ``[parts, batch, length, n]``. That of z is empty without gate.
    """
    batch, length, width, n, group, parts = sizes
    blocks, tiles, states = -(-width // LANES), -(-length // TILE), n * LANES
    work, folded = floats(ROOM), floats(SIZE)
    a, dA, starts, carry = floats(states), floats(states), floats(states), floats(states)
    B, C, gated = inputs[3], inputs[4], len(inputs[6])
    du, d_delta, dA_all, dB, dC, dD, dz, d_bias = gradients
    for task in range(first, last):
        rows, part = task // parts * group, task % parts
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            channel = block * LANES
            w = min(LANES, width - channel)
            load_weights(work, a, inputs, channel, w, n)
            dA[:] = ZERO
            work[D_D : D_D + 2 * LANES] = ZERO
            for row in range(rows, min(rows + group, batch)):
                carry[:] = ZERO
                for tile in range(tiles - 1, -1, -1):
                    begin = tile * TILE
                    steps = min(TILE, length - begin)
                    starts[:] = ZERO
                    if tile:
                        at = ((row * blocks + block) * (tiles - 1) + tile - 1) * states
                        copy(kept[at:], starts)
                    load_tile(work, inputs, strides, row, begin, channel, steps, w)
                    at = place(strides, 5, row, begin) + channel
                    load(work, DY, dy, at, strides[5, 1], steps, w)
                    prepare(work, softplus, steps)
                    prepare_gradients(work, gated, steps)
                    b, o = place(strides, 2, row, begin), place(strides, 3, row, begin)
                    at = ((part * batch + row) * length + begin) * n
                    for k in range(n):
                        lanes = slice(k * LANES, (k + 1) * LANES)
                        Bk, Ck = B[b + k :], C[o + k :]
                        copy(starts[lanes], work[H:])
                        advance(work, a[lanes], Bk, strides[2, 1], Ck, strides[3, 1], steps)
                        copy(carry[lanes], work[G + steps * LANES :])
                        retreat(
                            work, a[lanes], dA[lanes], Bk, strides[2, 1], Ck, strides[3, 1], steps
                        )
                        copy(work[G:], carry[lanes])
                        add_sums(work, DECAY, folded, dB, at + k, n, steps)
                        add_sums(work, H + LANES, folded, dC, at + k, n, steps)
                    finish_gradients(work, softplus, gated, steps)
                    at = place(strides, 6, row, begin) + channel
                    store(work, U, du, at, strides[6, 1], steps, w)
                    store(work, D_DELTA, d_delta, at, strides[6, 1], steps, w)
                    if gated:
                        store(work, DZ, dz, at, strides[6, 1], steps, w)
            at = task // parts * width + channel
            store(work, D_D, dD, at, 0, 1, w)
            store(work, D_BIAS, d_bias, at, 0, 1, w)
            for c in range(w):
                for k in range(n):
                    dA_all[(at + c) * n + k] = dA[k * LANES + c]
