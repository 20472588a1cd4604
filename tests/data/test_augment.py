"""The jitter against Pillow's enhancement filters, an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from panovlm.data.augment import STRENGTH, Tint, jitter


def views(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, 8, 10, 3), dtype=np.uint8)


def drawn(seed: int) -> Tint:
    return Tint.drawn(np.random.default_rng(seed))


def test_factors_are_drawn_evenly_about_one() -> None:
    factors = np.array([drawn(seed) for seed in range(400)])
    assert np.abs(factors - 1).max() <= STRENGTH
    assert np.allclose(factors.mean(0), 1, atol=0.05)
    assert np.allclose(factors.std(0), 2 * STRENGTH / 12**0.5, rtol=0.1)


@pytest.mark.parametrize(
    "factors", [(1, 1, 1), (0.8, 1, 1), (1, 0.8, 1), (1, 1, 0.8), (0.9, 0.85, 0.95)]
)
def test_like_pillow(factors: tuple[float, float, float]) -> None:
    """Factors below 1 never clip in between, so one matrix gives what three filters give."""
    expected = Image.fromarray(views().reshape(24, 10, 3))
    for filter_, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
    ):
        expected = filter_(expected).enhance(factor)
    actual = jitter(views(), Tint(*factors)).reshape(24, 10, 3)
    assert np.abs(actual.astype(int) - np.asarray(expected).astype(int)).max() <= 2


def test_all_views_change_alike_and_the_input_stays() -> None:
    same = np.repeat(views()[:1], 3, axis=0)
    before = same.copy()
    changed = jitter(same, drawn(3))
    assert (changed == changed[0]).all()
    assert not np.array_equal(changed, same)
    assert np.array_equal(same, before)


def test_grey_stays_grey_and_the_range_is_kept() -> None:
    grey = np.repeat(views()[..., :1], 3, axis=-1)
    for seed in range(20):
        changed = jitter(grey, drawn(seed))
        assert changed.dtype == np.uint8
        assert np.ptp(changed.astype(int), axis=-1).max() <= 1
        assert changed[grey > 245].min() > 120  # no wrap-around of bright pixels
