"""The network of the bidirectional Mamba resampler."""

from __future__ import annotations

from torch import Tensor, nn

from panovlm.models.mamba.block import MambaMixer
from panovlm.models.resamplers.bimamba.recipe import BiMambaSettings


class BiMambaResampler(nn.Module):
    """Blocks of two Mamba mixers that read the tokens of a view in both directions.

    Every view is a sequence of its own. With ``cross_view`` the views of a sample are a closed
    loop: the forward mixers read the other views before it, from the one that follows it round to
    the one to its left, and the backward mixers the other way round.
    """

    def __init__(
        self, settings: BiMambaSettings, *, vision_dim: int, latent_dimension: int
    ) -> None:
        super().__init__()
        self.cross_view = settings.cross_view
        self.input_proj = nn.Linear(vision_dim, settings.hidden_dim)
        self.blocks = nn.ModuleList(BiMambaBlock(settings) for _ in range(settings.depth))
        self.final_norm = nn.LayerNorm(settings.hidden_dim)
        self.output_proj = nn.Linear(settings.hidden_dim, latent_dimension)

    def forward(self, tokens: Tensor, num_views: int = 1) -> Tensor:
        """Map tokens ``[B·V, S, Dv]`` to ``[B·V, S, D]``, V being ``num_views``."""
        x = self.input_proj(tokens)
        for block in self.blocks:
            x = block(x, num_views if self.cross_view else None)
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

    def forward(self, x: Tensor, loop: int | None) -> Tensor:
        """Mix the tokens of ``x`` ``[B·V, S, H]``; ``loop`` views make a closed loop, if any do."""
        y = self.norm(x) if self.norm_first else x
        backward = self.backward_block(y, loop, reverse=True)
        mixed = x + self.dropout(self.scale * (self.forward_block(y, loop) + backward))
        return mixed if self.norm_first else self.norm(mixed)


def _mixer(settings: BiMambaSettings) -> MambaMixer:
    return MambaMixer(
        settings.hidden_dim,
        expand=settings.expand,
        d_state=settings.d_state,
        d_conv=settings.d_conv,
    )
