"""The projector as a whole: positions, linear, stitching, and a global view kept apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.config.schema import ModelSettings
from panovlm.errors import ConfigError
from panovlm.models.vision.grid import token_grid
from panovlm.models.vision.positional import panorama_positions
from panovlm.models.vision.projector import PanoramaProjector

D, DM = 6, 5


def projector(leading_global: bool = False, **changes: object) -> PanoramaProjector:
    torch.manual_seed(1)
    models = ModelSettings(latent_dimension=D, **changes)
    return PanoramaProjector(models, language_dim=DM, leading_global=leading_global).eval()


def tokens(batch: int, views: int, count: int) -> torch.Tensor:
    return torch.randn(batch * views, count, D, generator=torch.Generator().manual_seed(2))


def positions(views: int, count: int) -> torch.Tensor:
    table = panorama_positions(
        num_views=views, grid=token_grid(count), width=D, overlap=0.5, temperature=1e4,
        continuity=True, spatial="sinusoidal",
    )  # fmt: skip
    return torch.from_numpy(table).float()


def test_state_dict_holds_one_linear():
    found = {name: tuple(v.shape) for name, v in projector().state_dict().items()}
    assert found == {"linear.weight": (DM, D), "linear.bias": (DM,)}


def test_plain_projection_keeps_row_major_order_across_views():
    model = projector(use_projection_positional_encoding=False, stitching_mode="concat")
    x = tokens(2, 3, 6)  # grids of 2 x 3
    out = model(x, 3)
    grid = model.linear(x).view(2, 3, 2, 3, DM)
    for b in range(2):
        for y in range(2):
            for v in range(3):
                for col in range(3):
                    torch.testing.assert_close(out[b, y * 9 + v * 3 + col], grid[b, v, y, col])


def test_positions_are_added_before_the_linear():
    x = tokens(2, 3, 4)
    plain = projector(use_projection_positional_encoding=False, stitching_mode="concat")
    ours = projector(stitching_mode="concat")(x, 3)
    expected = plain((x.view(2, 3, 4, D) + positions(3, 4)).view(6, 4, D), 3)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("mode", ["drop_overlap", "concat", "resample"])
def test_global_view_apart_is_unpositioned_and_first(mode):
    x = tokens(2, 4, 9)
    ours = projector(leading_global=True, stitching_mode=mode)(x, 4)
    views = x.view(2, 4, 9, D)
    tiles = projector(stitching_mode=mode)(views[:, 1:].reshape(6, 9, D), 3)
    torch.testing.assert_close(ours[:, :9], projector().linear(views[:, 0]))
    torch.testing.assert_close(ours[:, 9:], tiles)


def test_global_view_as_first_view_is_one_more_tile():
    x = tokens(1, 4, 9)
    as_tile = projector(leading_global=True, global_view="first_view")(x, 4)
    torch.testing.assert_close(as_tile, projector()(x, 4))


@pytest.mark.parametrize("leading_global", [True, False])
def test_one_view(leading_global):
    x = tokens(2, 1, 9)
    model = projector(leading_global=leading_global)
    out = model(x, 1)
    added = 0 if leading_global else positions(1, 9)
    torch.testing.assert_close(out, model.linear(x + added))
    assert out.shape[1] == model.num_tokens(1, 9) == 9


@settings(max_examples=60, deadline=None)
@given(
    views=st.integers(1, 5),
    count=st.sampled_from([1, 4, 6, 7, 9, 10, 16, 20]),
    leading_global=st.booleans(),
    changes=st.fixed_dictionaries(
        {
            "stitching_mode": st.sampled_from(
                ["drop_overlap", "stride_views", "concat", "resample"]
            ),
            "overlap_ratio": st.sampled_from([0.0, 0.3, 0.5, 0.9]),
            "global_view": st.sampled_from(["apart", "first_view"]),
            "stitch_target_cols": st.sampled_from([0, 3]),
            "stitch_target_to_view_width": st.booleans(),
        }
    ),
)
def test_number_of_tokens_is_known_beforehand(views, count, leading_global, changes):
    model = projector(leading_global=leading_global, **changes)
    out = model(tokens(2, views, count), views)
    assert out.shape == (2, model.num_tokens(views, count), DM)
    assert torch.isfinite(out).all()


def test_dropout_belongs_to_the_positions():
    x = tokens(1, 2, 4)
    on = projector(pe_dropout=0.9).train()
    assert not torch.equal(on(x, 2), on(x, 2))
    off = projector(pe_dropout=0.9, use_projection_positional_encoding=False).train()
    assert torch.equal(off(x, 2), off(x, 2))


def test_weights_in_bfloat16_stay_so():
    model = projector(leading_global=True, stitching_mode="resample").to(torch.bfloat16)
    assert model(tokens(1, 3, 4).bfloat16(), 3).dtype is torch.bfloat16


def test_views_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ConfigError, match=r"7 views.*3 views each"):
        projector()(torch.zeros(7, 4, D), 3)


@pytest.mark.parametrize("mode", ["drop_overlap", "concat", "resample"])
def test_the_grid_that_the_resampler_tells(mode):
    """Eight tokens in two rows, or in one: other positions, another strip."""
    model, x = projector(stitching_mode=mode), tokens(1, 3, 8)
    wide, square = model(x, 3, (1, 8)), model(x, 3)
    assert torch.equal(square, model(x, 3, (2, 4)))
    assert wide.shape[1] == model.num_tokens(3, 8, (1, 8)) == (24 if mode == "concat" else 16)
    table = panorama_positions(
        num_views=3, grid=(1, 8), width=D, overlap=0.5, temperature=1e4,
        continuity=True, spatial="sinusoidal",
    )  # fmt: skip
    placed = model.linear(x + torch.from_numpy(table).float())
    torch.testing.assert_close(wide[0, :4], placed[0, :4])  # what no other view shows
    with pytest.raises(ConfigError, match="but the resampler announced 3 × 3"):
        model(x, 3, (3, 3))
