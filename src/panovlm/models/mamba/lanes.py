"""What compiled functions do with lanes besides arithmetic: loads, stores, sums, bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba.core import types

from panovlm.models.mamba.vectors import (
    CHANNELS,
    INTEGER,
    LANES,
    LANES_TYPE,
    PIECE,
    ROW_TYPE,
    STATES,
    TILE,
    Floats,
    Lanes,
    address,
    call_llvm,
    everywhere,
    integers,
    joined,
    operation,
    part,
    read,
    vector,
)


def _load(builder: Any, data: Any, index: Any) -> Any:
    return read(builder, data, index, LANES)


def _load_row(builder: Any, data: Any, index: Any) -> Any:
    return read(builder, data, index, CHANNELS)


def _load_repeated(builder: Any, data: Any, index: Any) -> Any:
    row = _load_row(builder, data, index)
    return part(builder, row, [*range(CHANNELS)] * STATES)


def _load_each(builder: Any, data: Any, index: Any) -> Any:
    places = (builder.gep(data, [builder.add(index, index.type(i))]) for i in range(STATES))
    return joined(builder, [everywhere(builder, builder.load(p), CHANNELS) for p in places])


def _store(builder: Any, data: Any, index: Any, value: Any) -> None:
    builder.store(value, address(builder, data, index, value.type.count), align=4)


def _mask(builder: Any, number: Any) -> Any:
    """Return which channels are among the first ones."""
    limit = everywhere(builder, builder.trunc(number, INTEGER), CHANNELS)
    return builder.icmp_signed("<", integers(*range(CHANNELS)), limit)


def _load_first(builder: Any, data: Any, index: Any, number: Any) -> Any:
    place, mask, row = (
        address(builder, data, index, CHANNELS),
        _mask(builder, number),
        vector(CHANNELS),
    )
    name = f"llvm.masked.load.v{CHANNELS}f32.p0"
    return call_llvm(builder, name, row, place, INTEGER(4), mask, ir.Constant(row, None))


def _store_first(builder: Any, data: Any, index: Any, value: Any, number: Any) -> None:
    place, mask = address(builder, data, index, CHANNELS), _mask(builder, number)
    name = f"llvm.masked.store.v{CHANNELS}f32.p0"
    call_llvm(builder, name, ir.VoidType(), value, place, INTEGER(4), mask)


def _summed(builder: Any, one: Any, other: Any, pieces: Sequence[Sequence[int]], start: Any) -> Any:
    """Multiply pieces of two values and add the products up."""
    fused = ("contract",)
    for elements in pieces:
        factors = (part(builder, value, elements) for value in (one, other))
        product = builder.fmul(*factors, flags=fused)
        start = product if start is None else builder.fadd(product, start, flags=fused)
    return start


def _add_products(builder: Any, data: Any, index: Any, one: Any, other: Any) -> None:
    row = _load_row(builder, data, index)
    states = [range(i, i + CHANNELS) for i in range(0, LANES, CHANNELS)]
    _store(builder, data, index, _summed(builder, one, other, states, row))


def _halved(builder: Any, values: Sequence[Any], width: int) -> list[Any]:
    """Make one of two values of ``PIECE`` numbers, with sums of those ``width`` from each other.

    The first one's go where bit ``width`` of the place is not set, the second one's where it is.
    """
    half = len(values) // 2
    own = [i + PIECE * bool(i & width) for i in range(PIECE)]
    beside = [own[i ^ width] ^ PIECE for i in range(PIECE)]
    return [
        builder.fadd(
            builder.shuffle_vector(*pair, integers(*own)),
            builder.shuffle_vector(*pair, integers(*beside)),
        )
        for pair in zip(values[:half], values[half:], strict=True)
    ]


def _store_products(builder: Any, data: Any, index: Any, one: Any, other: Any) -> None:
    states = [range(i, i + CHANNELS) for i in range(0, LANES, CHANNELS)]
    pieces = [[state[i : i + PIECE] for i in range(0, CHANNELS, PIECE)] for state in states]
    sums = [_summed(builder, one, other, of_state, None) for of_state in pieces]
    for i, value in enumerate(_halved(builder, sums, PIECE // 2)):
        _store(builder, data, builder.add(index, index.type(i * TILE * PIECE)), value)


def _add_folded(builder: Any, data: Any, index: Any, target: Any, to: Any) -> None:
    for first in range(STATES // 2):
        steps = range(first * TILE * PIECE, (first + 1) * TILE * PIECE, PIECE)
        places = [builder.add(index, index.type(step)) for step in steps]
        values = [read(builder, data, place, PIECE) for place in places]
        for width in (4, 2, 1):
            values = _halved(builder, values, width)
        for side in range(2):  # the steps t are even in the first value, and odd in the second
            in_time = [t % 2 * PIECE + side * PIECE // 2 + t // 2 for t in range(TILE)]
            sums = builder.shuffle_vector(*values, integers(*in_time))
            place = builder.add(to, to.type((first + side * STATES // 2) * TILE))
            sums = builder.fadd(read(builder, target, place, TILE), sums)
            _store(builder, target, place, sums)


def _prefetch(builder: Any, data: Any, index: Any) -> None:
    how = (INTEGER(0), INTEGER(3), INTEGER(1))  # to read it, and soon, from the cache of data
    for i in range(0, CHANNELS, PIECE):  # a line of the cache is as large as a register
        place = builder.gep(data, [builder.add(index, index.type(i))])
        call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), place, *how)


def _at_least(builder: Any, value: Any, low: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", value, low), low, value)


def _at_most(builder: Any, value: Any, high: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", value, high), high, value)


def _where_negative(builder: Any, value: Any, one: Any, other: Any) -> Any:
    zero = ir.Constant(value.type, None)
    return builder.select(builder.fcmp_ordered("<", value, zero), one, other)


def _rounded(builder: Any, value: Any) -> Any:
    return call_llvm(builder, f"llvm.rint.v{value.type.count}f32", value.type, value)


def _scaled(builder: Any, value: Any, exponent: Any) -> Any:
    whole = ir.VectorType(INTEGER, value.type.count)
    shift = builder.shl(builder.fptosi(exponent, whole), integers(*[23] * whole.count))
    bits = builder.add(builder.bitcast(value, whole), shift)
    return builder.bitcast(bits, value.type)


load = cast("Callable[[Floats, int], Lanes]", operation(_load, LANES_TYPE))
"""Return the numbers from a place in an array on."""
load_row = cast("Callable[[Floats, int], Lanes]", operation(_load_row, ROW_TYPE))
"""Return the row from a place in an array on."""
load_repeated = cast("Callable[[Floats, int], Lanes]", operation(_load_repeated, LANES_TYPE))
"""Return lanes that hold a row for every entry of the state."""
load_each = cast("Callable[[Floats, int], Lanes]", operation(_load_each, LANES_TYPE))
"""Return lanes that hold one of ``STATES`` numbers for every entry of the state."""
load_first = cast("Callable[[Floats, int, int], Lanes]", operation(_load_first, ROW_TYPE))
"""Return only so many numbers of a row, and zeros after them."""
prefetch = cast("Callable[[Floats, int], None]", operation(_prefetch, types.void))
"""Have a row fetched into the cache, wherever it lies, while other work goes on."""
store = cast("Callable[[Floats, int, Lanes], None]", operation(_store, types.void))
"""Write lanes or a row to a place in an array."""
store_first = cast("Callable[[Floats, int, Lanes, int], None]", operation(_store_first, types.void))
"""Write only so many of a row."""
add_products = cast(
    "Callable[[Floats, int, Lanes, Lanes], None]", operation(_add_products, types.void)
)
"""Multiply lanes; add the products, summed over the entries of the state, to a row of an array."""
store_products = cast(
    "Callable[[Floats, int, Lanes, Lanes], None]", operation(_store_products, types.void)
)
"""Multiply lanes; leave sums over channels to :func:`add_folded`, which needs those of a tile.

A time step takes ``PIECE`` numbers from the place on, for every two entries of the state."""
add_folded = cast("Callable[[Floats, int, Floats, int], None]", operation(_add_folded, types.void))
"""Add the sums of ``TILE`` steps, left by :func:`store_products`, to as many numbers of an array.

So for every entry of the state, one after the other."""
at_least = cast("Callable[[Lanes, Lanes | np.float32], Lanes]", operation(_at_least))
"""Return the larger one; a NaN in the first stays."""
at_most = cast("Callable[[Lanes, Lanes | np.float32], Lanes]", operation(_at_most))
"""Return the smaller one; a NaN in the first stays."""
where_negative = cast(
    "Callable[[Lanes, Lanes | np.float32, Lanes | np.float32], Lanes]", operation(_where_negative)
)
"""Return the second where the first is negative, and the third elsewhere."""
rounded = cast("Callable[[Lanes], Lanes]", operation(_rounded))
"""Return the nearest whole numbers, even ones of two."""
scaled = cast("Callable[[Lanes, Lanes], Lanes]", operation(_scaled))
"""Multiply with powers of two, whose whole exponents must not lead out of float32."""
