"""Settings and shape inference of the Q-Former resampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.config.base import Field
from panovlm.errors import ConfigError
from panovlm.models.resamplers.recipe import Observability, ResamplerRecipe, ResamplerSettings

if TYPE_CHECKING:
    from torch import nn


VOCABULARY = 30522
"""Rows of BERT's word table, which no query uses."""
MAX_QUERY_TOKENS = 512
"""Rows of BERT's position table."""
TOKEN_TYPES = 2
"""Rows of BERT's token-type table; queries are type 0."""


class QFormerSettings(ResamplerSettings):
    """Learned queries that read a view through a BERT decoder with cross-attention."""

    num_query_tokens: int = Field(64, ge=1, le=MAX_QUERY_TOKENS)
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
    has = (
        "query",
        "bert.embeddings.LayerNorm.weight",
        "bert.encoder.layer.0.crossattention.self.query.weight",
        "proj.weight",
    )
    lacks = ("mlp.0.weight", "input_proj.weight")
    observability: ClassVar[dict[str, Observability]] = {
        "num_query_tokens": "observable",
        "num_hidden_layers": "observable",
        "num_attention_heads": "constrained",
        "dropout": "unobservable",
    }
    training_only = frozenset({"dropout"})
    divides: ClassVar[dict[str, str]] = {"num_attention_heads": "vision_dim"}

    def infer(self, shapes: Shapes) -> Observations:
        """See :meth:`ResamplerRecipe.infer`."""
        seen = Observations(shapes)
        seen.add("vision_dim", shapes.dim("query", 2))
        seen.add("latent_dimension", shapes.dim("proj.weight", 0))
        seen.add("num_query_tokens", shapes.dim("query", 1))
        seen.add("num_hidden_layers", shapes.count("bert.encoder.layer"))
        why = f"vision width {seen['vision_dim'].value} from {shapes.prefix}query"
        for name, shape in _expected(seen).items():
            shapes.require(name, shape, why)
        return seen

    def build(
        self, settings: ResamplerSettings, *, vision_dim: int, latent_dimension: int
    ) -> nn.Module:
        """See :meth:`ResamplerRecipe.build`."""
        from panovlm.models.resamplers.qformer.module import QFormerResampler

        assert isinstance(settings, QFormerSettings)
        if vision_dim % settings.num_attention_heads:
            raise ConfigError(
                f"models.resampler_config.num_attention_heads is {settings.num_attention_heads}, "
                f"which does not divide the vision tower's width {vision_dim}; choose a divisor "
                "of that width."
            )
        return QFormerResampler(settings, vision_dim=vision_dim, latent_dimension=latent_dimension)


def _expected(seen: Observations) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape as the observations imply it."""
    D, latent = seen["vision_dim"].value, seen["latent_dimension"].value
    shapes: dict[str, tuple[int, ...]] = {
        "query": (1, seen["num_query_tokens"].value, D),
        "bert.embeddings.word_embeddings.weight": (VOCABULARY, D),
        "bert.embeddings.position_embeddings.weight": (MAX_QUERY_TOKENS, D),
        "bert.embeddings.token_type_embeddings.weight": (TOKEN_TYPES, D),
        "bert.embeddings.LayerNorm.weight": (D,),
        "bert.embeddings.LayerNorm.bias": (D,),
        "bert.pooler.dense.weight": (D, D),
        "bert.pooler.dense.bias": (D,),
        "proj.weight": (latent, D),
        "proj.bias": (latent,),
    }
    layer = _layer_shapes(D)
    for i in range(seen["num_hidden_layers"].value):
        shapes |= {f"bert.encoder.layer.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def _layer_shapes(D: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one BERT layer with cross-attention."""
    linears = {"intermediate.dense": (4 * D, D), "output.dense": (D, 4 * D)}
    norms = ["output.LayerNorm"]
    for attention in ("attention", "crossattention"):
        linears |= {f"{attention}.self.{name}": (D, D) for name in ("query", "key", "value")}
        linears[f"{attention}.output.dense"] = (D, D)
        norms.append(f"{attention}.output.LayerNorm")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (D,), f"{name}.bias": (D,)}
    return shapes
