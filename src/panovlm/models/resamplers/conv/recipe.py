"""Settings and shape inference of the convolutional resampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.config.base import Field
from panovlm.models.resamplers.grids import LARGEST_SIDE, divided_grid
from panovlm.models.resamplers.recipe import Observability, ResamplerRecipe, ResamplerSettings
from panovlm.models.vision.grid import Grid, ViewGrid

if TYPE_CHECKING:
    from torch import nn

KERNEL = 7
"""Side of the depthwise convolutions."""


class ConvSettings(ResamplerSettings):
    """ConvNeXt blocks on the grid of patches, after a convolution that joins windows of them.

    A class token and registers of the tower are left out.
    """

    hidden_dim: int = Field(768, ge=1)
    """Width H of the blocks."""
    depth: int = Field(3, ge=1)
    """Number of blocks."""
    stride: int = Field(2, ge=1, le=LARGEST_SIDE)
    """Patches along each side of a window that becomes one token; must divide the rows and columns
    of a view."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Chance that the last block leaves a view out, falling linearly to 0 for the first; training
    only."""


class ConvRecipe(ResamplerRecipe):
    """The convolutional resampler."""

    name = "conv"
    settings = ConvSettings
    has = ("downsample.weight", "layers.0.dwconv.weight", "output_proj.weight")
    lacks = ("mlp.0.weight", "input_proj.weight", "query", "latents")
    observability: ClassVar[dict[str, Observability]] = {
        "hidden_dim": "observable",
        "depth": "observable",
        "stride": "observable",
        "drop_path": "unobservable",
    }
    training_only = frozenset({"drop_path"})
    takes = ("view",)

    def grid(self, settings: ResamplerSettings, view: ViewGrid) -> Grid:
        """See :meth:`ResamplerRecipe.grid`."""
        assert isinstance(settings, ConvSettings)
        return divided_grid(view, settings.stride, "stride")

    def infer(self, shapes: Shapes) -> Observations:
        """See :meth:`ResamplerRecipe.infer`."""
        seen = Observations(shapes)
        seen.add("vision_dim", shapes.dim("downsample.weight", 1))
        seen.add("latent_dimension", shapes.dim("output_proj.weight", 0))
        seen.add("hidden_dim", shapes.dim("downsample.weight", 0))
        seen.add("depth", shapes.count("layers"))
        seen.add("stride", shapes.dim("downsample.weight", 2))
        why = f"H = {seen['hidden_dim'].value} from {shapes.prefix}downsample.weight"
        for name, shape in _expected(seen).items():
            shapes.require(name, shape, why)
        return seen

    def build(
        self, settings: ResamplerSettings, *, vision_dim: int, latent_dimension: int
    ) -> nn.Module:
        """See :meth:`ResamplerRecipe.build`."""
        from panovlm.models.resamplers.conv.module import ConvResampler

        assert isinstance(settings, ConvSettings)
        return ConvResampler(settings, vision_dim=vision_dim, latent_dimension=latent_dimension)


def _expected(seen: Observations) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape as the observations imply it."""
    vision, latent, H, stride = (
        seen[name].value for name in ("vision_dim", "latent_dimension", "hidden_dim", "stride")
    )
    shapes: dict[str, tuple[int, ...]] = {
        "norm.weight": (vision,),
        "norm.bias": (vision,),
        "downsample.weight": (H, vision, stride, stride),
        "downsample.bias": (H,),
        "final_norm.weight": (H,),
        "final_norm.bias": (H,),
        "output_proj.weight": (latent, H),
        "output_proj.bias": (latent,),
    }
    block: dict[str, tuple[int, ...]] = {
        "dwconv.weight": (H, 1, KERNEL, KERNEL),
        "dwconv.bias": (H,),
        "layernorm.weight": (H,),
        "layernorm.bias": (H,),
        "pwconv1.weight": (4 * H, H),
        "pwconv1.bias": (4 * H,),
        "pwconv2.weight": (H, 4 * H),
        "pwconv2.bias": (H,),
        "layer_scale_parameter": (H,),
    }
    for i in range(seen["depth"].value):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in block.items()}
    return shapes
