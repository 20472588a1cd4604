# pyright: reportGeneralTypeIssues=false
# Triton unrolls its static_range, and declares that it cannot be iterated over.
"""What the scan does to one tile, as functions that Triton compiles into its kernels.

All arithmetic is float32, whatever is loaded and stored.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import triton
import triton.language as tl
from torch import Tensor

from panovlm.models.mamba import constants

Function = TypeVar("Function", bound=Callable[..., object])

LOG2_E = tl.constexpr(constants.LOG2_E)
LN_2 = tl.constexpr(constants.LN_2)
LN_2_HIGH = tl.constexpr(constants.LN_2_HIGH)
LN_2_LOW = tl.constexpr(constants.LN_2_LOW)
LOWEST = tl.constexpr(-87.0)
"""Exponents below which e**x counts as e**-87, which float32 still holds in full."""
Q1, Q2, Q3, Q4 = (tl.constexpr(c) for c in constants.ARTANH)


class Steps(NamedTuple):
    """A tensor ``[batch, length, width]`` as a kernel walks through it; the width is dense."""

    at: Tensor
    """Begins with the step that the scan takes first."""
    row: int
    """Elements from one sequence to the next."""
    step: int
    """Elements from one step of the scan to the next; negative if it goes back in time."""


def jit(function: Function) -> Function:
    """Compile at the first call; run in Triton's interpreter where ``TRITON_INTERPRET`` is 1."""
    return cast("Function", triton.jit(function))


@jit
def exp_of_negative(x: tl.tensor) -> tl.tensor:
    """Return e**x for an x of at most 0; unlike ``exp2(x * LOG2_E)`` as exact for large ones."""
    x = tl.where(x < LOWEST, LOWEST, x)  # a NaN stays
    whole = tl.floor(x * LOG2_E + 0.5)
    rest = (x - whole * LN_2_HIGH) - whole * LN_2_LOW
    return tl.exp2(whole) * tl.exp2(rest * LOG2_E)


@jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    """Return 1 / (1 + e**-x)."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2_E))


@jit
def softplus(x: tl.tensor) -> tl.tensor:
    """Return log(1 + e**x), as max(x, 0) + 2 artanh(e / (2 + e)) with e = e**-|x|."""
    e = exp_of_negative(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    return tl.maximum(x, 0.0) + 2.0 * s * (1.0 + q * (Q1 + q * (Q2 + q * (Q3 + q * Q4))))


@jit
def read(
    tensor: Steps,
    row: tl.tensor,
    begin: tl.tensor,
    columns: tl.tensor,
    length: tl.tensor,
    there: tl.tensor,
    TILE: tl.constexpr,
) -> "tuple[tl.tensor, ...]":
    """Return the steps of a tile; zero beyond the end of the sequence or of the width."""
    found = ()
    for i in tl.static_range(TILE):
        at = tensor.at + row * tensor.row + tl.cast(begin + i, tl.int64) * tensor.step
        value = tl.load(at + columns, mask=there & (begin + i < length), other=0.0)
        found = found + (value.to(tl.float32),)
    return found


@jit
def write(
    tensor: Steps,
    row: tl.tensor,
    begin: tl.tensor,
    columns: tl.tensor,
    length: tl.tensor,
    there: tl.tensor,
    values: "tuple[tl.tensor, ...]",
    TILE: tl.constexpr,
) -> None:
    """Store the steps of a tile, in the type of the tensor."""
    for i in tl.static_range(TILE):
        at = tensor.at + row * tensor.row + tl.cast(begin + i, tl.int64) * tensor.step
        tl.store(at + columns, values[i], mask=there & (begin + i < length))


@jit
def add(
    tensor: Steps,
    row: tl.tensor,
    begin: tl.tensor,
    columns: tl.tensor,
    length: tl.tensor,
    there: tl.tensor,
    values: "tuple[tl.tensor, ...]",
    begun: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """Store the steps of a tile, or add them to what is there already if that has begun."""
    sums = read(tensor, row, begin, columns, length, there & begun, TILE)
    totals = ()
    for i in tl.static_range(TILE):
        totals = totals + (sums[i] + values[i],)
    write(tensor, row, begin, columns, length, there, totals, TILE)


@jit
def vector(pointer: "tl.tensor | None", columns: tl.tensor, there: tl.tensor) -> tl.tensor:
    """Return what belongs to the channels, zero beyond the width or without a tensor."""
    if pointer is None:
        values = tl.zeros(columns.shape, tl.float32)
    else:
        values = tl.load(pointer + columns, mask=there, other=0.0).to(tl.float32)
    return values


@jit
def state_places(
    kept: tl.tensor,
    row: tl.tensor,
    tile: tl.tensor,
    tiles: tl.tensor,
    width: tl.tensor,
    matrix: tl.tensor,
    n: tl.tensor,
) -> tl.tensor:
    """Return where the states before a tile lie in ``[batch, tiles - 1, width, n]``."""
    return kept + ((row * (tiles - 1) + tile - 1) * width * n) + matrix
