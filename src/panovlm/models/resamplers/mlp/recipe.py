"""Settings and shape inference of the MLP resampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.config.base import Field
from panovlm.errors import ContradictionError
from panovlm.models.resamplers.recipe import Observability, ResamplerRecipe, ResamplerSettings

if TYPE_CHECKING:
    from torch import nn


class MLPSettings(ResamplerSettings):
    """Token-wise MLP: ``depth - 1`` hidden stages (Linear, LayerNorm, GELU), then a Linear."""

    hidden_dim: int | None = Field(1536, ge=1)
    """Width of the hidden stages; unused at depth 1. ``null``: the larger one of the vision tower's
    width and ``latent_dimension``."""
    depth: int = Field(3, ge=1)
    """Number of Linear layers."""
    use_ln: bool = True
    """LayerNorm after each hidden Linear."""


class MLPRecipe(ResamplerRecipe):
    """The token-wise MLP resampler."""

    name = "mlp"
    keeps_tokens = True
    settings = MLPSettings
    has = ("mlp.0.weight", "mlp.0.bias")
    lacks = ("input_proj.weight", "query", "proj.weight")
    observability: ClassVar[dict[str, Observability]] = {
        "hidden_dim": "observable",
        "depth": "observable",
        "use_ln": "observable",
    }

    def infer(self, shapes: Shapes) -> Observations:
        """See :meth:`ResamplerRecipe.infer`."""
        seen = Observations(shapes)
        last = shapes.indices("mlp")[-1]
        if f"mlp.{last}.weight" not in shapes:
            raise ContradictionError(
                f"{shapes.prefix}mlp.{last}.weight is absent, though mlp.{last} has other tensors. "
                "The checkpoint is incomplete."
            )
        seen.add("vision_dim", shapes.dim("mlp.0.weight", 1))
        seen.add("latent_dimension", shapes.dim(f"mlp.{last}.weight", 0))
        if last == 0:
            seen.add("depth", 1, f"{shapes.prefix}mlp.0 is the only layer")
        else:
            self._infer_hidden(shapes, seen, last)
        why = f"widths from {shapes.prefix}mlp.0.weight and {shapes.prefix}mlp.{last}.weight"
        for name, shape in _expected(seen).items():
            shapes.require(name, shape, why)
        return seen

    def _infer_hidden(self, shapes: Shapes, seen: Observations, last: int) -> None:
        """Read what only an MLP with hidden stages shows: their width, number and norms."""
        seen.add("hidden_dim", shapes.dim("mlp.0.weight", 0))
        use_ln = shapes.has("mlp.1.weight")
        seen.add("use_ln", use_ln)
        stage = _layers_per_stage(use_ln)
        if last % stage:
            raise ContradictionError(
                f"{shapes.prefix}mlp.{last}.weight is the last layer, but an MLP "
                f"{'with' if use_ln else 'without'} LayerNorm ends with a Linear at a multiple of "
                f"{stage}. The checkpoint is incomplete."
            )
        shapes.has(f"mlp.{last}.weight")
        seen.add("depth", last // stage + 1, f"{last} / {stage} + 1")

    def build(
        self, settings: ResamplerSettings, *, vision_dim: int, latent_dimension: int
    ) -> nn.Module:
        """See :meth:`ResamplerRecipe.build`."""
        from panovlm.models.resamplers.mlp.module import MLPResampler

        assert isinstance(settings, MLPSettings)
        return MLPResampler(settings, vision_dim=vision_dim, latent_dimension=latent_dimension)


def _expected(seen: Observations) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape as the observations imply it."""
    width, depth = seen["vision_dim"].value, seen["depth"].value
    shapes: dict[str, tuple[int, ...]] = {}
    final = 0
    if depth > 1:
        hidden, use_ln = seen["hidden_dim"].value, seen["use_ln"].value
        stage = _layers_per_stage(use_ln)
        final = stage * (depth - 1)
        for i in range(0, final, stage):
            shapes |= {f"mlp.{i}.weight": (hidden, width), f"mlp.{i}.bias": (hidden,)}
            if use_ln:
                shapes |= {f"mlp.{i + 1}.weight": (hidden,), f"mlp.{i + 1}.bias": (hidden,)}
            width = hidden
    latent = seen["latent_dimension"].value
    return shapes | {f"mlp.{final}.weight": (latent, width), f"mlp.{final}.bias": (latent,)}


def _layers_per_stage(use_ln: bool) -> int:
    """Return how many layers (Linear, LayerNorm if any, GELU) a hidden stage counts."""
    return 3 if use_ln else 2
