"""Settings and shape inference of the bidirectional Mamba resampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from panovlm.checkpoint.shapes import Observations, Shapes
from panovlm.models.resamplers.recipe import Observability, ResamplerRecipe, ResamplerSettings

if TYPE_CHECKING:
    from torch import nn


class BiMambaSettings(ResamplerSettings):
    """Stack of blocks that scan each view forwards and backwards with a Mamba mixer."""

    hidden_dim: int = Field(1024, ge=1)
    """Width H of the blocks (d_model)."""
    depth: int = Field(4, ge=1)
    """Number of blocks."""
    expand: float = Field(1.75, gt=0)
    """Inner width of a mixer is ``int(expand * hidden_dim)``, truncated."""
    d_state: int = Field(64, ge=1)
    """State size N per channel."""
    d_conv: int = Field(4, ge=1)
    """Taps K of the causal depthwise convolution."""
    norm_first: bool = True
    """LayerNorm before the mixers (true) or on the sum after them (false)."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout on the mixers' output; training only."""


class BiMambaRecipe(ResamplerRecipe):
    """The bidirectional Mamba resampler."""

    name = "bimamba"
    aliases = ("bidirectional_mamba", "bi_mamba")
    settings = BiMambaSettings
    has = ("input_proj.weight", "output_proj.weight", "final_norm.weight")
    observability: ClassVar[dict[str, Observability]] = {
        "hidden_dim": "observable",
        "depth": "observable",
        "expand": "observable",
        "d_state": "observable",
        "d_conv": "observable",
        "norm_first": "unobservable",
        "dropout": "unobservable",
    }

    def infer(self, shapes: Shapes) -> Observations:
        """See :meth:`ResamplerRecipe.infer`."""
        raise NotImplementedError

    def build(
        self, settings: ResamplerSettings, *, vision_dim: int, latent_dimension: int
    ) -> nn.Module:
        """See :meth:`ResamplerRecipe.build`."""
        raise NotImplementedError
