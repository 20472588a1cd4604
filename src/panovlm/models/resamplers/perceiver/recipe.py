"""Settings and shape inference of the Perceiver resampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.config.base import Field
from panovlm.errors import ConfigError
from panovlm.models.resamplers.recipe import Observability, ResamplerRecipe, ResamplerSettings

if TYPE_CHECKING:
    from torch import nn

WIDENING = 4
"""Inner width of a layer's MLP over H."""


class PerceiverSettings(ResamplerSettings):
    """Learned latents that read a view, and each other, through layers of cross-attention."""

    num_latents: int = Field(64, ge=1)
    """Tokens S' that leave the resampler per view."""
    hidden_dim: int = Field(768, ge=1)
    """Width H of the latents."""
    depth: int = Field(3, ge=1)
    """Number of layers."""
    num_attention_heads: int = Field(8, ge=1)
    """Heads; must divide ``hidden_dim``."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of attention weights; training only."""


class PerceiverRecipe(ResamplerRecipe):
    """The Perceiver resampler."""

    name = "perceiver"
    settings = PerceiverSettings
    has = (
        "input_proj.weight",
        "latents",
        "layers.0.attention.q_proj.weight",
        "output_proj.weight",
    )
    lacks = ("mlp.0.weight", "query", "blocks.0.norm.weight")
    observability: ClassVar[dict[str, Observability]] = {
        "num_latents": "observable",
        "hidden_dim": "observable",
        "depth": "observable",
        "num_attention_heads": "constrained",
        "dropout": "unobservable",
    }
    training_only = frozenset({"dropout"})
    divides: ClassVar[dict[str, str]] = {"num_attention_heads": "hidden_dim"}

    def infer(self, shapes: Shapes) -> Observations:
        """See :meth:`ResamplerRecipe.infer`."""
        seen = Observations(shapes)
        seen.add("vision_dim", shapes.dim("input_proj.weight", 1))
        seen.add("latent_dimension", shapes.dim("output_proj.weight", 0))
        seen.add("num_latents", shapes.dim("latents", 0))
        seen.add("hidden_dim", shapes.dim("latents", 1))
        seen.add("depth", shapes.count("layers"))
        why = f"H = {seen['hidden_dim'].value} from {shapes.prefix}latents"
        for name, shape in _expected(seen).items():
            shapes.require(name, shape, why)
        return seen

    def build(
        self, settings: ResamplerSettings, *, vision_dim: int, latent_dimension: int
    ) -> nn.Module:
        """See :meth:`ResamplerRecipe.build`."""
        from panovlm.models.resamplers.perceiver.module import PerceiverResampler

        assert isinstance(settings, PerceiverSettings)
        if settings.hidden_dim % settings.num_attention_heads:
            raise ConfigError(
                f"models.resampler_config.num_attention_heads is {settings.num_attention_heads}, "
                f"which does not divide hidden_dim {settings.hidden_dim}; choose a divisor of it."
            )
        return PerceiverResampler(
            settings, vision_dim=vision_dim, latent_dimension=latent_dimension
        )


def _expected(seen: Observations) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape as the observations imply it."""
    vision, latent, H = (
        seen[name].value for name in ("vision_dim", "latent_dimension", "hidden_dim")
    )
    shapes: dict[str, tuple[int, ...]] = {
        "input_proj.weight": (H, vision),
        "input_proj.bias": (H,),
        "latents": (seen["num_latents"].value, H),
        "final_norm.weight": (H,),
        "output_proj.weight": (latent, H),
        "output_proj.bias": (latent,),
    }
    layer: dict[str, tuple[int, ...]] = {
        "latents_norm.weight": (H,),
        "context_norm.weight": (H,),
        **{f"attention.{name}_proj.weight": (H, H) for name in ("q", "k", "v", "o")},
        "mlp_norm.weight": (H,),
        "mlp.gate_proj.weight": (WIDENING * H, H),
        "mlp.up_proj.weight": (WIDENING * H, H),
        "mlp.down_proj.weight": (H, WIDENING * H),
    }
    for i in range(seen["depth"].value):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes
