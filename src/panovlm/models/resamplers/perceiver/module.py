"""The network of the Perceiver resampler."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from panovlm.models.resamplers.perceiver.recipe import WIDENING, PerceiverSettings

EPS = 1e-6


class PerceiverResampler(nn.Module):
    """Learned latents that gather a view's tokens.

    After the resampler of Flamingo (Alayrac et al., 2022) with the layers of Idefics2 (Laurençon et
    al., 2024): RMSNorm, attention of the latents to tokens and latents together, and a gated MLP,
    without biases.
    """

    def __init__(
        self, settings: PerceiverSettings, *, vision_dim: int, latent_dimension: int
    ) -> None:
        super().__init__()
        width = settings.hidden_dim
        self.input_proj = nn.Linear(vision_dim, width)
        self.latents = nn.Parameter(torch.empty(settings.num_latents, width))
        nn.init.normal_(self.latents, std=0.02)
        self.layers = nn.ModuleList(PerceiverLayer(settings) for _ in range(settings.depth))
        self.final_norm = nn.RMSNorm(width, eps=EPS)
        self.output_proj = nn.Linear(width, latent_dimension)

    def forward(self, tokens: Tensor) -> Tensor:
        """Gather tokens ``[B·V, S, Dv]`` in ``[B·V, Q, D]``, Q the number of latents."""
        context = self.input_proj(tokens)
        latents = self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            latents = layer(latents, context)
        return self.output_proj(self.final_norm(latents))


class PerceiverLayer(nn.Module):
    """Attention and MLP, each with a norm before it and a residual around it."""

    def __init__(self, settings: PerceiverSettings) -> None:
        super().__init__()
        width = settings.hidden_dim
        self.latents_norm = nn.RMSNorm(width, eps=EPS)
        self.context_norm = nn.RMSNorm(width, eps=EPS)
        self.attention = PerceiverAttention(settings)
        self.mlp_norm = nn.RMSNorm(width, eps=EPS)
        self.mlp = GatedMLP(width)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """Update latents ``[N, Q, H]`` from the tokens ``[N, S, H]``."""
        own = self.latents_norm(latents)
        latents = latents + self.attention(own, torch.cat((self.context_norm(context), own), 1))
        return latents + self.mlp(self.mlp_norm(latents))


class PerceiverAttention(nn.Module):
    """Attention of latents to what they read."""

    def __init__(self, settings: PerceiverSettings) -> None:
        super().__init__()
        width = settings.hidden_dim
        self.heads = settings.num_attention_heads
        self.dropout = settings.dropout
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, latents: Tensor, read: Tensor) -> Tensor:
        """Return ``[N, Q, H]`` of latents ``[N, Q, H]`` that attend to ``read`` ``[N, R, H]``."""
        mixed = functional.scaled_dot_product_attention(
            self._by_head(self.q_proj(latents)),
            self._by_head(self.k_proj(read)),
            self._by_head(self.v_proj(read)),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        """Split ``[N, L, H]`` into ``[N, heads, L, H / heads]``."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class GatedMLP(nn.Module):
    """``down(SiLU(gate(x)) · up(x))``, token by token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, WIDENING * width, bias=False)
        self.up_proj = nn.Linear(width, WIDENING * width, bias=False)
        self.down_proj = nn.Linear(WIDENING * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, Q, H]`` to ``[N, Q, H]``."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
