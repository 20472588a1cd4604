"""Neighbouring channels as one value in numba's compiled functions.

Left alone, LLVM makes vector instructions of an innermost loop over channels, and the states go to
memory and back at every time step. A value of ``LANES`` numbers stays in registers, four of AVX-512
or eight of AVX2, while a loop over time goes on: ``STATES`` entries of the state of each of
``CHANNELS`` channels, one entry after the other. What all entries share is a *row*, a value of a
number for each channel; it is loaded, and sums over entries are stored, once for all of them.
Numbers of float32 mix with both freely; products may be fused with the sums that they go into, and
nothing is reordered.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, overload, register_model

Floats: TypeAlias = npt.NDArray[np.float32]

CHANNELS, STATES = 16, 4
"""Channels, and entries of the state of each, that advance together.

More entries of fewer channels take less of the nearest cache and fewer loads and stores, but there
are more sums over channels for as many states."""
LANES = CHANNELS * STATES
TILE = 16
"""Time steps between two kept states, and rows that are folded together."""
PIECE = 16
"""Numbers in a register of AVX-512."""


class Lanes(Protocol):
    """What Python's type checker sees of a value of ``LANES`` or ``CHANNELS`` numbers."""

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

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"Lanes({number})")


NUMBER, INTEGER = ir.FloatType(), ir.IntType(32)
LANES_TYPE, ROW_TYPE = LanesType(LANES), LanesType(CHANNELS)


def vector(number: int) -> ir.VectorType:
    """Return the type of so many numbers."""
    return ir.VectorType(NUMBER, number)


def integers(*values: int) -> ir.Constant:
    """Return whole numbers, such as those of the elements that a shuffle chooses."""
    return ir.Constant(ir.VectorType(INTEGER, len(values)), values)


@register_model(LanesType)
class _Model(PrimitiveModel):
    def __init__(self, manager: Any, kind: LanesType) -> None:
        super().__init__(manager, kind, vector(kind.number))


def everywhere(builder: Any, value: Any, number: int) -> Any:
    """Return lanes that all hold a number."""
    lanes = ir.Constant(ir.VectorType(value.type, number), ir.Undefined)
    lanes = builder.insert_element(lanes, value, INTEGER(0))
    return part(builder, lanes, [0] * number)


def operation(emit: Callable[..., Any], result: types.Type | None = None) -> Any:
    """Make a function for compiled code out of one that writes LLVM's instructions.

    Args:
        emit: takes arrays as the places that they begin at, and numbers as lanes.
        result: type of what it gives; ``None`` for that of the lanes that it takes.
    """

    # numba asks for the names of the arguments, of which the first is its own here too.
    @wraps(emit)
    def typed(_: Any, *kinds: types.Type) -> Any:
        lanes = [kind for kind in kinds if isinstance(kind, LanesType)]

        def argument(context: Any, builder: Any, kind: types.Type, value: Any) -> Any:
            if isinstance(kind, types.Array):
                return context.make_array(kind)(context, builder, value).data
            if isinstance(kind, types.Float):
                return everywhere(builder, value, lanes[0].number)
            return value

        def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
            pairs = zip(signature.args, values, strict=True)
            found = emit(builder, *(argument(context, builder, *pair) for pair in pairs))
            return context.get_dummy_value() if found is None else found

        return (lanes[0] if result is None else result)(*kinds), generate

    return intrinsic(typed)


def _define_operator(symbol: Callable[..., Any], instruction: str) -> None:
    def emit(builder: Any, one: Any, other: Any) -> Any:
        return getattr(builder, instruction)(one, other, flags=("contract",))

    apply = operation(emit)

    def call(one: Any, other: Any) -> Any:
        return apply(one, other)

    def implement(one: Any, other: Any) -> Any:
        return call if isinstance(one, LanesType) or isinstance(other, LanesType) else None

    overload(symbol, strict=False)(implement)  # strict would compare annotations too


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define_operator(_symbol, _instruction)


def call_llvm(builder: Any, name: str, result: ir.Type, *values: Any) -> Any:
    """Call a function of LLVM's own."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(get_or_insert_function(builder.module, kind, name), values)


def address(builder: Any, data: Any, index: Any, number: int) -> Any:
    """Return where so many numbers of an array lie."""
    return builder.bitcast(builder.gep(data, [index]), vector(number).as_pointer())


def part(builder: Any, value: Any, elements: Sequence[int]) -> Any:
    """Return some numbers of a value."""
    return builder.shuffle_vector(value, value, integers(*elements))


def read(builder: Any, data: Any, index: Any, number: int) -> Any:
    """Return so many numbers of an array."""
    return builder.load(address(builder, data, index, number), align=4)


def joined(builder: Any, values: Sequence[Any]) -> Any:
    """Return values of the same size, one after the other."""
    while len(values) > 1:
        number = 2 * values[0].type.count
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [builder.shuffle_vector(*pair, integers(*range(number))) for pair in pairs]
    return values[0]
