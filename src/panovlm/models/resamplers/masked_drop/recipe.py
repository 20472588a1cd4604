"""Settings and shape inference of dropping tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from panovlm.config.base import Field
from panovlm.models.resamplers.recipe import Observability, ResamplerSettings
from panovlm.models.resamplers.weightless import WeightlessRecipe

if TYPE_CHECKING:
    from torch import nn


class MaskedDropSettings(ResamplerSettings):
    """Blanks random tokens of every view in training, and leaves all as they are afterwards.

    ``latent_dimension`` must be the tower's width.
    """

    rate: float = Field(0.25, ge=0, lt=1)
    """Part of a view's S tokens that become zero in training: ``int(rate * S)`` of them, drawn anew
    for every view and step from torch's generator (``environment.seed``). Every token keeps its
    place. Evaluation blanks none."""


class MaskedDropRecipe(WeightlessRecipe):
    """The resampler that blanks random tokens in training."""

    name = "masked_drop"
    settings = MaskedDropSettings
    has = ("masked_drop",)
    observability: ClassVar[dict[str, Observability]] = {"rate": "unobservable"}
    training_only = frozenset({"rate"})

    def build(
        self, settings: ResamplerSettings, *, vision_dim: int, latent_dimension: int
    ) -> nn.Module:
        """See :meth:`ResamplerRecipe.build`."""
        from panovlm.models.resamplers.masked_drop.module import MaskedDropResampler

        assert isinstance(settings, MaskedDropSettings)
        self.check_widths(vision_dim, latent_dimension)
        return MaskedDropResampler(settings, latent_dimension)
