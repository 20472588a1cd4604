"""The resampler of a model is the one that its settings name."""

from __future__ import annotations

import pytest
import torch

from panovlm.config.schema import ModelSettings
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipes
from panovlm.models.vision.grid import ViewGrid
from panovlm.models.vision.resampler import ResamplerModule

SMALL = {
    "mlp": {"hidden_dim": 10},
    "bimamba": {"hidden_dim": 10, "d_state": 3, "depth": 2},
    "qformer": {"num_query_tokens": 4, "num_hidden_layers": 1},
    "perceiver": {"num_latents": 4, "hidden_dim": 8, "num_attention_heads": 2},
    "conv": {"hidden_dim": 10, "stride": 2},
    "c_abstractor": {"hidden_dim": 10, "rows": 2, "columns": 3},
    "identity": {},
    "avg_pool": {"window": 2},
    "spatial_pool": {"rows": 2, "columns": 3},
    "masked_drop": {},
}
CLASSES = {
    "mlp": "MLPResampler",
    "bimamba": "BiMambaResampler",
    "qformer": "QFormerResampler",
    "perceiver": "PerceiverResampler",
    "conv": "ConvResampler",
    "c_abstractor": "CAbstractorResampler",
    "identity": "IdentityResampler",
    "avg_pool": "AvgPoolResampler",
    "spatial_pool": "SpatialPoolResampler",
    "masked_drop": "MaskedDropResampler",
}
VIEW = ViewGrid(4, 6, extra=1)
GRIDS = {"conv": (2, 3), "c_abstractor": (2, 3), "avg_pool": (2, 3), "spatial_pool": (2, 3)}
COUNTS = {"qformer": 4, "perceiver": 4} | dict.fromkeys(GRIDS, 6)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_builds_the_named_architecture_and_maps_tokens(name) -> None:
    settings = ModelSettings(resampler_type=name, resampler_config=SMALL[name], latent_dimension=8)
    module = ResamplerModule(settings, vision_dim=8)
    assert type(module.resampler).__name__ == CLASSES[name]
    assert all(key.startswith("resampler.") for key in module.state_dict())
    tokens = torch.randn(3, VIEW.count, 8)
    assert module(tokens, VIEW, num_views=3).shape == (3, COUNTS.get(name, VIEW.count), 8)
    assert module.grid(VIEW) == GRIDS.get(name)
    assert module.reads_grid == (name in GRIDS)
    if name in GRIDS:
        with pytest.raises(ConfigError, match="must know where a view's tokens lie"):
            module(tokens)
        with pytest.raises(ConfigError, match="4 × 6 patches and 0 further tokens"):
            module(tokens, ViewGrid(4, 6))


@pytest.mark.parametrize("name", ["identity", "avg_pool", "spatial_pool", "masked_drop"])
def test_without_weights_the_width_stays(name) -> None:
    settings = ModelSettings(resampler_type=name, resampler_config=SMALL[name], latent_dimension=6)
    with pytest.raises(ConfigError, match=r"set models\.latent_dimension: 8\."):
        ResamplerModule(settings, vision_dim=8)


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_views_that_do_not_fit_are_refused(name) -> None:
    settings = ModelSettings(resampler_type=name, resampler_config=SMALL[name], latent_dimension=8)
    module = ResamplerModule(settings, vision_dim=8)
    with pytest.raises(ConfigError, match=r"models\.resampler_config"):
        module.grid(ViewGrid(1, 7))
    with pytest.raises(ConfigError, match=r"models\.resampler_config"):
        module(torch.randn(1, 7, 8), ViewGrid(1, 7))


class TestLoopOfViews:
    """With cross_view the tiles of a sample see each other round the closed loop."""

    def module(self, **changes) -> ResamplerModule:
        torch.manual_seed(0)
        config = {**SMALL["bimamba"], "cross_view": True, **changes}
        settings = ModelSettings(
            resampler_type="bimamba", resampler_config=config, latent_dimension=6
        )
        return ResamplerModule(settings, vision_dim=8).double().eval()

    def test_turning_the_panorama_permutes_views_and_nothing_else(self) -> None:
        module, tokens = self.module(), torch.randn(2, 5, 7, 8, dtype=torch.double)
        found = module(tokens.flatten(0, 1), num_views=5).unflatten(0, (2, 5))
        for step in range(1, 5):
            turned = module(tokens.roll(step, 1).flatten(0, 1), num_views=5)
            torch.testing.assert_close(turned.unflatten(0, (2, 5)), found.roll(step, 1))

    def test_every_view_sees_every_other_one_of_its_sample(self) -> None:
        module, tokens = self.module(depth=1), torch.randn(10, 7, 8, dtype=torch.double)
        tokens.requires_grad_()
        for view in range(5):
            (grad,) = torch.autograd.grad(module(tokens, num_views=5)[view].sum(), tokens)
            assert (grad[:5].abs().amax((1, 2)) > 0).all() and not grad[5:].any()

    def test_a_global_view_is_no_part_of_the_loop(self) -> None:
        module, tokens = self.module(), torch.randn(2, 4, 7, 8, dtype=torch.double)
        found = module(tokens.flatten(0, 1), num_views=4, apart=1).unflatten(0, (2, 4))
        tiles = module(tokens[:, 1:].flatten(0, 1), num_views=3).unflatten(0, (2, 3))
        torch.testing.assert_close(found[:, 1:], tiles)
        torch.testing.assert_close(found[:, 0], module(tokens[:, 0]))
        only = module(tokens[:, 0], num_views=1, apart=1)
        torch.testing.assert_close(only, found[:, 0])

    def test_views_that_are_no_samples(self) -> None:
        with pytest.raises(ConfigError, match="of 4 views, which are no samples of 3 views"):
            self.module()(torch.randn(4, 7, 8, dtype=torch.double), num_views=3)

    def test_switched_off_views_do_not_see_each_other(self) -> None:
        module, tokens = self.module(cross_view=False), torch.randn(6, 7, 8, dtype=torch.double)
        alone = torch.cat([module(view[None]) for view in tokens])
        torch.testing.assert_close(module(tokens, num_views=6), alone)


@pytest.mark.parametrize("spelling", ["bidirectional_mamba", "bi_mamba", "BiMamba"])
def test_every_spelling_of_a_name_builds_the_same(spelling) -> None:
    settings = ModelSettings(resampler_type=spelling, resampler_config=SMALL["bimamba"])
    with torch.device("meta"):
        module = ResamplerModule(settings, vision_dim=8)
    assert type(module.resampler).__name__ == "BiMambaResampler"


def test_widths_that_an_architecture_cannot_have_are_refused() -> None:
    settings = ModelSettings(resampler_type="qformer", resampler_config=SMALL["qformer"])
    with pytest.raises(ConfigError, match="num_attention_heads"):
        ResamplerModule(settings, vision_dim=12)
