"""The network of the bidirectional Mamba resampler."""

from __future__ import annotations

from torch import Tensor, nn

from panovlm.models.mamba.block import MambaMixer
from panovlm.models.resamplers.bimamba.recipe import BiMambaSettings


class BiMambaResampler(nn.Module):
    """Blocks of two Mamba mixers that read the tokens of a view in both directions.

    Every view is a sequence of its own: views do not see each other.
    """

    def __init__(
        self, settings: BiMambaSettings, *, vision_dim: int, latent_dimension: int
    ) -> None:
        super().__init__()
        self.input_proj = nn.Linear(vision_dim, settings.hidden_dim)
        self.blocks = nn.ModuleList(BiMambaBlock(settings) for _ in range(settings.depth))
        self.final_norm = nn.LayerNorm(settings.hidden_dim)
        self.output_proj = nn.Linear(settings.hidden_dim, latent_dimension)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``[B·V, S, Dv]`` to ``[B·V, S, D]``."""
        x = self.input_proj(tokens)
        for block in self.blocks:
            x = block(x)
        return self.output_proj(self.final_norm(x))


class BiMambaBlock(nn.Module):
    """A forward and a backward mixer side by side, with residual and LayerNorm."""

    def __init__(self, settings: BiMambaSettings) -> None:
        super().__init__()
        self.norm_first = settings.norm_first
        self.scale = 0.5 if settings.directions == "mean" else 1.0
        self.norm = nn.LayerNorm(settings.hidden_dim)
        self.forward_block = _mixer(settings)
        self.backward_block = _mixer(settings)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of ``x`` ``[B·V, S, H]``."""
        y = self.norm(x) if self.norm_first else x
        backward = self.backward_block(y.flip(1)).flip(1)
        mixed = x + self.dropout(self.scale * (self.forward_block(y) + backward))
        return mixed if self.norm_first else self.norm(mixed)


def _mixer(settings: BiMambaSettings) -> MambaMixer:
    return MambaMixer(
        settings.hidden_dim,
        expand=settings.expand,
        d_state=settings.d_state,
        d_conv=settings.d_conv,
    )
