"""The Perceiver resampler against Idefics2's, with copied weights."""

from __future__ import annotations

import pytest
import torch
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipe
from panovlm.models.resamplers.perceiver.recipe import PerceiverSettings

VISION, WIDTH, LATENT = 10, 24, 5


def build(**changes) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"num_latents": 6, "hidden_dim": WIDTH, "depth": 2, "num_attention_heads": 4}
    settings = PerceiverSettings(**{**sizes, **changes})
    module = recipe("perceiver").build(settings, vision_dim=VISION, latent_dimension=LATENT)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double().eval()


def reference(module: torch.nn.Module, heads: int) -> torch.nn.Module:
    """Transformers' resampler with the weights of ours, but the two outer Linears."""
    config = Idefics2PerceiverConfig(
        hidden_size=WIDTH,
        resampler_n_latents=6,
        resampler_depth=2,
        resampler_n_heads=heads,
        resampler_head_dim=WIDTH // heads,
        num_key_value_heads=heads,
        rms_norm_eps=1e-6,
        attn_implementation="eager",
    )
    theirs = {
        "latents_norm": "input_latents_norm",
        "context_norm": "input_context_norm",
        "attention": "self_attn",
        "mlp_norm": "post_attention_layernorm",
        "mlp": "mlp",
    }
    state = {"latents": module.latents, "norm.weight": module.final_norm.weight}
    for name, tensor in module.layers.state_dict().items():
        layer, part, rest = name.split(".", 2)
        state[f"layers.{layer}.{theirs[part]}.{rest}"] = tensor
    made = Idefics2PerceiverResampler(config)
    made.load_state_dict(state)
    return made.double().eval()


@pytest.mark.parametrize("heads", [1, 4, 8])
@pytest.mark.parametrize("length", [1, 9])
def test_equals_idefics2(heads, length) -> None:
    module = build(num_attention_heads=heads)
    tokens = torch.randn(3, length, VISION, dtype=torch.float64)
    mask = torch.ones(3, length, dtype=torch.long)
    inner = reference(module, heads)(module.input_proj(tokens), mask)
    # Its RMSNorm goes through float32, whatever it is given.
    torch.testing.assert_close(module(tokens), module.output_proj(inner), rtol=1e-4, atol=1e-5)


def test_latents_begin_apart() -> None:
    settings = PerceiverSettings(num_latents=6, hidden_dim=WIDTH)
    module = recipe("perceiver").build(settings, vision_dim=VISION, latent_dimension=LATENT)
    found = module(torch.randn(1, 9, VISION))
    assert (torch.cdist(found[0], found[0]) + torch.eye(6)).min() > 1e-4


def test_the_order_of_tokens_does_not_matter() -> None:
    module, tokens = build(), torch.randn(2, 7, VISION, dtype=torch.float64)
    torch.testing.assert_close(module(tokens), module(tokens[:, torch.randperm(7)]))


def test_every_weight_and_token_gets_a_gradient() -> None:
    module, tokens = build(), torch.randn(2, 7, VISION, dtype=torch.float64, requires_grad=True)
    module(tokens).square().sum().backward()
    assert tokens.grad.abs().amax(2).min() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())


def test_dropout_is_of_training() -> None:
    module, tokens = build(dropout=0.5), torch.randn(1, 7, VISION, dtype=torch.float64)
    assert torch.equal(module(tokens), build()(tokens))
    module.train()
    assert not torch.equal(module(tokens), module(tokens))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="is 5, which does not divide hidden_dim 24"):
        build(num_attention_heads=5)
