"""Settings and shape inference of the Q-Former resampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from panovlm.checkpoint.shapes import Observations, Shapes
from panovlm.models.resamplers.recipe import Observability, ResamplerRecipe, ResamplerSettings

if TYPE_CHECKING:
    from torch import nn


class QFormerSettings(ResamplerSettings):
    """Learned queries that read a view through a BERT decoder with cross-attention."""

    num_query_tokens: int = Field(64, ge=1)
    """Tokens S' that leave the resampler per view."""
    num_hidden_layers: int = Field(6, ge=1)
    """BERT layers."""
    num_attention_heads: int = Field(8, ge=1)
    """Heads; must divide the width of the vision tower."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in attention and hidden layers; training only."""


class QFormerRecipe(ResamplerRecipe):
    """The Q-Former resampler."""

    name = "qformer"
    settings = QFormerSettings
    has = ("query", "bert.embeddings.LayerNorm.weight", "proj.weight")
    observability: ClassVar[dict[str, Observability]] = {
        "num_query_tokens": "observable",
        "num_hidden_layers": "observable",
        "num_attention_heads": "constrained",
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
