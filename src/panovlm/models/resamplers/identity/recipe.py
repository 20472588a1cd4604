"""Settings and shape inference of the identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from panovlm.models.resamplers.recipe import Observability, ResamplerSettings
from panovlm.models.resamplers.weightless import WeightlessRecipe

if TYPE_CHECKING:
    from torch import nn


class IdentitySettings(ResamplerSettings):
    """Tokens as the tower makes them; ``latent_dimension`` must be the tower's width."""


class IdentityRecipe(WeightlessRecipe):
    """The resampler that leaves tokens as they are."""

    name = "identity"
    keeps_tokens = True
    settings = IdentitySettings
    has = ("identity",)
    observability: ClassVar[dict[str, Observability]] = {}

    def build(
        self, settings: ResamplerSettings, *, vision_dim: int, latent_dimension: int
    ) -> nn.Module:
        """See :meth:`ResamplerRecipe.build`."""
        from panovlm.models.resamplers.identity.module import IdentityResampler

        self.check_widths(vision_dim, latent_dimension)
        return IdentityResampler(latent_dimension)
