"""The resampler of a model is the one that its settings name."""

from __future__ import annotations

import pytest
import torch

from panovlm.config.schema import ModelSettings
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipes
from panovlm.models.vision.resampler import ResamplerModule

SMALL = {
    "mlp": {"hidden_dim": 10},
    "bimamba": {"hidden_dim": 10, "d_state": 3, "depth": 2},
    "qformer": {"num_query_tokens": 4, "num_hidden_layers": 1},
}
CLASSES = {"mlp": "MLPResampler", "bimamba": "BiMambaResampler", "qformer": "QFormerResampler"}


@pytest.mark.parametrize("name", sorted(recipes()))
def test_builds_the_named_architecture_and_maps_tokens(name) -> None:
    settings = ModelSettings(resampler_type=name, resampler_config=SMALL[name], latent_dimension=6)
    module = ResamplerModule(settings, vision_dim=8)
    assert type(module.resampler).__name__ == CLASSES[name]
    assert all(key.startswith("resampler.") for key in module.state_dict())
    tokens = torch.randn(3, 7, 8)
    assert module(tokens).shape == (3, 4 if name == "qformer" else 7, 6)


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
