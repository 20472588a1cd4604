"""The resampler between vision tower and projector: settings in, network out."""

from __future__ import annotations

from torch import Tensor, nn

from panovlm.config.schema import ModelSettings
from panovlm.models.resamplers import recipe


class ResamplerModule(nn.Module):
    """Holds the network of the architecture that ``settings.resampler_type`` names.

    Args:
        settings: type, settings and output width D (``latent_dimension``) of the resampler.
        vision_dim: width Dv of the tower's tokens.

    Raises:
        ConfigError: the architecture cannot be built for these widths.
    """

    def __init__(self, settings: ModelSettings, *, vision_dim: int) -> None:
        super().__init__()
        self.resampler = recipe(settings.resampler_type).build(
            settings.resampler_config,
            vision_dim=vision_dim,
            latent_dimension=settings.latent_dimension,
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map a view's tokens ``[B·V, S, Dv]`` to ``[B·V, S', D]``."""
        return self.resampler(tokens)
