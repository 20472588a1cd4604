"""Settings and shape inference of the bidirectional Mamba resampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.config.base import Field
from panovlm.errors import ContradictionError
from panovlm.models.resamplers.bimamba.dialects import dialect
from panovlm.models.resamplers.recipe import (
    Dialect,
    Observability,
    ResamplerRecipe,
    ResamplerSettings,
)

if TYPE_CHECKING:
    from torch import nn


FIRST = "blocks.0.forward_block."
"""The mixer whose sizes all others must share."""


def inner_dim(expand: float, hidden_dim: int) -> int:
    """Return the inner width of a mixer."""
    return int(expand * hidden_dim)


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
    directions: Literal["mean", "sum"] = "mean"
    """How the outputs of the two mixers join; Vision Mamba has both."""
    cross_view: bool = False
    """The scans run over the closed loop of a panorama's views (true) or each view by itself."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout on the mixers' output; training only."""

    def _check(self) -> None:
        if not 1 <= self.expand * self.hidden_dim < math.inf:
            raise ValueError(
                f"expand {self.expand} of hidden_dim {self.hidden_dim} leaves the mixers no "
                "number of channels; int(expand * hidden_dim) must be at least 1"
            )


class BiMambaRecipe(ResamplerRecipe):
    """The bidirectional Mamba resampler."""

    name = "bimamba"
    keeps_tokens = True
    aliases = ("bidirectional_mamba", "bi_mamba")
    settings = BiMambaSettings
    has = (
        "input_proj.weight",
        "blocks.0.forward_block.A_log",
        "blocks.0.forward_block.conv1d.weight",
        "blocks.0.backward_block.A_log",
        "final_norm.weight",
        "output_proj.weight",
    )
    lacks = ("mlp.0.weight", "query", "blocks.0.forward_block.dt_bias")
    observability: ClassVar[dict[str, Observability]] = {
        "hidden_dim": "observable",
        "depth": "observable",
        "expand": "observable",
        "d_state": "observable",
        "d_conv": "observable",
        "norm_first": "unobservable",
        "directions": "unobservable",
        "cross_view": "unobservable",
        "dropout": "unobservable",
    }
    training_only = frozenset({"dropout"})
    takes = ("num_views",)

    def crosses_views(self, settings: ResamplerSettings) -> bool:
        """See :meth:`ResamplerRecipe.crosses_views`."""
        assert isinstance(settings, BiMambaSettings)
        return settings.cross_view

    def dialect(self, names: Sequence[str]) -> Dialect | None:
        """See :meth:`ResamplerRecipe.dialect`."""
        return dialect(names)

    def infer(self, shapes: Shapes) -> Observations:
        """See :meth:`ResamplerRecipe.infer`."""
        seen = Observations(shapes)
        seen.add("vision_dim", shapes.dim("input_proj.weight", 1))
        seen.add("latent_dimension", shapes.dim("output_proj.weight", 0))
        hidden = shapes.dim("input_proj.weight", 0)
        seen.add("hidden_dim", hidden)
        seen.add("depth", shapes.count("blocks"))
        inner = shapes.dim(FIRST + "A_log", 0)
        if hidden < 1 or inner < 1:
            raise ContradictionError(
                f"{shapes.prefix}input_proj.weight or {shapes.prefix}{FIRST}A_log is empty; this "
                "file holds no weights of the resampler. Sharded training leaves such shells: "
                "convert the directory with the shards."
            )
        formula = f"shortest number with int(expand * {hidden}) = {inner},"
        seen.add("expand", shortest_expand(inner, hidden), formula)
        seen.add("d_state", shapes.dim(FIRST + "A_log", 1))
        seen.add("d_conv", shapes.dim(FIRST + "conv1d.weight", 2))
        self._check(shapes, seen)
        return seen

    def agrees(self, field: str, claimed: Any, seen: Observations) -> bool:
        """See :meth:`ResamplerRecipe.agrees`; every ``expand`` with the same inner width fits."""
        if field != "expand":
            return super().agrees(field, claimed, seen)
        hidden, expand = seen["hidden_dim"].value, seen["expand"].value
        is_number = isinstance(claimed, int | float) and math.isfinite(claimed)
        return is_number and inner_dim(claimed, hidden) == inner_dim(expand, hidden)

    def _check(self, shapes: Shapes, seen: Observations) -> None:
        """Compare every tensor with what the observations imply."""
        vision, latent, H, depth = (
            seen[name].value for name in ("vision_dim", "latent_dimension", "hidden_dim", "depth")
        )
        expected = {
            "input_proj.weight": (H, vision),
            "input_proj.bias": (H,),
            "final_norm.weight": (H,),
            "final_norm.bias": (H,),
            "output_proj.weight": (latent, H),
            "output_proj.bias": (latent,),
        }
        mixer = _mixer_shapes(seen)
        for i in range(depth):
            expected |= {f"blocks.{i}.norm.weight": (H,), f"blocks.{i}.norm.bias": (H,)}
            for direction in ("forward_block", "backward_block"):
                expected |= {f"blocks.{i}.{direction}.{name}": mixer[name] for name in mixer}
        inner, n = mixer["A_log"]
        why = (
            f"H = {H} from {shapes.prefix}input_proj.weight, R = ceil(H / 16), I = {inner} and "
            f"N = {n} from {shapes.prefix}{FIRST}A_log, K = {seen['d_conv'].value} from "
            f"{shapes.prefix}{FIRST}conv1d.weight"
        )
        for name, shape in expected.items():
            shapes.require(name, shape, why)

    def build(
        self, settings: ResamplerSettings, *, vision_dim: int, latent_dimension: int
    ) -> nn.Module:
        """See :meth:`ResamplerRecipe.build`."""
        from panovlm.models.resamplers.bimamba.module import BiMambaResampler

        assert isinstance(settings, BiMambaSettings)
        return BiMambaResampler(settings, vision_dim=vision_dim, latent_dimension=latent_dimension)


def _mixer_shapes(seen: Observations) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one Mamba mixer's tensors."""
    H, N, K = (seen[name].value for name in ("hidden_dim", "d_state", "d_conv"))
    inner = inner_dim(seen["expand"].value, H)
    R = math.ceil(H / 16)
    return {
        "in_proj.weight": (2 * inner, H),
        "conv1d.weight": (inner, 1, K),
        "conv1d.bias": (inner,),
        "x_proj.weight": (R + 2 * N, inner),
        "dt_proj.weight": (inner, R),
        "dt_proj.bias": (inner,),
        "A_log": (inner, N),
        "D": (inner,),
        "out_proj.weight": (H, inner),
    }


def shortest_expand(inner: int, hidden_dim: int) -> float:
    """Return the number with the fewest decimals that gives exactly this inner width.

    The weights show ``inner = int(expand * hidden_dim)`` only, which many numbers fulfil. The
    product is rounded before it is truncated (``int(0.29 * 100)`` is 28), so that candidates are
    tried rather than computed.
    """
    scales = (10**digits for digits in count())
    candidates = (
        numerator / scale
        for scale in scales
        for numerator in range(inner * scale // hidden_dim, (inner + 1) * scale // hidden_dim + 1)
    )
    return next(value for value in candidates if inner_dim(value, hidden_dim) == inner)
