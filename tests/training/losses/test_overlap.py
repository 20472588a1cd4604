"""The overlap losses against formulas with loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.training.losses.test_pairs import image_of, rays_of
from tests.training.losses.test_vicreg import slow_covariance, slow_variance

from panovlm.config.schema import ImageProcessing, ModelSettings
from panovlm.training.losses import OverlapTokens, overlap_loss, overlap_statistics
from panovlm.training.losses.contrast import barlow_twins, dense_cl, info_nce
from panovlm.training.losses.pairs import direction_pairs
from panovlm.training.losses.statistics import effective_rank

LOSSES = ["vicreg", "barlow_twins", "info_nce", "dense_cl"]


class Directions:
    """Directions that are known already."""

    def __init__(self, image: ImageProcessing) -> None:
        self.rays = rays_of(image)

    def of(self, count: int, grid: object) -> object:
        assert count == self.rays.grid.count
        return self.rays


def batch(name: str, leading: bool = False, scale: float = 1.0) -> OverlapTokens:
    directions = Directions(image_of(name))
    views = len(directions.rays.sphere.views) + leading
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(3 * views, 64, 5, generator=generator, dtype=torch.float64) * scale
    return OverlapTokens(features, views, False, leading, None, directions)


def models(**changes: object) -> ModelSettings:
    return ModelSettings(overlap_ratio=0.5, **changes)


def random_sides(pairs: int = 3, samples: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = np.random.default_rng(7)
    return [
        tuple(torch.from_numpy(rng.normal(size=(samples, 4 + pair, 6))) for _ in range(2))
        for pair in range(pairs)
    ]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("mode", ["pairwise", "batchwise"])
def test_vicreg_between_true_directions(mode):
    tokens = batch("icosahedral", scale=0.7)
    found = overlap_loss(tokens, models(overlap_pairs="directions", vicreg_mode=mode))
    features = tokens.features.numpy().reshape(3, 12, 64, 5)
    inv, var, cov, everything = [], [], [], []
    for pair in direction_pairs(tokens.directions.rays):
        for sample in features:
            a, b = sample[pair.first][pair.in_first], sample[pair.second][pair.in_second]
            inv.append(((a - b) ** 2).mean())
            everything += [a, b]
            var.append((slow_variance(a, 1.0) + slow_variance(b, 1.0)) / 2)
            cov.append((slow_covariance(a) + slow_covariance(b)) / 2)
    if mode == "batchwise":
        whole = np.concatenate(everything)
        var, cov = [slow_variance(whole, 1.0)], [slow_covariance(whole)]
    expected = [np.mean(part) for part in (inv, var, cov)]
    ours = [found[part].item() for part in ("invariance", "variance", "covariance")]
    assert ours == pytest.approx(expected, rel=1e-3)
    total = 25 * expected[0] + 25 * expected[1] + expected[2]
    assert found["total"].item() == pytest.approx(total, rel=1e-3)


def test_barlow_twins():
    sides = random_sides()
    a, b = (np.concatenate([s[k].reshape(-1, 6).numpy() for s in sides]) for k in (0, 1))
    width, count = 6, len(a)
    on = off = 0.0
    for i in range(width):
        for j in range(width):
            x, y = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
            deviation = math.sqrt((x**2).mean() + 1e-5) * math.sqrt((y**2).mean() + 1e-5)
            entry = sum(x * y) / count / deviation
            if i == j:
                on += (1 - entry) ** 2
            else:
                off += entry**2
    found = barlow_twins(sides, 0.01)
    assert found["on_diagonal"].item() == pytest.approx(on)
    assert found["off_diagonal"].item() == pytest.approx(off)
    assert found["total"].item() == pytest.approx(on + 0.01 * off)


def test_info_nce():
    sides = random_sides()
    losses = []
    for pair in sides:
        per_pair = []
        for a, b in ((pair[0].numpy(), pair[1].numpy()), (pair[1].numpy(), pair[0].numpy())):
            for one, other in zip(a, b, strict=True):
                for i, token in enumerate(one):
                    scores = [math.exp(cosine(token, rival) / 0.3) for rival in other]
                    per_pair.append(-math.log(scores[i] / sum(scores)))
        losses.append(np.mean(per_pair))
    assert info_nce(sides, 0.3)["total"].item() == pytest.approx(np.mean(losses))


def test_dense_cl():
    sides = random_sides()
    whole, dense = [], []
    for pair in sides:
        for a, b in ((pair[0].numpy(), pair[1].numpy()), (pair[1].numpy(), pair[0].numpy())):
            means = b.mean(axis=1)
            whole_way, dense_way = [], []
            for n in range(len(a)):
                scores = [math.exp(cosine(a[n].mean(axis=0), mean) / 0.3) for mean in means]
                whole_way.append(-math.log(scores[n] / sum(scores)))
                for i, token in enumerate(a[n]):
                    right = math.exp(cosine(token, b[n, i]) / 0.3)
                    wrong = [
                        math.exp(cosine(token, mean) / 0.3)
                        for m, mean in enumerate(means)
                        if m != n
                    ]
                    dense_way.append(-math.log(right / (right + sum(wrong))))
            whole.append(np.mean(whole_way))
            dense.append(np.mean(dense_way))
    found = dense_cl(sides, 0.3, 0.25)
    assert found["whole"].item() == pytest.approx(np.mean(whole))
    assert found["dense"].item() == pytest.approx(np.mean(dense))
    expected = 0.75 * np.mean(whole) + 0.25 * np.mean(dense)
    assert found["total"].item() == pytest.approx(expected)


def test_one_panorama_alone_gives_dense_cl_nothing():
    sides = [tuple(side.requires_grad_() for side in pair) for pair in random_sides(samples=1)]
    total = dense_cl(sides, 0.3, 0.5)["total"]
    total.backward()
    assert total.item() == pytest.approx(0)
    assert torch.isfinite(sides[0][0].grad).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("pairs", ["columns", "directions"])
@pytest.mark.parametrize("leading", [False, True])
def test_every_loss_with_every_pairing_has_gradients(loss, pairs, leading):
    tokens = batch("anyres_e2p", leading)
    tokens.features.requires_grad_()
    chosen = models(overlap_loss=loss, overlap_pairs=pairs, vicreg_loss_weight=0.5)
    total = overlap_loss(tokens, chosen)["total"]
    assert total.item() > 0
    total.backward()
    gradient = tokens.features.grad.unflatten(0, (3, -1))
    assert (gradient[:, leading:].abs().amax(dim=(2, 3)) > 0).all()
    assert (gradient[:, :leading] == 0).all()
    whole = overlap_loss(tokens, models(overlap_loss=loss, overlap_pairs=pairs))["total"]
    assert total.item() == pytest.approx(0.5 * whole.item())


@pytest.mark.parametrize("loss", LOSSES)
def test_tokens_that_follow_their_direction_lose_less(loss):
    """A token that is a function of where it looks agrees with its partner, others do not."""
    tokens = batch("icosahedral")
    rays = tokens.directions.rays.patches
    chosen = models(overlap_loss=loss, overlap_pairs="directions")
    mix = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    aligned = torch.cat([torch.from_numpy(rays) @ sample for sample in mix])
    aligned = aligned + 0.3 * mix[:, :1].repeat_interleave(12, 0)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    good, bad = (
        overlap_loss(OverlapTokens(f, 12, False, False, None, tokens.directions), chosen)["total"]
        for f in (aligned, torch.cat((aligned[::2][:, order], aligned[1::2])))
    )
    assert good < bad


class TestStatistics:
    def test_collapse_is_seen(self):
        same = [(torch.ones(2, 6, 4), torch.ones(2, 6, 4))]
        found = overlap_statistics(same)
        assert found["std"] == 0
        assert found["effective_rank"] == 1
        line = torch.arange(24.0).view(2, 12, 1) * torch.tensor([1.0, -2.0, 0.5])
        assert overlap_statistics([(line, line)])["effective_rank"] == pytest.approx(1, abs=1e-3)

    def test_effective_rank_is_that_of_the_singular_values(self):
        tokens = np.random.default_rng(2).normal(size=(40, 6)) * [5, 3, 1, 1, 0.1, 0.1]
        values = np.sqrt(np.linalg.eigvalsh(np.cov(tokens.T, bias=True) * 40))
        share = values / values.sum()
        expected = math.exp(-sum(p * math.log(p) for p in share))
        assert effective_rank(torch.from_numpy(tokens)).item() == pytest.approx(expected, rel=1e-4)

    def test_partners(self):
        a = torch.eye(4)[None]
        b = torch.eye(4)[[0, 1, 3, 2]][None]
        found = overlap_statistics([(a, b)])
        assert found["cosine"] == pytest.approx(0.5)
        assert found["retrieval"] == pytest.approx(0.5)
        assert overlap_statistics([(a, 3 * a)])["cosine"] == pytest.approx(1)
        assert overlap_statistics([(a, a)])["std"] == pytest.approx(math.sqrt(3) / 4)

    def test_in_mixed_precision(self) -> None:
        """Of partners that differ in the third digit, bfloat16 would find about every other one."""
        generator = torch.Generator().manual_seed(0)
        centre = torch.randn(64, generator=generator)
        a = centre + 0.05 * torch.randn(2, 100, 64, generator=generator)
        b = a + 0.01 * torch.randn(2, 100, 64, generator=generator)
        exact = overlap_statistics([(a, b)])
        with torch.autocast("cpu", torch.bfloat16):
            assert overlap_statistics([(a, b)]) == exact
        assert exact["retrieval"] == 1
