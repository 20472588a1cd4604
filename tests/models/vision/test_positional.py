"""Panoramic positions against the formula written out with loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.models.vision.grid import token_grid
from panovlm.models.vision.positional import cached_positions, panorama_positions


def slow_grid(count: int) -> tuple[int, int]:
    root = round(math.sqrt(count))
    if root * root == count:
        return root, root
    best = 1
    for divisor in range(1, count + 1):
        if count % divisor == 0 and divisor * divisor <= count:
            best = divisor
    return best, count // best


def slow_code(p: float, width: int, temperature: float) -> list[float]:
    half = width // 2
    w = [temperature ** (-2 * i / width) for i in range(half)]
    code = [math.sin(p * x) for x in w] + [math.cos(p * x) for x in w]
    return code + [0.0] * (width - 2 * half)


def slow_positions(views, rows, cols, width, overlap, temperature, continuity, spatial):
    o = min(max(overlap, 0.0), 0.999)
    s, length = (1 - o, views - (views - 1) * o) if continuity else (1.0, views)
    out = np.zeros((views, rows * cols, width))
    for v in range(views):
        for y in range(rows):
            for x in range(cols):
                g = v * s + x / cols
                code = np.array(slow_code(2 * math.pi * g / length, width, temperature))
                if spatial == "sinusoidal":
                    code += slow_code(y, width, temperature)
                    code += slow_code(g, width, temperature)
                out[v, y * cols + x] = code
    return out


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12, 20, 49, 50, 64, 196, 197, 256, 257, 261])
def test_grid_is_square_or_most_nearly_so(count):
    assert token_grid(count) == slow_grid(count)


def test_grid_examples():
    assert token_grid(20) == (4, 5)
    assert token_grid(50) == (5, 10)
    assert token_grid(13) == (1, 13)


@settings(max_examples=60, deadline=None)
@given(
    views=st.integers(1, 9),
    rows=st.integers(1, 5),
    cols=st.integers(1, 5),
    width=st.integers(1, 11),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.9995]),
    temperature=st.sampled_from([10000.0, 50.0]),
    continuity=st.booleans(),
    spatial=st.sampled_from(["sinusoidal", "none"]),
)
def test_positions_follow_the_formula(
    views, rows, cols, width, overlap, temperature, continuity, spatial
):
    ours = panorama_positions(
        num_views=views,
        grid=(rows, cols),
        width=width,
        overlap=overlap,
        temperature=temperature,
        continuity=continuity,
        spatial=spatial,
    )
    expected = slow_positions(views, rows, cols, width, overlap, temperature, continuity, spatial)
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)


def test_columns_that_show_one_direction_get_one_position():
    table = panorama_positions(
        num_views=8, grid=(1, 4), width=16, overlap=0.5, temperature=1e4, continuity=True,
        spatial="sinusoidal",
    )  # fmt: skip
    np.testing.assert_allclose(table[0, 2:], table[1, :2], atol=1e-12)
    assert np.abs(table[0] - table[1]).max() > 0.1


def test_cached_table_made_in_inference_mode_can_train():
    arguments = {
        "num_views": 3,
        "grid": (2, 3),
        "width": 6,
        "overlap": 0.3,
        "temperature": 77.0,
        "continuity": True,
        "spatial": "none",
        "device": torch.device("cpu"),
    }
    with torch.inference_mode():
        first = cached_positions(**arguments)
    assert cached_positions(**arguments) is first
    assert first.dtype is torch.float32
    weight = torch.ones(6, requires_grad=True)
    (first * weight).sum().backward()
    torch.testing.assert_close(weight.grad, first.sum((0, 1)))


def test_cached_table_ignores_a_meta_context():
    with torch.device("meta"):
        table = cached_positions(
            num_views=2, grid=(1, 2), width=4, overlap=0.1, temperature=99.0, continuity=True,
            spatial="none", device=torch.device("cpu"),
        )  # fmt: skip
    assert table.device.type == "cpu"
    assert torch.isfinite(table).all()
