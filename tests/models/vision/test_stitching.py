"""Stitching against column arithmetic written out with loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from panovlm.config.schema import ModelSettings
from panovlm.models.vision.stitching import _resampling, overlap_columns, stitch, strip_columns


def half_even(value: float) -> int:
    low = int(np.floor(value))
    rest = value - low
    if rest == 0.5:
        return low if low % 2 == 0 else low + 1
    return low if rest < 0.5 else low + 1


def shared_columns(cols: int, overlap: float) -> int:
    return min(max(half_even(cols * overlap), 0), cols)


def slow_drop(grid: np.ndarray, k: int) -> np.ndarray:
    batch, views, rows, cols, _ = grid.shape
    out = []
    for b in range(batch):
        strip = []
        for y in range(rows):
            for v in range(views):
                for x in range(cols):
                    if v == 0 or x >= k:
                        strip.append(grid[b, v, y, x])
        out.append(strip)
    return np.array(out)


def taps(x: float, cols: int, mode: str) -> dict[int, float]:
    """Columns and weights that a sample at x reads; columns outside hold nothing."""
    if mode == "nearest":
        found = {half_even(x): 1.0}
    else:
        low = int(np.floor(x))
        found = {low: 1 - (x - low), low + 1: x - low}
    return {column: w for column, w in found.items() if 0 <= column < cols}


def slow_resample(grid, k, span, target, mode):
    batch, views, rows, cols, width = grid.shape
    step = cols if k == 0 or cols - k == 0 else cols - k
    places = np.linspace(0, span - 1, target)
    out = np.zeros((batch, rows, target, width))
    for b in range(batch):
        for y in range(rows):
            for t in range(target):
                total, weights = np.zeros(width), 0.0
                for v in range(views):
                    read = taps(places[t] - v * step, cols, mode)
                    sample = sum((w * grid[b, v, y, c] for c, w in read.items()), np.zeros(width))
                    weight = sum(read.values())
                    total += sample * weight
                    weights += weight
                out[b, y, t] = total / max(weights, 1e-6)
    return out.reshape(batch, rows * target, width)


def pictures(views: int, rows: int, cols: int, batch: int = 2, width: int = 3) -> np.ndarray:
    return np.random.default_rng(views * 100 + rows * 10 + cols).normal(
        size=(batch, views, rows, cols, width)
    )


@pytest.mark.parametrize(
    ("cols", "overlap", "expected"),
    [(7, 0.5, 4), (5, 0.5, 2), (3, 0.5, 2), (1, 0.5, 0), (4, 0.25, 1), (4, 0.99, 4), (10, 0, 0)],
)
def test_overlap_columns_round_half_to_even(cols, overlap, expected):
    assert overlap_columns(cols, overlap) == expected


@settings(max_examples=60, deadline=None)
@given(
    views=st.integers(1, 5),
    rows=st.integers(1, 3),
    cols=st.integers(1, 7),
    overlap=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.99]),
    mode=st.sampled_from(["drop_overlap", "stride_views", "concat"]),
)
def test_kept_columns(views, rows, cols, overlap, mode):
    grid = pictures(views, rows, cols)
    models = ModelSettings(stitching_mode=mode, overlap_ratio=overlap)
    ours = stitch(torch.from_numpy(grid), models).numpy()
    k = 0 if mode == "concat" else shared_columns(cols, overlap)
    np.testing.assert_array_equal(ours, slow_drop(grid, k))
    assert ours.shape[1] == rows * strip_columns(views, cols, models)


@settings(max_examples=150, deadline=None)
@given(
    views=st.integers(1, 5),
    rows=st.integers(1, 3),
    cols=st.integers(1, 9),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.99]),
    target_cols=st.sampled_from([0, 1, 5, 17]),
    to_view_width=st.booleans(),
    interp=st.sampled_from(["nearest", "linear"]),
)
def test_resampled_columns(views, rows, cols, overlap, target_cols, to_view_width, interp):
    grid = pictures(views, rows, cols)
    models = ModelSettings(
        stitching_mode="resample",
        overlap_ratio=overlap,
        stitch_target_cols=target_cols,
        stitch_target_to_view_width=to_view_width,
        stitch_interp=interp,
    )
    k = shared_columns(cols, overlap)
    span = target_cols or views * cols - (views - 1) * k
    target = cols if to_view_width else span
    places = np.linspace(0, span - 1, target)
    # Between two equally near columns the choice is a matter of rounding; see the test below.
    assume(interp == "linear" or not np.any(np.abs(places % 1 - 0.5) < 1e-9))
    ours = stitch(torch.from_numpy(grid), models).numpy()
    expected = slow_resample(grid, k, span, target, interp)
    assert ours.shape == expected.shape
    assert ours.shape[1] == rows * strip_columns(views, cols, models)
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-5)


def sampled_in_torch(grid: torch.Tensor, k: int, span: int, target: int, mode: str):
    """The same resampling by grid_sample on the tokens themselves, as pictures."""
    batch, views, rows, cols, _ = grid.shape
    step = cols - k if 0 < k < cols else cols
    place = torch.linspace(0, span - 1, target)
    total, weights = 0.0, 0.0
    for v in range(views):
        x = 2 * (place - v * step) / (cols - 1) - 1
        y = torch.linspace(-1, 1, rows)
        at = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).expand(batch, -1, -1, -1)
        picture = grid[:, v].permute(0, 3, 1, 2)
        options = {"mode": mode, "padding_mode": "zeros", "align_corners": True}
        sample = torch.nn.functional.grid_sample(picture, at, **options)
        weight = torch.nn.functional.grid_sample(torch.ones_like(picture[:, :1]), at, **options)
        total, weights = total + sample * weight, weights + weight
    return (total / weights.clamp(min=1e-6)).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("cols", [5, 7, 9, 11, 13])
@pytest.mark.parametrize("views", [3, 4])
def test_ties_are_decided_as_by_grid_sample(views, cols, mode):
    grid = torch.from_numpy(pictures(views, 3, cols)).float()
    models = ModelSettings(
        stitching_mode="resample",
        stitch_target_to_view_width=True,
        stitch_interp="nearest" if mode == "nearest" else "linear",
    )
    k = overlap_columns(cols, 0.5)
    expected = sampled_in_torch(grid, k, views * cols - (views - 1) * k, cols, mode)
    torch.testing.assert_close(stitch(grid, models), expected, rtol=1e-4, atol=1e-5)


def test_resampling_averages_the_overlap():
    grid = torch.zeros(1, 2, 1, 4, 1)
    grid[0, 0] = 1.0
    grid[0, 1] = 3.0
    models = ModelSettings(stitching_mode="resample", overlap_ratio=0.5)
    assert stitch(grid, models).flatten().tolist() == [1, 1, 2, 2, 3, 3]


def test_resampling_trains_after_inference_mode():
    models = ModelSettings(stitching_mode="resample", overlap_ratio=0.3, stitch_target_cols=11)
    with torch.inference_mode():
        stitch(torch.ones(1, 3, 2, 5, 4), models)
    tokens = torch.ones(1, 3, 2, 5, 4, requires_grad=True)
    stitch(tokens, models).square().sum().backward()
    assert tokens.grad is not None
    assert torch.isfinite(tokens.grad).all()


def test_torchs_default_type_has_no_say():
    """Lightning sets it to bfloat16 while it trains in bf16-true."""
    setting = (3, 8, 3, 18, 11, "bilinear")
    expected = _resampling.__wrapped__(*setting)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = _resampling.__wrapped__(*setting)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
