"""The head whose output the overlap loss compares; stage vision only."""

from __future__ import annotations

from torch import Tensor, nn

from panovlm.config.schema import ModelSettings


class VICRegProjector(nn.Module):
    """Token-wise MLP: ``depth - 1`` times Linear, LayerNorm, GELU (exact), then a Linear.

    The hidden width is ``vicreg_projector_hidden``, else the output width; that is
    ``vicreg_projector_dim``, else ``latent_dimension``. Without LayerNorm an identity keeps its
    place, so that a layer has the same index in the state dict either way.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        output = settings.vicreg_projector_dim or settings.latent_dimension
        hidden = settings.vicreg_projector_hidden or output
        layers: list[nn.Module] = []
        width = settings.latent_dimension
        for _ in range(settings.vicreg_projector_depth - 1):
            norm = nn.LayerNorm(hidden) if settings.vicreg_projector_ln else nn.Identity()
            layers += [nn.Linear(width, hidden), norm, nn.GELU()]
            width = hidden
        self.mlp = nn.Sequential(*layers, nn.Linear(width, output))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map resampled tokens ``[..., D]`` to ``[..., output width]``."""
        return self.mlp(tokens)
