"""The fixed inputs are the same everywhere, and a sketch tells arrays apart as it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panovlm.checkpoint.probe.compare import distance
from panovlm.checkpoint.probe.patterns import noise, picture, sketch, text_ids


def test_the_inputs_never_change():
    """Files hold what came of them: other inputs would make every probe a false alarm."""
    assert picture(128, 256)[[0, 1, 64, 127], [0, 5, 100, 255]].tolist() == [
        [0, 0, 0],
        [1, 183, 109],
        [208, 126, 43],
        [170, 246, 67],
    ]
    assert noise(2, 3).tolist() == [
        pytest.approx([1.34160, -0.23966, -1.65750], abs=1e-5),
        pytest.approx([1.64810, -1.37781, -0.60438], abs=1e-5),
    ]
    marks = (-6.12372, 2.04124, -2.04124, -2.85774, -2.04124, 5.30723, -5.30723, 4.49073)
    assert sketch(np.arange(6.0)).marks == pytest.approx(marks, abs=1e-5)


def test_noise_is_white():
    values = noise(64, 1024).astype(np.float64)
    assert abs(values.mean()) < 0.01
    assert values.var() == pytest.approx(1.75**2 / 3, rel=0.01)
    spectrum = np.abs(np.fft.rfft(values.reshape(-1)))[1:] ** 2
    assert spectrum.max() < 25 * spectrum.mean()
    assert abs(np.corrcoef(values)[0, 1:]).max() < 0.15


def test_pictures_differ_in_every_channel_row_and_column():
    pixels = picture(16, 16).astype(int)
    for axis in range(3):
        assert (np.abs(np.diff(pixels, axis=axis)).mean() > 10).all()
    assert picture(32, 40)[:16, :16].tolist() == picture(16, 16).tolist()


@given(rows=st.integers(1, 400), avoid=st.none() | st.integers(0, 400))
def test_text_ids(rows, avoid):
    ids = text_ids(8, rows, avoid)
    assert len(ids) == 8 and all(0 <= number < rows for number in ids)
    assert avoid not in ids or rows == 1


class TestSketch:
    @given(st.integers(0, 2**32 - 1), st.sampled_from([10, 1000, 100_000]))
    def test_marks_are_as_far_apart_as_the_arrays(self, seed, count):
        """The distance is that of the arrays, within the spread of eight random projections."""
        generator = np.random.default_rng(seed)
        one = generator.standard_normal(count)
        other = one + 1e-3 * generator.standard_normal(count)
        apart = np.sqrt(np.mean((one - other) ** 2)) / np.sqrt(np.mean(one**2))
        assert 0.15 * apart < distance(sketch(one), sketch(other)) < 6 * apart

    def test_order_matters(self):
        values = np.random.default_rng(1).standard_normal((4, 50))
        same = (sketch(values).rms, sketch(values).mean)
        swapped = sketch(values[::-1].copy())
        assert (swapped.rms, swapped.mean) == pytest.approx(same)
        assert distance(sketch(values), swapped) > 0.3

    def test_a_shift_and_a_scale_show(self):
        values = np.random.default_rng(2).standard_normal(10_000)
        assert distance(sketch(values), sketch(values + 0.01)) > 0.009
        assert distance(sketch(values), sketch(values * 1.01)) > 0.009

    def test_shape_and_numbers_that_are_none(self):
        values = np.ones((2, 3))
        assert distance(sketch(values), sketch(values.reshape(3, 2))) == np.inf
        broken = np.array([[1, np.nan, 1], [1, 1, np.inf]])
        assert not sketch(broken).finite
        assert distance(sketch(broken), sketch(values)) == np.inf
        assert distance(sketch(broken), sketch(broken)) == 0
        assert distance(sketch(0 * values), sketch(0 * values)) == 0

    def test_nothing_of_a_float32_is_lost(self):
        value = np.float32(1.2345678)
        assert np.float32(sketch(np.array([value], np.float64)).mean) == value
