"""Instructions of AVX-512 for which there is no name in LLVM's own language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from llvmlite import ir
from numba.core.registry import cpu_target

from panovlm.models.mamba.vectors import (
    INTEGER,
    PIECE,
    Lanes,
    call_llvm,
    joined,
    operation,
    part,
    vector,
)

_FEATURES = str(cast("Any", cpu_target.target_context).codegen().magic_tuple()[2]).split(",")
HAS_AVX512 = {"+avx512f", "+avx512dq"} <= set(_FEATURES)
"""Whether numba compiles for a processor with it; numba's cache keeps processors apart."""

REGISTER = vector(PIECE)
UNMASKED = (ir.Constant(REGISTER, None), ir.IntType(16)(-1), INTEGER(4))
"""No numbers of another register, and the usual rounding."""


def _each(builder: Any, name: str, *values: Any, rest: Sequence[Any]) -> Any:
    """Call an instruction for every register of some values, and join the results."""
    found = []
    for first in range(0, values[0].type.count, PIECE):
        given = [part(builder, value, range(first, first + PIECE)) for value in values]
        found.append(call_llvm(builder, f"llvm.x86.avx512.{name}.512", REGISTER, *given, *rest))
    return joined(builder, found)


def _scaled(builder: Any, value: Any, exponent: Any) -> Any:
    return _each(builder, "mask.scalef.ps", value, exponent, rest=UNMASKED)


def _fraction(builder: Any, value: Any) -> Any:
    return _each(
        builder, "mask.reduce.ps", value, rest=(INTEGER(8), *UNMASKED)
    )  # 8: exact, to the nearest


scaled = cast("Callable[[Lanes, Lanes], Lanes]", operation(_scaled))
"""Multiply with powers of two, whatever the exponents."""
fraction = cast("Callable[[Lanes], Lanes]", operation(_fraction))
"""Return how far numbers are from the nearest whole ones, and 0 for infinity."""
