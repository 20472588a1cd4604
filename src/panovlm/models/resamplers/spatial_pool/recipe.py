"""Settings and shape inference of pooling to a given grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.config.base import Field
from panovlm.models.resamplers.grids import LARGEST_SIDE, pooled_grid
from panovlm.models.resamplers.recipe import Observability, ResamplerSettings
from panovlm.models.resamplers.weightless import WeightlessRecipe
from panovlm.models.vision.grid import Grid, ViewGrid

if TYPE_CHECKING:
    from torch import nn


class SpatialPoolSettings(ResamplerSettings):
    """A grid of given size, each token pooled from the patches of its part of the view.

    ``latent_dimension`` must be the tower's width. Where the grid does not divide the patches,
    parts share their border patches. A class token and registers of the tower are left out.
    """

    rows: int = Field(8, ge=1, le=LARGEST_SIDE)
    """Rows of tokens that leave; at most those of a view."""
    columns: int = Field(8, ge=1, le=LARGEST_SIDE)
    """Columns of tokens that leave; at most those of a view."""
    mode: Literal["average", "max"] = "average"
    """Mean of a part's patches, or their largest value in each channel."""


class SpatialPoolRecipe(WeightlessRecipe):
    """The resampler that pools a view to a given grid."""

    name = "spatial_pool"
    settings = SpatialPoolSettings
    has = ("spatial_pool", "grid")
    observability: ClassVar[dict[str, Observability]] = {
        "rows": "observable",
        "columns": "observable",
        "mode": "unobservable",
    }
    takes = ("view",)

    def grid(self, settings: ResamplerSettings, view: ViewGrid) -> Grid:
        """See :meth:`ResamplerRecipe.grid`."""
        assert isinstance(settings, SpatialPoolSettings)
        return pooled_grid((settings.rows, settings.columns), view)

    def infer(self, shapes: Shapes) -> Observations:
        """See :meth:`ResamplerRecipe.infer`."""
        seen = super().infer(shapes)
        seen.add("rows", shapes.dim("grid", 0))
        seen.add("columns", shapes.dim("grid", 1))
        size = seen["rows"].value, seen["columns"].value
        shapes.require("grid", size, "one entry per token of a view")
        return seen

    def build(
        self, settings: ResamplerSettings, *, vision_dim: int, latent_dimension: int
    ) -> nn.Module:
        """See :meth:`ResamplerRecipe.build`."""
        from panovlm.models.resamplers.spatial_pool.module import SpatialPoolResampler

        assert isinstance(settings, SpatialPoolSettings)
        self.check_widths(vision_dim, latent_dimension)
        return SpatialPoolResampler(settings, latent_dimension)
