"""Settings and shape inference of the C-Abstractor."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.config.base import Field
from panovlm.errors import ContradictionError
from panovlm.models.resamplers.grids import LARGEST_SIDE, pooled_grid
from panovlm.models.resamplers.recipe import Observability, ResamplerRecipe, ResamplerSettings
from panovlm.models.vision.grid import Grid, ViewGrid

if TYPE_CHECKING:
    from torch import nn


def squeezed(channels: int) -> int:
    """Return the inner channels of a block's squeeze-and-excitation, from those that enter it."""
    return max(1, round(channels / 4))


class CAbstractorSettings(ResamplerSettings):
    """Convolutional blocks, pooling to a grid of given size, the same blocks again, and an MLP.

    A class token and registers of the tower are left out.
    """

    hidden_dim: int = Field(1024, ge=1)
    """Width H of the blocks."""
    depth: int = Field(3, ge=1)
    """Blocks before the pooling, and as many after it."""
    rows: int = Field(8, ge=1, le=LARGEST_SIDE)
    """Rows of tokens that leave; at most those of a view."""
    columns: int = Field(8, ge=1, le=LARGEST_SIDE)
    """Columns of tokens that leave; at most those of a view."""
    mlp_depth: int = Field(2, ge=1)
    """Linear layers at the end."""


class CAbstractorRecipe(ResamplerRecipe):
    """The C-Abstractor."""

    name = "c_abstractor"
    settings = CAbstractorSettings
    has = ("before.0.conv1.weight", "after.0.conv1.weight", "readout.0.weight", "grid")
    lacks = ("mlp.0.weight", "input_proj.weight", "query", "latents")
    observability: ClassVar[dict[str, Observability]] = {
        "hidden_dim": "observable",
        "depth": "observable",
        "rows": "observable",
        "columns": "observable",
        "mlp_depth": "observable",
    }
    takes = ("view",)

    def grid(self, settings: ResamplerSettings, view: ViewGrid) -> Grid:
        """See :meth:`ResamplerRecipe.grid`."""
        assert isinstance(settings, CAbstractorSettings)
        return pooled_grid((settings.rows, settings.columns), view)

    def infer(self, shapes: Shapes) -> Observations:
        """See :meth:`ResamplerRecipe.infer`."""
        seen = Observations(shapes)
        seen.add("vision_dim", shapes.dim("before.0.conv1.weight", 1))
        seen.add("latent_dimension", shapes.dim("readout.0.weight", 0))
        seen.add("hidden_dim", shapes.dim("before.0.conv1.weight", 0))
        seen.add("depth", shapes.count("before"))
        seen.add("rows", shapes.dim("grid", 0))
        seen.add("columns", shapes.dim("grid", 1))
        last = shapes.indices("readout")[-1]
        if last % 2:
            raise ContradictionError(
                f"{shapes.prefix}readout.{last} is the last layer, but an MLP with an activation "
                "after every Linear but the last ends at an even number. The checkpoint is "
                "incomplete."
            )
        shapes.has(f"readout.{last}.weight")
        seen.add("mlp_depth", last // 2 + 1, f"{last} / 2 + 1")
        why = (
            f"Dv = {seen['vision_dim'].value} and H = {seen['hidden_dim'].value} from "
            f"{shapes.prefix}before.0.conv1.weight"
        )
        for name, shape in _expected(seen).items():
            shapes.require(name, shape, why)
        return seen

    def build(
        self, settings: ResamplerSettings, *, vision_dim: int, latent_dimension: int
    ) -> nn.Module:
        """See :meth:`ResamplerRecipe.build`."""
        from panovlm.models.resamplers.c_abstractor.module import CAbstractorResampler

        assert isinstance(settings, CAbstractorSettings)
        return CAbstractorResampler(
            settings, vision_dim=vision_dim, latent_dimension=latent_dimension
        )


def _expected(seen: Observations) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape as the observations imply it."""
    vision, latent, H = (
        seen[name].value for name in ("vision_dim", "latent_dimension", "hidden_dim")
    )
    shapes: dict[str, tuple[int, ...]] = {"grid": (seen["rows"].value, seen["columns"].value)}
    width = vision
    for stage in ("before", "after"):
        for i in range(seen["depth"].value):
            block = _block_shapes(width, H)
            shapes |= {f"{stage}.{i}.{name}": shape for name, shape in block.items()}
            width = H
    for i in range(seen["mlp_depth"].value):
        shapes |= {f"readout.{2 * i}.weight": (latent, width), f"readout.{2 * i}.bias": (latent,)}
        width = latent
    return shapes


def _block_shapes(into: int, out: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one block."""
    inner = squeezed(into)
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (out, into, 1, 1),
        "conv2.weight": (out, 1, 3, 3),
        "reduce.weight": (inner, out, 1, 1),
        "reduce.bias": (inner,),
        "excite.weight": (out, inner, 1, 1),
        "excite.bias": (out,),
        "conv3.weight": (out, out, 1, 1),
    }
    norms = ["norm1", "norm2", "norm3"]
    if into != out:
        shapes["shortcut.weight"] = (out, into, 1, 1)
        norms.append("shortcut_norm")
    for name in norms:
        shapes |= {f"{name}.weight": (out,), f"{name}.bias": (out,)}
    return shapes
