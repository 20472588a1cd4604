"""Lanes against numpy."""

from __future__ import annotations

import operator

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from panovlm.models.mamba import avx512, lanes  # noqa: E402
from panovlm.models.mamba.lanes import load, store  # noqa: E402
from panovlm.models.mamba.vectors import CHANNELS, LANES, PIECE, STATES, TILE  # noqa: E402

NUMBER = np.float32(0.7)


def normal(*size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=size).astype(np.float32)


def applied(function, *arrays: np.ndarray) -> np.ndarray:
    """Compile a function of one or two lanes and return what it gives."""
    found = np.empty(LANES, np.float32)
    if len(arrays) == 1:

        @numba.njit
        def fill(found, one):
            store(found, 0, function(load(one, 0)))
    else:

        @numba.njit
        def fill(found, one, other):
            store(found, 0, function(load(one, 0), load(other, 0)))

    fill(found, *arrays)
    return found


@pytest.mark.parametrize("symbol", ["add", "sub", "mul", "truediv"])
def test_operators_with_lanes_and_numbers(symbol) -> None:
    operation = getattr(operator, symbol)
    one, other = normal(2, LANES)
    assert np.array_equal(applied(operation, one, other), operation(one, other))
    right = numba.njit(lambda x: operation(x, NUMBER))
    assert np.array_equal(applied(right, one), operation(one, NUMBER))
    left = numba.njit(lambda x: operation(NUMBER, x))
    assert np.array_equal(applied(left, one), operation(NUMBER, one))


def test_lanes_lie_anywhere_in_an_array() -> None:
    source, target = normal(2 * LANES), np.zeros(2 * LANES, np.float32)
    numba.njit(lambda x, y: store(y, 5, load(x, 3)))(source, target)
    expected = np.zeros(2 * LANES, np.float32)
    expected[5 : 5 + LANES] = source[3 : 3 + LANES]
    assert np.array_equal(target, expected)


def test_rows_and_numbers_reach_every_entry_of_the_state() -> None:
    row, numbers, found = normal(CHANNELS + 3), normal(STATES + 5), np.empty((2, LANES), np.float32)

    @numba.njit
    def fill(row, numbers, found):
        store(found, 0, lanes.load_repeated(row, 3))
        store(found, LANES, lanes.load_each(numbers, 5))

    fill(row, numbers, found.reshape(-1))
    assert np.array_equal(found[0], np.tile(row[3:], STATES))
    assert np.array_equal(found[1], np.repeat(numbers[5:], CHANNELS))


@pytest.mark.parametrize("number", [0, 1, 9, CHANNELS])
def test_only_the_first_channels(number) -> None:
    source, target = normal(CHANNELS), np.full(CHANNELS, 9, np.float32)
    numba.njit(lambda x, y, w: store(y, 0, lanes.load_first(x, 0, w)))(source, target, number)
    assert np.array_equal(target, np.where(np.arange(CHANNELS) < number, source, 0))
    target[:] = 9
    numba.njit(lambda x, y, w: lanes.store_first(y, 0, lanes.load_row(x, 0), w))(
        source, target, number
    )
    assert np.array_equal(target, np.where(np.arange(CHANNELS) < number, source, 9))


def test_bounds_let_nan_through() -> None:
    one, other = normal(2, LANES)
    one[3] = np.nan
    for bound, exact in ((lanes.at_least, np.maximum), (lanes.at_most, np.minimum)):
        assert np.array_equal(applied(bound, one, other), exact(one, other), equal_nan=True)


def test_rounded_goes_to_even_numbers() -> None:
    x = np.linspace(-LANES / 4, LANES / 4, LANES + 1, dtype=np.float32)[:LANES]
    assert np.array_equal(applied(lanes.rounded, x), np.rint(x))


def test_scaled_by_powers_of_two() -> None:
    x, exponent = 1 + np.abs(normal(LANES)), np.arange(LANES, dtype=np.float32) - LANES / 2
    assert np.array_equal(applied(lanes.scaled, x, exponent), np.ldexp(x, exponent.astype(int)))


@pytest.mark.skipif(not avx512.HAS_AVX512, reason="this processor has no AVX-512")
def test_instructions_of_avx512_reach_every_lane() -> None:
    x, exponent = normal(LANES), np.arange(LANES, dtype=np.float32) * 8 - 4 * LANES
    with np.errstate(over="ignore"):
        expected = np.ldexp(x, exponent.astype(int))
    assert np.array_equal(applied(avx512.scaled, x, exponent), expected)
    assert np.array_equal(
        applied(avx512.fraction, exponent + x), (exponent + x) - np.rint(exponent + x)
    )


def test_where_negative_chooses() -> None:
    x, one = normal(2, LANES)
    chosen = numba.njit(lambda x, y: lanes.where_negative(x, y, NUMBER))
    assert np.array_equal(applied(chosen, x, one), np.where(x < 0, one, NUMBER))


def test_products_are_summed_over_entries_of_the_state() -> None:
    (one, other), row = normal(2, LANES), normal(CHANNELS)
    found = row.copy()
    numba.njit(lambda x, y, row: lanes.add_products(row, 0, load(x, 0), load(y, 0)))(
        one, other, found
    )
    products = one.astype(np.float64) * other
    assert np.abs(found - row - products.reshape(STATES, CHANNELS).sum(0)).max() < 1e-6


def test_products_are_summed_over_channels() -> None:
    (one, other), sums = normal(2, TILE, LANES), normal(STATES, TILE)

    @numba.njit
    def fold(one, other, room, sums):
        for t in range(TILE):
            lanes.store_products(room, t * PIECE, load(one, t * LANES), load(other, t * LANES))
        lanes.add_folded(room, 0, sums, 0)

    found, room = sums.copy(), np.empty(STATES * TILE * PIECE, np.float32)
    fold(one.reshape(-1), other.reshape(-1), room, found.reshape(-1))
    products = (one.astype(np.float64) * other).reshape(TILE, STATES, CHANNELS)
    assert np.abs(found - sums - products.sum(2).T).max() < 3e-6
