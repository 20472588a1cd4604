"""Neighbouring channels as one value in numba's compiled functions.

Left alone, LLVM makes vector instructions of an innermost loop over channels, and the states go to
memory and back at every time step. A value of ``LANES`` numbers stays in registers, four of AVX-512
or eight of AVX2, while a loop over time goes on. Numbers of float32 mix with it freely; products
may be fused with the sums that they go into, and nothing is reordered.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.core.datamodel.models import PrimitiveModel
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload, register_model

Floats: TypeAlias = npt.NDArray[np.float32]

LANES = 64
"""Channels that advance together."""
TILE = 16
"""Time steps between two kept states, and rows that are folded together."""
PIECE = 16
"""Numbers in a register of AVX-512."""


class Lanes(Protocol):
    """What Python's type checker sees of a value of ``LANES`` numbers."""

    def __add__(self, other: Lanes | np.float32, /) -> Lanes: ...
    def __radd__(self, other: np.float32, /) -> Lanes: ...
    def __sub__(self, other: Lanes | np.float32, /) -> Lanes: ...
    def __rsub__(self, other: np.float32, /) -> Lanes: ...
    def __mul__(self, other: Lanes | np.float32, /) -> Lanes: ...
    def __rmul__(self, other: np.float32, /) -> Lanes: ...
    def __truediv__(self, other: Lanes | np.float32, /) -> Lanes: ...
    def __rtruediv__(self, other: np.float32, /) -> Lanes: ...


class LanesType(types.Type):
    """What numba sees of it."""

    def __init__(self) -> None:
        super().__init__("Lanes")


NUMBER, INTEGER, BITS_16 = ir.FloatType(), ir.IntType(32), ir.IntType(16)
LANES_TYPE = LanesType()


def _floats(number: int) -> ir.VectorType:
    return ir.VectorType(NUMBER, number)


def _integers(*values: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(INTEGER, len(values)), values)


WHOLE = _floats(LANES)


@register_model(LanesType)
class _Model(PrimitiveModel):
    def __init__(self, manager: Any, kind: types.Type) -> None:
        super().__init__(manager, kind, WHOLE)


def _argument(context: Any, builder: Any, kind: types.Type, value: Any) -> Any:
    """Return the place of an array, all lanes of a number, and the rest as it is."""
    if isinstance(kind, types.Array):
        return context.make_array(kind)(context, builder, value).data
    return _everywhere(builder, value) if isinstance(kind, types.Float) else value


def _everywhere(builder: Any, value: Any) -> Any:
    """Return lanes that all hold a number."""
    lanes = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    lanes = builder.insert_element(lanes, value, INTEGER(0))
    return _part(builder, lanes, [0] * LANES)


def _operation(result: types.Type, emit: Callable[..., Any]) -> Any:
    """Make a function for compiled code out of one that writes LLVM's instructions."""

    # numba asks for the names of the arguments, of which the first is its own here too.
    @wraps(emit)
    def typed(_: Any, *kinds: types.Type) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
            pairs = zip(signature.args, values, strict=True)
            found = emit(builder, *(_argument(context, builder, *pair) for pair in pairs))
            return context.get_dummy_value() if found is None else found

        return result(*kinds), generate

    return intrinsic(typed)


def _define_operator(symbol: Callable[..., Any], instruction: str) -> None:
    def emit(builder: Any, one: Any, other: Any) -> Any:
        return getattr(builder, instruction)(one, other, flags=("contract",))

    operation = _operation(LANES_TYPE, emit)

    def call(one: Any, other: Any) -> Any:
        return operation(one, other)

    def implement(one: Any, other: Any) -> Any:
        return call if LANES_TYPE in (one, other) else None

    overload(symbol, strict=False)(implement)  # strict would compare annotations too


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define_operator(_symbol, _instruction)


def _call(builder: Any, name: str, result: ir.Type, *values: Any) -> Any:
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(get_or_insert_function(builder.module, kind, name), values)


def _place(builder: Any, data: Any, index: Any, number: int) -> Any:
    return builder.bitcast(builder.gep(data, [index]), _floats(number).as_pointer())


def _part(builder: Any, value: Any, elements: Sequence[int]) -> Any:
    return builder.shuffle_vector(value, value, _integers(*elements))


def _load(builder: Any, data: Any, index: Any) -> Any:
    return builder.load(_place(builder, data, index, LANES), align=4)


def _store(builder: Any, data: Any, index: Any, value: Any) -> None:
    builder.store(value, _place(builder, data, index, LANES), align=4)


def _mask(builder: Any, number: Any) -> Any:
    """Return which lanes are among the first ones."""
    limit = _everywhere(builder, builder.trunc(number, INTEGER))
    return builder.icmp_signed("<", _integers(*range(LANES)), limit)


def _load_first(builder: Any, data: Any, index: Any, number: Any) -> Any:
    place, mask = _place(builder, data, index, LANES), _mask(builder, number)
    name = f"llvm.masked.load.v{LANES}f32.p0"
    return _call(builder, name, WHOLE, place, INTEGER(4), mask, ir.Constant(WHOLE, None))


def _store_first(builder: Any, data: Any, index: Any, value: Any, number: Any) -> None:
    place, mask = _place(builder, data, index, LANES), _mask(builder, number)
    name = f"llvm.masked.store.v{LANES}f32.p0"
    _call(builder, name, ir.VoidType(), value, place, INTEGER(4), mask)


def _store_sums(builder: Any, data: Any, index: Any, value: Any) -> None:
    number = LANES
    while number > PIECE:
        number //= 2
        low, high = range(number), range(number, 2 * number)
        value = builder.fadd(_part(builder, value, low), _part(builder, value, high))
    builder.store(value, _place(builder, data, index, number), align=4)


def _add_folded(builder: Any, data: Any, index: Any, target: Any, to: Any) -> None:
    number = TILE * PIECE
    value = builder.load(_place(builder, data, index, number), align=4)
    while number > TILE:
        even, odd = (_part(builder, value, range(first, number, 2)) for first in (0, 1))
        value, number = builder.fadd(even, odd), number // 2
    place = _place(builder, target, to, TILE)
    builder.store(builder.fadd(builder.load(place, align=4), value), place, align=4)


def _at_least(builder: Any, value: Any, low: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", value, low), low, value)


def _at_most(builder: Any, value: Any, high: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", value, high), high, value)


def _rounded(builder: Any, value: Any) -> Any:
    return _call(builder, f"llvm.rint.v{LANES}f32", WHOLE, value)


def _scaled(builder: Any, value: Any, exponent: Any) -> Any:
    whole = ir.VectorType(INTEGER, LANES)
    shift = builder.shl(builder.fptosi(exponent, whole), _integers(*[23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(value, whole), shift), WHOLE)


def _avx512(builder: Any, name: str, values: Sequence[Any], *options: ir.Constant) -> Any:
    """Call an instruction of AVX-512 for every register of some values, and join the results."""
    piece, found = _floats(PIECE), ir.Constant(WHOLE, ir.Undefined)
    unmasked = (ir.Constant(piece, None), BITS_16(-1), INTEGER(4))
    for first in range(0, LANES, PIECE):
        lanes = range(first, first + PIECE)
        given = (*(_part(builder, value, lanes) for value in values), *options, *unmasked)
        part = _call(builder, f"llvm.x86.avx512.mask.{name}.ps.512", piece, *given)
        wide = _part(builder, part, [i % PIECE for i in range(LANES)])
        chosen = [LANES + i if i in lanes else i for i in range(LANES)]
        found = builder.shuffle_vector(found, wide, _integers(*chosen))
    return found


def _scaled_avx512(builder: Any, value: Any, exponent: Any) -> Any:
    return _avx512(builder, "scalef", (value, exponent))


def _fraction_avx512(builder: Any, value: Any) -> Any:
    return _avx512(builder, "reduce", (value,), INTEGER(8))  # 8: exact, to the nearest


_FEATURES = str(cast("Any", cpu_target.target_context).codegen().magic_tuple()[2]).split(",")
HAS_AVX512 = {"+avx512f", "+avx512dq"} <= set(_FEATURES)
"""Whether numba compiles for a processor with it; numba's cache keeps processors apart."""

load = cast("Callable[[Floats, int], Lanes]", _operation(LANES_TYPE, _load))
"""Return the numbers from a place in an array on."""
store = cast("Callable[[Floats, int, Lanes | np.float32], None]", _operation(types.void, _store))
"""Write them to a place in an array."""
load_first = cast("Callable[[Floats, int, int], Lanes]", _operation(LANES_TYPE, _load_first))
"""Return only so many numbers, and zeros after them."""
store_first = cast(
    "Callable[[Floats, int, Lanes, int], None]", _operation(types.void, _store_first)
)
"""Write only so many."""
store_sums = cast("Callable[[Floats, int, Lanes], None]", _operation(types.void, _store_sums))
"""Write ``PIECE`` numbers with the same sum."""
add_folded = cast("Callable[[Floats, int, Floats, int], None]", _operation(types.void, _add_folded))
"""Add the sums of ``TILE`` rows, written by :func:`store_sums`, to as many numbers of an array."""
at_least = cast("Callable[[Lanes, Lanes | np.float32], Lanes]", _operation(LANES_TYPE, _at_least))
"""Return the larger one; a NaN in the first stays."""
at_most = cast("Callable[[Lanes, Lanes | np.float32], Lanes]", _operation(LANES_TYPE, _at_most))
"""Return the smaller one; a NaN in the first stays."""
rounded = cast("Callable[[Lanes], Lanes]", _operation(LANES_TYPE, _rounded))
"""Return the nearest whole numbers, even ones of two."""
scaled = cast("Callable[[Lanes, Lanes], Lanes]", _operation(LANES_TYPE, _scaled))
"""Multiply with powers of two, whose whole exponents must not lead out of float32."""
scaled_avx512 = cast("Callable[[Lanes, Lanes], Lanes]", _operation(LANES_TYPE, _scaled_avx512))
"""Multiply with powers of two, whatever the exponents."""
fraction_avx512 = cast("Callable[[Lanes], Lanes]", _operation(LANES_TYPE, _fraction_avx512))
"""Return what :func:`rounded` takes away, and 0 for infinity."""
