"""The resamplers without weights against plain formulas, and the marks they leave in files."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panovlm.checkpoint.settle.infer import claimant
from panovlm.checkpoint.settle.shapes import Shapes
from panovlm.config.problems import ValidationError
from panovlm.errors import CheckpointError, ConfigError, ContradictionError
from panovlm.models.resamplers import recipe
from panovlm.models.vision.grid import ViewGrid

WIDTH = 3
NAMES = ("identity", "avg_pool", "spatial_pool", "masked_drop")


def build(name: str, **changes) -> torch.nn.Module:
    architecture = recipe(name)
    chosen = architecture.settings(**changes)
    return architecture.build(chosen, vision_dim=WIDTH, latent_dimension=WIDTH)


def tokens(view: ViewGrid, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(view.count)
    return torch.randn(count, view.count, WIDTH, dtype=torch.float64, generator=generator)


def by_part(x: Tensor, view: ViewGrid, rows: int, columns: int, reduce) -> Tensor:
    """One output token after the other, from the patches whose area touches its part."""
    out = []
    for i in range(rows):
        for j in range(columns):
            inside = [
                x[:, view.extra + r * view.columns + c]
                for r in range(view.rows)
                for c in range(view.columns)
                if r < (i + 1) * view.rows / rows
                and r + 1 > i * view.rows / rows
                and c < (j + 1) * view.columns / columns
                and c + 1 > j * view.columns / columns
            ]
            out.append(reduce(torch.stack(inside)))
    return torch.stack(out, 1)


views = st.builds(ViewGrid, st.integers(1, 7), st.integers(1, 7), st.integers(0, 2))


@settings(max_examples=40, deadline=None)
@given(views, st.data())
def test_spatial_pool_takes_mean_or_maximum_of_every_part(view, data) -> None:
    rows, columns = data.draw(st.integers(1, view.rows)), data.draw(st.integers(1, view.columns))
    x = tokens(view)
    mean = build("spatial_pool", rows=rows, columns=columns)(x, view)
    torch.testing.assert_close(mean, by_part(x, view, rows, columns, lambda s: s.mean(0)))
    largest = build("spatial_pool", rows=rows, columns=columns, mode="max")(x, view)
    assert torch.equal(largest, by_part(x, view, rows, columns, lambda s: s.amax(0)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2))
def test_avg_pool_takes_the_mean_of_every_window(rows, columns, window, extra) -> None:
    view = ViewGrid(rows * window, columns * window, extra)
    x = tokens(view)
    module, architecture = build("avg_pool", window=window), recipe("avg_pool")
    assert architecture.grid(architecture.settings(window=window), view) == (rows, columns)
    expected = by_part(x, view, rows, columns, lambda s: s.mean(0))
    torch.testing.assert_close(module(x, view), expected)


def test_windows_must_fill_the_view() -> None:
    architecture = recipe("avg_pool")
    for view in (ViewGrid(4, 6), ViewGrid(6, 4)):
        with pytest.raises(ConfigError, match="window is 3, which does not divide a view of"):
            architecture.grid(architecture.settings(window=3), view)


def test_the_identity_returns_what_it_gets() -> None:
    x = tokens(ViewGrid(2, 2))
    assert build("identity")(x) is x


class TestMaskedDrop:
    VIEW = ViewGrid(4, 5)

    def test_evaluation_drops_nothing(self) -> None:
        x = tokens(self.VIEW)
        assert torch.equal(build("masked_drop", rate=0.9).eval()(x), x)
        assert torch.equal(build("masked_drop", rate=0.0).train()(x), x)

    @settings(max_examples=20, deadline=None)
    @given(st.floats(0, 0.999))
    def test_training_blanks_so_many_tokens_of_every_view_where_they_stand(self, rate) -> None:
        x = tokens(self.VIEW, count=6)
        found = build("masked_drop", rate=rate).train()(x)
        blank = (found == 0).all(2)
        assert blank.sum(1).tolist() == [int(rate * 20)] * 6
        assert torch.equal(found[~blank], x[~blank])

    def test_the_seed_decides_and_every_view_and_step_differs(self) -> None:
        x, module = tokens(self.VIEW, count=4), build("masked_drop", rate=0.5).train()
        torch.manual_seed(5)
        first, second = module(x), module(x)
        torch.manual_seed(5)
        assert torch.equal(module(x), first) and not torch.equal(first, second)
        assert len({tuple(row) for row in (first == 0).all(2).tolist()}) == 4

    def test_every_token_is_blanked_as_often_as_any_other(self) -> None:
        torch.manual_seed(0)
        x = torch.ones(4000, 8, WIDTH)
        share = (build("masked_drop", rate=0.25).train()(x) == 0).all(2).float().mean(0)
        assert (share - 0.25).abs().max() < 0.05  # seven standard deviations

    def test_blank_tokens_pass_no_gradient(self) -> None:
        x = tokens(self.VIEW).requires_grad_()
        found = build("masked_drop", rate=0.5).train()(x)
        found.sum().backward()
        assert torch.equal(x.grad, (found != 0).double())

    def test_a_rate_of_one_is_refused(self) -> None:
        with pytest.raises(ValidationError):
            build("masked_drop", rate=1.0)


@pytest.mark.parametrize("name", ["avg_pool", "spatial_pool"])
def test_every_patch_gets_a_gradient(name) -> None:
    view = ViewGrid(8, 8, extra=1)
    x = tokens(view).requires_grad_()
    build(name)(x, view).sum().backward()
    assert not x.grad[:, 0].any() and (x.grad[:, 1:] > 0).all()


class TestMarks:
    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        return {key: tuple(t.shape) for key, t in build(name).state_dict().items()}

    @pytest.mark.parametrize("name", NAMES)
    def test_they_tell_the_architecture_and_nothing_else_claims_them(self, name) -> None:
        assert claimant(Shapes(self.shapes(name))).name == name
        module = build(name)
        assert not list(module.parameters())
        assert all(t.dtype == torch.uint8 for t in module.half().state_dict().values())

    def test_two_of_them_are_no_model(self) -> None:
        with pytest.raises(CheckpointError, match="fit several resamplers"):
            claimant(Shapes(self.shapes("identity") | self.shapes("masked_drop")))

    def test_none_of_them_is_no_identity(self) -> None:
        with pytest.raises(CheckpointError, match="the checkpoint has no resampler"):
            claimant(Shapes({}))

    @pytest.mark.parametrize("name", NAMES)
    def test_shells_are_named(self, name) -> None:
        with pytest.raises(ContradictionError, match="is empty"):
            recipe(name).infer(Shapes(self.shapes(name) | {name: (0,)}))
