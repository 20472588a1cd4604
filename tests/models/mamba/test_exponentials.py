"""Exponentials of lanes against numpy in float64, over all that float32 can hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from panovlm.models.mamba import exponentials  # noqa: E402
from panovlm.models.mamba.avx512 import HAS_AVX512  # noqa: E402
from panovlm.models.mamba.lanes import load, store  # noqa: E402
from panovlm.models.mamba.vectors import LANES  # noqa: E402

ULP = 2.0**-23
with_avx512 = pytest.mark.skipif(not HAS_AVX512, reason="this processor has no AVX-512")
both = pytest.mark.parametrize(
    "name", ["exp2_saturated", pytest.param("exp2_avx512", marks=with_avx512)]
)


def everywhere(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of lanes as one of arrays."""
    function = getattr(exponentials, name)

    @numba.njit
    def fill(x, y):
        for i in range(0, len(x), LANES):
            store(y, i, function(load(x, i)))

    def call(x: np.ndarray) -> np.ndarray:
        padded = np.zeros(-(-len(x) // LANES) * LANES, np.float32)
        padded[: len(x)] = x
        y = np.empty_like(padded)
        fill(padded, y)
        return y[: len(x)]

    return call


def between(low: float, high: float) -> np.ndarray:
    """Return a hundred thousand numbers, and all whole and half ones."""
    halves = np.arange(np.ceil(2 * low), np.floor(2 * high) + 1) / 2
    return np.concatenate([np.linspace(low, high, 100_000), halves]).astype(np.float32)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(found - expected) / expected))


@both
def test_exp2_is_exact_to_the_last_bit(name) -> None:
    x = between(-125, 127.4)
    assert error(everywhere(name)(x), np.exp2(x.astype(np.float64))) < ULP


@both
def test_exp2_has_no_bias(name) -> None:
    """Decays are multiplied with each other at every step: a bias would grow."""
    x = np.random.default_rng(0).uniform(-3, 0, 100_000).astype(np.float32)
    exact = np.exp2(x.astype(np.float64))
    assert abs(np.mean(everywhere(name)(x) / exact - 1)) < 0.02 * ULP
    assert everywhere(name)(np.zeros(1))[0] == 1


@both
def test_exp2_keeps_nan(name) -> None:
    assert np.isnan(everywhere(name)(np.array([np.nan, -np.nan]))).all()


def test_exp2_saturates_without_avx512() -> None:
    x = np.array([-np.inf, -3e38, -126, 127.5, 3e38, np.inf])
    found = everywhere("exp2_saturated")(x)
    assert found[:3] == pytest.approx(2.0**-125) and found[3:] == pytest.approx(2.0**127.4)


@with_avx512
def test_exp2_reaches_the_ends_with_avx512() -> None:
    exp2 = everywhere("exp2_avx512")
    ends = np.array([-np.inf, -3e38, -151, 128, 3e38, np.inf])
    assert exp2(ends).tolist() == [0, 0, 0, np.inf, np.inf, np.inf]
    tiny = between(-149, -126)  # fewer bits than others have, down to one
    smallest = float(np.finfo(np.float32).smallest_subnormal)
    off = np.abs(exp2(tiny) - np.exp2(tiny.astype(np.float64)))
    assert off.max() < smallest
    powers = np.arange(-149.0, -125)
    assert np.array_equal(exp2(powers), np.exp2(powers))


def test_exp_is_as_exact_for_large_numbers() -> None:
    x = between(-86.6, 88.3)
    assert error(everywhere("exp")(x), np.exp(x.astype(np.float64))) < 1.5 * ULP
    found = everywhere("exp")(np.array([-np.inf, -100, 100, np.inf, np.nan]))
    assert found[:2] == pytest.approx(2.0**-125, rel=1e-5)
    assert found[2:4] == pytest.approx(2.0**127.4, rel=1e-5)
    assert np.isnan(found[4])


def test_sigmoid_and_softplus() -> None:
    x = between(-86, 86)
    exact = x.astype(np.float64)
    assert error(everywhere("sigmoid")(x), 1 / (1 + np.exp(-exact))) < 2.5 * ULP
    assert error(everywhere("log1p_exp")(x), np.logaddexp(0, exact)) < 2.5 * ULP
    ends = np.array([-np.inf, np.inf, np.nan])
    assert np.allclose(everywhere("sigmoid")(ends), [0, 1, np.nan], atol=1e-37, equal_nan=True)
    assert np.allclose(
        everywhere("log1p_exp")(ends), [0, np.inf, np.nan], atol=1e-37, equal_nan=True
    )
