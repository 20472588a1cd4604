"""The network of the MLP resampler."""

from __future__ import annotations

from torch import Tensor, nn

from panovlm.models.resamplers.mlp.recipe import MLPSettings


class MLPResampler(nn.Module):
    """Maps every token by itself: Linear, LayerNorm and GELU ``depth - 1`` times, then a Linear.

    Without LayerNorm nothing stands in its place, so that the layers are numbered through.
    """

    def __init__(self, settings: MLPSettings, *, vision_dim: int, latent_dimension: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = vision_dim
        hidden = settings.hidden_dim or max(vision_dim, latent_dimension)
        for _ in range(settings.depth - 1):
            layers.append(nn.Linear(width, hidden))
            width = hidden
            if settings.use_ln:
                layers.append(nn.LayerNorm(width))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(width, latent_dimension))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``[B·V, S, Dv]`` to ``[B·V, S, D]``."""
        return self.mlp(tokens)
