"""The overlap loss against the formulas written out with loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.config.schema import ModelSettings
from panovlm.errors import ConfigError
from panovlm.training.losses import vicreg_overlap_loss
from panovlm.training.losses.vicreg import overlap_grid, patch_grid


def is_square(n: int) -> bool:
    return round(math.sqrt(n)) ** 2 == n


def slow_grid(count: int) -> tuple[int, int] | None:
    rows = cols = math.floor(math.sqrt(count))
    raise_rows = True
    while rows * cols < count:
        if raise_rows:
            rows += 1
        else:
            cols += 1
        raise_rows = not raise_rows
    return (rows, cols) if rows * cols == count else None


def slow_variance(x: np.ndarray, gamma: float) -> float:
    total = 0.0
    for c in range(x.shape[1]):
        mean = sum(x[:, c]) / len(x)
        variance = sum((value - mean) ** 2 for value in x[:, c]) / len(x)
        total += max(0.0, gamma - math.sqrt(variance + 1e-4))
    return total / x.shape[1]


def slow_covariance(x: np.ndarray) -> float:
    n, width = x.shape
    centred = x - x.mean(axis=0)
    total = 0.0
    for i in range(width):
        for j in range(width):
            if i != j:
                total += (sum(centred[:, i] * centred[:, j]) / (n - 1)) ** 2
    return total / width


def slow_loss(features: np.ndarray, views: int, overlap: float, mode: str, gamma: float = 1.0):
    """features [B, V, S', D], no class token."""
    batch, _, count, width = features.shape
    rows, cols = slow_grid(count)
    grid = features.reshape(batch, views, rows, cols, width)
    k = max(1, math.floor(cols * overlap))
    inv, var, cov, everything = [], [], [], []
    for b in range(batch):
        for v in range(views):
            a = grid[b, v, :, cols - k :].reshape(-1, width)
            c = grid[b, (v + 1) % views, :, :k].reshape(-1, width)
            inv.append(((a - c) ** 2).sum() / a.size)
            everything += [a, c]
            if mode == "pairwise":
                var.append((slow_variance(a, gamma) + slow_variance(c, gamma)) / 2)
                cov.append((slow_covariance(a) + slow_covariance(c)) / 2)
    if mode == "batchwise":
        whole = np.concatenate(everything)
        var, cov = [slow_variance(whole, gamma)], [slow_covariance(whole)]
    return np.mean(inv), np.mean(var), np.mean(cov)


def features(batch: int, views: int, count: int, width: int, scale: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(batch + 10 * views + 100 * count + width)
    return scale * rng.normal(size=(batch, views, count, width))


def run(
    x: np.ndarray | torch.Tensor,
    *,
    cls: bool = False,
    leading: bool = False,
    grid: tuple[int, int] | None = None,
    **changes: object,
):
    tensor = torch.as_tensor(x)
    return vicreg_overlap_loss(
        tensor.flatten(0, 1),
        num_views=tensor.shape[1],
        settings=ModelSettings(**changes),
        has_class_token=cls,
        leading_global=leading,
        grid=grid,
    )


def as_floats(terms) -> list[float]:
    return [t.item() for t in (terms.total, terms.invariance, terms.variance, terms.covariance)]


@pytest.mark.parametrize("count", range(1, 130))
def test_grid_rule(count):
    assert overlap_grid(count) == slow_grid(count)


@pytest.mark.parametrize("count", range(2, 130))
def test_class_token_rule(count):
    """The original rule without the tower's word; with it, wherever that gave a grid."""
    drop = not is_square(count) and is_square(count - 1)
    expected = slow_grid(count - 1 if drop else count)
    if expected is None:
        with pytest.raises(ConfigError, match=f"{count} tokens per view"):
            patch_grid(count, has_class_token=False)
    else:
        assert patch_grid(count, has_class_token=False) == (int(drop), *expected)
    told = slow_grid(count - 1)
    if told is not None:
        assert patch_grid(count, has_class_token=True) == (1, *told)


def test_queries_that_fill_a_grid_are_all_kept():
    assert patch_grid(64, has_class_token=True) == (0, 8, 8)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 2),
    views=st.integers(2, 4),
    count=st.sampled_from([4, 6, 9, 12]),
    width=st.sampled_from([2, 3, 9]),
    overlap=st.sampled_from([0.0, 0.34, 0.5, 0.99]),
    mode=st.sampled_from(["pairwise", "batchwise"]),
)
def test_terms_follow_the_formulas(batch, views, count, width, overlap, mode):
    x = features(batch, views, count, width)
    found = as_floats(run(x, overlap_ratio=overlap, vicreg_mode=mode))
    inv, var, cov = slow_loss(x, views, overlap, mode)
    expected = [25 * inv + 25 * var + cov, inv, var, cov]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_weights_and_gamma():
    x = features(2, 3, 9, 4)
    terms = run(
        x,
        vicreg_similarity_weight=2,
        vicreg_variance_weight=3,
        vicreg_covariance_weight=5,
        vicreg_gamma=1.7,
        vicreg_loss_weight=0.25,
    )
    inv, var, cov = slow_loss(x, 3, 0.5, "pairwise", gamma=1.7)
    assert terms.total.item() == pytest.approx(0.25 * (2 * inv + 3 * var + 5 * cov), rel=1e-5)


def test_class_token_is_left_out():
    x = features(1, 3, 9, 4)
    with_class = np.concatenate([np.full((1, 3, 1, 4), 99.0), x], axis=2)
    assert as_floats(run(with_class)) == as_floats(run(x))
    odd = features(1, 3, 12, 4)
    with_class = np.concatenate([np.full((1, 3, 1, 4), 99.0), odd], axis=2)
    assert as_floats(run(with_class, cls=True)) == as_floats(run(odd))


def test_global_view_apart_takes_no_part():
    x = features(2, 4, 9, 4)
    assert as_floats(run(x, leading=True)) == as_floats(run(x[:, 1:]))
    as_tile = run(x, leading=True, global_view="first_view")
    assert as_floats(as_tile) == as_floats(run(x))


def test_perfect_agreement_around_the_ring():
    """One picture of a circle, cut into overlapping views: nothing is left to agree on."""
    circle = np.random.default_rng(0).normal(size=(4, 8, 5))  # rows, columns of the circle, D
    views = [np.roll(circle, -2 * v, axis=1)[:, :4].reshape(16, 5) for v in range(4)]
    terms = run(np.stack(views)[None])
    assert terms.invariance.item() < 1e-12
    shuffled = run(np.stack([views[0], views[2], views[1], views[3]])[None])
    assert shuffled.invariance.item() > 0.1


@pytest.mark.parametrize(
    ("views", "changes"),
    [(1, {}), (2, {"leading": True}), (3, {"vicreg_loss_weight": 0.0})],
)
def test_nothing_to_compare_is_a_zero_that_trains(views, changes):
    x = torch.full((2, views, 9, 4), float("inf"), requires_grad=True)
    terms = run(x, **changes)
    assert as_floats(terms) == [0.0] * 4
    terms.total.backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_one_token_per_side_is_finite():
    x = torch.randn(2, 3, 1, 4, requires_grad=True)
    terms = run(x)
    terms.total.backward()
    assert terms.covariance.item() == 0.0
    assert all(map(math.isfinite, as_floats(terms)))
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_collapsed_features_have_finite_gradients():
    x = torch.zeros(1, 3, 9, 4, requires_grad=True)
    terms = run(x)
    assert terms.variance.item() == pytest.approx(1 - 0.01, rel=1e-5)
    terms.total.backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_the_loss_is_capped():
    assert run(features(1, 3, 9, 4, scale=1e4)).total.item() == 1e6


def test_gradients_agree_with_finite_differences():
    # The loss works in float32, so its slope is compared at that precision.
    x = torch.from_numpy(features(1, 3, 4, 3)).requires_grad_()
    run(x).total.backward()
    assert x.grad is not None
    direction = torch.from_numpy(features(1, 3, 4, 3)[:, ::-1].copy())
    step = 1e-3

    def exact(at: torch.Tensor) -> float:
        inv, var, cov = slow_loss(at.detach().numpy(), 3, 0.5, "pairwise")
        return 25 * inv + 25 * var + cov

    slope = (exact(x + step * direction) - exact(x - step * direction)) / (2 * step)
    assert float((x.grad * direction).sum()) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("width", [3, 40])
def test_autocast_does_not_lower_the_precision(width):
    x = torch.from_numpy(features(1, 3, 9, width)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(x)
    assert as_floats(inside) == as_floats(run(x))


def test_views_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ConfigError, match="7 views"):
        vicreg_overlap_loss(
            torch.zeros(7, 9, 4),
            num_views=3,
            settings=ModelSettings(),
            has_class_token=False,
            leading_global=False,
        )


def test_the_grid_that_the_resampler_tells():
    """Eight tokens in one row of eight columns, which by their number would be no grid."""
    x = features(2, 3, 8, 5)
    found = run(x, grid=(1, 8), overlap_ratio=0.25)
    right, left = x[:, :, 6:], np.roll(x, -1, axis=1)[:, :, :2]
    assert found.invariance.item() == pytest.approx(np.mean((right - left) ** 2), rel=1e-5)
    with pytest.raises(ConfigError, match="cannot lay 8 tokens"):
        run(x)
    nine = features(1, 2, 9, 5)
    rows = run(nine, grid=(9, 1), cls=True)  # no token is left out: the grid has none in front
    assert rows.invariance.item() == pytest.approx(
        np.mean((nine - np.roll(nine, -1, axis=1)) ** 2), rel=1e-5
    )
