"""e**x and its kin for lanes, to the last bits of float32.

Constants are float32 throughout: a Python number would make everything double.
"""

from __future__ import annotations

import numpy as np

from panovlm.models.mamba import avx512, constants
from panovlm.models.mamba.compiled import inlined
from panovlm.models.mamba.lanes import at_least, at_most, rounded, scaled, where_negative
from panovlm.models.mamba.vectors import Lanes

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
LOG2_E, LN_2 = np.float32(constants.LOG2_E), np.float32(constants.LN_2)
LN_2_HIGH, LN_2_LOW = np.float32(constants.LN_2_HIGH), np.float32(constants.LN_2_LOW)
LOWEST, HIGHEST = np.float32(-125), np.float32(127.4)
"""Exponents beyond which powers saturate, at 2e-38 and 2e38, without AVX-512."""
P1, P2, P3, P4, P5, P6 = (
    np.float32(c)
    for c in (0.6931472029, 0.2402264791, 0.0555033247, 0.0096184374, 0.0013398875, 0.0001535336)
)
"""2**r on [-1/2, 1/2], fitted for the relative error (2e-9) with value 1 at 0."""
Q1, Q2, Q3, Q4 = (np.float32(c) for c in constants.ARTANH)


@inlined
def small_power(r: Lanes) -> Lanes:
    """Return 2**r for r from -1/2 to 1/2."""
    return ONE + r * (P1 + r * (P2 + r * (P3 + r * (P4 + r * (P5 + r * P6)))))


@inlined
def exp2_saturated(x: Lanes) -> Lanes:
    """Return 2**x, or 2e-38 or 2e38 where it is beyond them."""
    x = at_most(at_least(x, LOWEST), HIGHEST)
    whole = rounded(x)
    return scaled(small_power(x - whole), whole)


@inlined
def exp2_avx512(x: Lanes) -> Lanes:
    """Return 2**x in nine instructions, whatever x is."""
    return avx512.scaled(small_power(avx512.fraction(x)), rounded(x))


exp2 = exp2_avx512 if avx512.HAS_AVX512 else exp2_saturated


@inlined
def exp(x: Lanes) -> Lanes:
    """Return e**x, saturated; unlike ``exp2(x * LOG2_E)`` as exact for a large x as for any."""
    x = at_most(at_least(x, LOWEST * LN_2), HIGHEST * LN_2)
    whole = rounded(x * LOG2_E)
    rest = (x - whole * LN_2_HIGH) - whole * LN_2_LOW
    return scaled(small_power(rest * LOG2_E), whole)


@inlined
def sigmoid(x: Lanes) -> Lanes:
    """Return 1 / (1 + e**-x)."""
    return ONE / (ONE + exp(ZERO - x))


@inlined
def log1p_exp_and_slope(x: Lanes) -> tuple[Lanes, Lanes]:
    """Return log(1 + e**x) and its slope, the sigmoid, by one exponential.

    With e = e**-|x| they are max(x, 0) + 2 artanh(e / (2 + e)), and 1 or e over 1 + e.
    """
    e = exp(ZERO - at_least(x, ZERO - x))
    s = e / (TWO + e)
    q = s * s
    series = ONE + q * (Q1 + q * (Q2 + q * (Q3 + q * Q4)))
    return at_least(x, ZERO) + TWO * s * series, where_negative(x, e, ONE) / (ONE + e)


@inlined
def log1p_exp(x: Lanes) -> Lanes:
    """Return log(1 + e**x)."""
    return log1p_exp_and_slope(x)[0]
