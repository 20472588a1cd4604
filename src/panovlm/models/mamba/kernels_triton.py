"""The selective scan for Triton: forwards, and backwards with recomputation.

Only imported where Triton is installed and wanted. One program, of a single warp, takes one
sequence and a few of its channels with all entries of their states through time. The states before
each tile of ``TILE`` steps but the first are kept for the backward pass; the others are computed
again there. Nothing is added to by two programs: gradients that are sums over channels (B, C) or
over sequences (A, D, bias) come out once per part of the channels or once per sequence, and the
caller adds them up, so that every run gives the same bits.

All arithmetic is float32, whatever is loaded and stored. The loads of a tile stand before its
arithmetic and its stores after it: no load waits for a store to another tensor.
"""

import triton.language as tl

from panovlm.models.mamba.tiles_triton import (
    LN_2,
    LOG2_E,
    Steps,
    add,
    jit,
    read,
    sigmoid,
    softplus,
    state_places,
    vector,
    write,
)


@jit
def forward(
    u: Steps,
    delta: Steps,
    A: tl.tensor,
    B: Steps,
    C: Steps,
    D: "tl.tensor | None",
    z: "Steps | None",
    bias: "tl.tensor | None",
    kept: "tl.tensor | None",
    y: Steps,
    length: tl.tensor,
    width: tl.tensor,
    n: tl.tensor,
    SOFTPLUS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Scan one sequence (axis 0 of the grid) with the channels of one block (axis 1).

    Args:
        u: as :class:`Steps`, like delta, B, C, z and y; z may be ``None``.
        delta: see u.
        A: ``[width, n]``.
        B: see u.
        C: see u.
        D: ``[width]`` or ``None``, like bias.
        z: see u.
        bias: see D.
        kept: to fill with the states before each tile but the first,
            ``[batch, tiles - 1, width, n]``, or ``None``.
        y: to fill with the output.
        length: time steps.
        width: channels.
        n: entries of a channel's state.
        SOFTPLUS: whether the step sizes go through a softplus.
        CHANNELS: channels of a block, a power of two.
        STATES: the power of two from ``n`` on.
        TILE: time steps between two kept states.
    """
    row = tl.cast(tl.program_id(0), tl.int64)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    states = tl.arange(0, STATES)
    in_width, in_state = channels < width, states < n
    inside = in_width[:, None] & in_state[None, :]
    matrix = channels[:, None] * n + states[None, :]
    a = tl.load(A + matrix, mask=inside, other=0.0).to(tl.float32) * LOG2_E
    skip, shift = vector(D, channels, in_width), vector(bias, channels, in_width)
    tiles = tl.cdiv(length, TILE)
    h = tl.zeros((CHANNELS, STATES), tl.float32)
    for tile in range(tiles):
        begin = tile * TILE
        if kept is not None:
            at = state_places(kept, row, tile, tiles, width, matrix, n)
            tl.store(at, h, mask=inside & (tile > 0))
        us = read(u, row, begin, channels, length, in_width, TILE)
        raws = read(delta, row, begin, channels, length, in_width, TILE)
        bs = read(B, row, begin, states, length, in_state, TILE)
        cs = read(C, row, begin, states, length, in_state, TILE)
        if z is not None:
            zs = read(z, row, begin, channels, length, in_width, TILE)
        ys = ()
        for i in tl.static_range(TILE):
            delta_i = raws[i] + shift
            if SOFTPLUS:
                delta_i = softplus(delta_i)
            x = delta_i * us[i]
            h = tl.exp2(delta_i[:, None] * a) * h + x[:, None] * bs[i][None, :]
            y_i = tl.sum(h * cs[i][None, :], 1) + skip * us[i]
            if z is not None:
                y_i = y_i * (zs[i] * sigmoid(zs[i]))
            ys = ys + (y_i,)
        write(y, row, begin, channels, length, in_width, ys, TILE)


@jit
def backward(
    u: Steps,
    delta: Steps,
    A: tl.tensor,
    B: Steps,
    C: Steps,
    D: "tl.tensor | None",
    z: "Steps | None",
    bias: "tl.tensor | None",
    kept: tl.tensor,
    dy: Steps,
    du: Steps,
    d_delta: Steps,
    dA: tl.tensor,
    dB: Steps,
    dC: Steps,
    dD: tl.tensor,
    dz: "Steps | None",
    d_bias: tl.tensor,
    length: tl.tensor,
    width: tl.tensor,
    n: tl.tensor,
    SOFTPLUS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Take one sequence (axis 0) and a part of its blocks of channels (axis 1) back through time.

    With g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}, the gradient of h_t, the gradients are sums
    over g_t h_{t-1} exp(delta_t A) (for delta and A), g_t B_t (x = delta u), g_t x_t (B) and h_t
    dy_t (C), where dy is the gradient before the gate.

    Args:
        u: as in :func:`forward`, like all up to ``kept``, which is filled.
        delta: see u.
        A: see u.
        B: see u.
        C: see u.
        D: see u.
        z: see u.
        bias: see u.
        kept: see u.
        dy: gradient of the output, as steps.
        du: to fill, as steps, like d_delta and dz; dz is ``None`` without gate.
        d_delta: see du.
        dA: to fill, ``[batch, width, n]``, one for each sequence.
        dB: to fill, as steps of ``[parts * batch, length, n]``, one for each part; dC too.
        dC: see dB.
        dD: to fill, ``[batch, width]``, one for each sequence; d_bias too.
        dz: see du.
        d_bias: see dD.
        length: time steps.
        width: channels.
        n: entries of a channel's state.
        SOFTPLUS: whether the step sizes go through a softplus.
        CHANNELS: channels of a block, a power of two.
        STATES: the power of two from ``n`` on.
        TILE: time steps between two kept states.
    """
    row, part, parts = tl.cast(tl.program_id(0), tl.int64), tl.program_id(1), tl.num_programs(1)
    in_part = part * tl.num_programs(0) + row
    states = tl.arange(0, STATES)
    in_state = states < n
    tiles = tl.cdiv(length, TILE)
    blocks = tl.cdiv(width, CHANNELS)
    first, last = blocks * part // parts, blocks * (part + 1) // parts
    for block in range(first, last):
        channels = block * CHANNELS + tl.arange(0, CHANNELS)
        in_width = channels < width
        inside = in_width[:, None] & in_state[None, :]
        matrix = channels[:, None] * n + states[None, :]
        a = tl.load(A + matrix, mask=inside, other=0.0).to(tl.float32) * LOG2_E
        skip, shift = vector(D, channels, in_width), vector(bias, channels, in_width)
        dA_sum = tl.zeros((CHANNELS, STATES), tl.float32)
        dD_sum, d_bias_sum = skip * 0.0, skip * 0.0
        carry = tl.zeros((CHANNELS, STATES), tl.float32)  # what comes back to the state
        for back in range(tiles):
            tile = tiles - 1 - back
            begin = tile * TILE
            at = state_places(kept, row, tile, tiles, width, matrix, n)
            h = tl.load(at, mask=inside & (tile > 0), other=0.0)
            us = read(u, row, begin, channels, length, in_width, TILE)
            raws = read(delta, row, begin, channels, length, in_width, TILE)
            bs = read(B, row, begin, states, length, in_state, TILE)
            deltas = ()
            before = ()
            for i in tl.static_range(TILE):
                delta_i = raws[i] + shift
                if SOFTPLUS:
                    delta_i = softplus(delta_i)
                before = before + (h,)
                h = tl.exp2(delta_i[:, None] * a) * h + (delta_i * us[i])[:, None] * bs[i][None, :]
                deltas = deltas + (delta_i,)
            cs = read(C, row, begin, states, length, in_state, TILE)
            dys = read(dy, row, begin, channels, length, in_width, TILE)
            if z is not None:
                zs = read(z, row, begin, channels, length, in_width, TILE)
            dus = ()
            d_deltas = ()
            dzs = ()
            dBs = ()
            dCs = ()
            for i in tl.static_range(TILE - 1, -1, -1):
                dy_i = dys[i]
                if z is not None:
                    gate = sigmoid(zs[i])
                    y_i = tl.sum(h * cs[i][None, :], 1) + skip * us[i]
                    dzs = (dy_i * y_i * gate * (1.0 + zs[i] * (1.0 - gate)),) + dzs
                    dy_i = dy_i * zs[i] * gate
                g = cs[i][None, :] * dy_i[:, None] + carry
                dCs = (tl.sum(h * dy_i[:, None], 0),) + dCs
                dBs = (tl.sum(g * (deltas[i] * us[i])[:, None], 0),) + dBs
                carry = tl.exp2(deltas[i][:, None] * a) * g
                h = before[i]
                flow = carry * h  # the gradient of delta A
                dA_sum += flow * deltas[i][:, None]
                dx = tl.sum(g * bs[i][None, :], 1)
                d_raw = tl.sum(flow * a, 1) * LN_2 + dx * us[i]
                if SOFTPLUS:
                    d_raw = d_raw * sigmoid(raws[i] + shift)
                d_deltas = (d_raw,) + d_deltas
                dus = (dx * deltas[i] + dy_i * skip,) + dus
                dD_sum += dy_i * us[i]
                d_bias_sum += d_raw
            write(du, row, begin, channels, length, in_width, dus, TILE)
            write(d_delta, row, begin, channels, length, in_width, d_deltas, TILE)
            if z is not None:
                write(dz, row, begin, channels, length, in_width, dzs, TILE)
            add(dB, in_part, begin, states, length, in_state, dBs, block > first, TILE)
            add(dC, in_part, begin, states, length, in_state, dCs, block > first, TILE)
        tl.store(dA + row * width * n + matrix, dA_sum, mask=inside)
        tl.store(dD + row * width + channels, dD_sum, mask=in_width)
        tl.store(d_bias + row * width + channels, d_bias_sum, mask=in_width)
        tl.debug_barrier()  # the next block reads what this one has written to dB and dC
