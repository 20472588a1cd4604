"""Settings and shape inference of the MLP resampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from panovlm.checkpoint.shapes import Observations, Shapes
from panovlm.models.resamplers.recipe import Observability, ResamplerRecipe, ResamplerSettings

if TYPE_CHECKING:
    from torch import nn


class MLPSettings(ResamplerSettings):
    """Token-wise MLP: ``depth - 1`` hidden stages (Linear, LayerNorm, GELU), then a Linear."""

    hidden_dim: int = Field(1536, ge=1)
    """Width of the hidden stages; unused at depth 1."""
    depth: int = Field(3, ge=1)
    """Number of Linear layers."""
    use_ln: bool = True
    """LayerNorm after each hidden Linear."""


class MLPRecipe(ResamplerRecipe):
    """The token-wise MLP resampler."""

    name = "mlp"
    settings = MLPSettings
    has = ("mlp.0.weight",)
    observability: ClassVar[dict[str, Observability]] = {
        "hidden_dim": "observable",
        "depth": "observable",
        "use_ln": "observable",
    }

    def infer(self, shapes: Shapes) -> Observations:
        """See :meth:`ResamplerRecipe.infer`."""
        raise NotImplementedError

    def build(
        self, settings: ResamplerSettings, *, vision_dim: int, latent_dimension: int
    ) -> nn.Module:
        """See :meth:`ResamplerRecipe.build`."""
        raise NotImplementedError
