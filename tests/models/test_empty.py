"""Models without weights are those with weights in everything but the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, Qwen3Config
from transformers import SiglipVisionConfig as Siglip

from panovlm.models.empty import without_weights
from panovlm.models.mamba.block import MambaMixer

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LANGUAGE = {**SMALL, "num_key_value_heads": 1, "vocab_size": 30}
SCALED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
SCALED |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
BUILDS = {
    "siglip": lambda: AutoModel.from_config(
        Siglip(**SMALL, image_size=16, patch_size=8, vision_use_head=False)
    ),
    "qwen3": lambda: AutoModelForCausalLM.from_config(
        Qwen3Config(**LANGUAGE, tie_word_embeddings=True)
    ),
    "scaled rope": lambda: AutoModelForCausalLM.from_config(
        LlamaConfig(**LANGUAGE, rope_parameters=SCALED)
    ),
    "mamba": lambda: MambaMixer(8, expand=2, d_state=4, d_conv=4),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_only_parameters_are_empty(build) -> None:
    real = build().eval()
    with without_weights():
        empty = build().eval()
    kinds = [
        {
            n: (p.shape, p.dtype, p.requires_grad)
            for n, p in m.named_parameters(remove_duplicate=False)
        }
        for m in (real, empty)
    ]
    assert kinds[0] == kinds[1]
    assert all(parameter.is_meta for parameter in empty.parameters())
    # What no checkpoint holds must be there, with its values.
    buffers = dict(empty.named_buffers())
    assert buffers.keys() == dict(real.named_buffers()).keys()
    for name, buffer in real.named_buffers():
        assert torch.equal(buffers[name], buffer), name


def test_initialisers_still_fill_buffers_and_what_is_real() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", nn.init.ones_(torch.empty(3)))
            self.weight = nn.Parameter(torch.empty(3))
            nn.init.normal_(self.weight)

    with without_weights():
        module = Scaled()
    assert module.scale.tolist() == [1, 1, 1] and module.weight.is_meta


def test_nothing_random_is_drawn() -> None:
    before = torch.get_rng_state()
    with without_weights():
        for build in BUILDS.values():
            build()
    assert torch.equal(torch.get_rng_state(), before)


def test_outside_all_is_as_it_was() -> None:
    register, normal = nn.Module.register_parameter, nn.init.normal_
    with pytest.raises(ZeroDivisionError), without_weights():
        raise ZeroDivisionError
    assert nn.Module.register_parameter is register and nn.init.normal_ is normal
    assert nn.Linear(2, 2).weight.abs().sum() > 0
