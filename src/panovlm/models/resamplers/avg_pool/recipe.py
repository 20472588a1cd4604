"""Settings and shape inference of average pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.config.base import Field
from panovlm.models.resamplers.grids import LARGEST_SIDE, divided_grid
from panovlm.models.resamplers.recipe import Observability, ResamplerSettings
from panovlm.models.resamplers.weightless import WeightlessRecipe
from panovlm.models.vision.grid import Grid, ViewGrid

if TYPE_CHECKING:
    from torch import nn


class AvgPoolSettings(ResamplerSettings):
    """Means of square windows of patches; ``latent_dimension`` must be the tower's width.

    A class token and registers of the tower are left out.
    """

    window: int = Field(2, ge=1, le=LARGEST_SIDE)
    """Patches along each side of a window; must divide the rows and columns of a view."""


class AvgPoolRecipe(WeightlessRecipe):
    """The average-pooling resampler."""

    name = "avg_pool"
    settings = AvgPoolSettings
    has = ("avg_pool", "window")
    observability: ClassVar[dict[str, Observability]] = {"window": "observable"}
    takes = ("view",)

    def grid(self, settings: ResamplerSettings, view: ViewGrid) -> Grid:
        """See :meth:`ResamplerRecipe.grid`."""
        assert isinstance(settings, AvgPoolSettings)
        return divided_grid(view, settings.window, "window")

    def infer(self, shapes: Shapes) -> Observations:
        """See :meth:`ResamplerRecipe.infer`."""
        seen = super().infer(shapes)
        seen.add("window", shapes.dim("window", 0))
        shapes.require("window", (seen["window"].value,), "one entry per patch of a side")
        return seen

    def build(
        self, settings: ResamplerSettings, *, vision_dim: int, latent_dimension: int
    ) -> nn.Module:
        """See :meth:`ResamplerRecipe.build`."""
        from panovlm.models.resamplers.avg_pool.module import AvgPoolResampler

        assert isinstance(settings, AvgPoolSettings)
        self.check_widths(vision_dim, latent_dimension)
        return AvgPoolResampler(settings, latent_dimension)
