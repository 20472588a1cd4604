"""The true directions of tokens: the ray through the middle of each token's part of its view."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from panovlm.config.schema import ImageProcessing
from panovlm.errors import ConfigError
from panovlm.models.vision.backbone import VisionBackbone
from panovlm.models.vision.grid import Grid, ViewGrid
from panovlm.models.vision.resampler import ResamplerModule
from panovlm.panorama.sphere import SphereViews

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TokenRays:
    """Where the tokens of all tiles look.

    Attributes:
        sphere: the tiles, without a leading view of the whole panorama.
        grid: how the tokens of one tile lie; ``extra`` ones in front show no place.
        read: parts of a view's height and width that the tokens cover.
    """

    sphere: SphereViews
    grid: ViewGrid
    read: tuple[float, float]

    @cached_property
    def patches(self) -> Doubles:
        """Unit directions ``[V, rows · columns, 3]`` of the tokens that show a place."""
        rays = self.sphere.rays(self.grid.rows, self.grid.columns, self.read)
        return rays.reshape(len(self.sphere.views), -1, 3)

    @cached_property
    def tokens(self) -> Doubles:
        """Unit directions ``[V, S', 3]`` of all tokens; those of no place look as their view."""
        centres = np.repeat(self.sphere.centres[:, None], self.grid.extra, axis=1)
        return np.concatenate((centres, self.patches), axis=1)


class TokenDirections:
    """Tells the directions of a model's tokens, for positions, stitching and overlap losses.

    Nothing is computed, and nothing refused, before it is asked for.

    Args:
        image: how a panorama becomes views.
        backbone: the tower that reads them.
        resampler: what makes the tokens of the tower's.
    """

    def __init__(
        self, image: ImageProcessing, backbone: VisionBackbone, resampler: ResamplerModule
    ) -> None:
        self._image = image
        self._backbone = backbone
        self._resampler = resampler
        self._known: dict[tuple[int, Grid | None], TokenRays] = {}

    def follow(self, image: ImageProcessing) -> None:
        """Take over settings that were completed after the model was built."""
        self._image = image
        self._known.clear()

    def of(self, count: int, grid: Grid | None) -> TokenRays:
        """Return the directions of the tiles' tokens.

        Args:
            count: tokens S' of a view.
            grid: their rows and columns, as the resampler tells them.

        Raises:
            ConfigError: nobody knows where the tokens lie in their view.
        """
        if (count, grid) not in self._known:
            self._known[count, grid] = self._rays(count, grid)
        return self._known[count, grid]

    def _rays(self, count: int, grid: Grid | None) -> TokenRays:
        size = self._size
        if grid is not None:
            placed = ViewGrid(*grid)
        elif self._resampler.keeps_tokens:
            placed = self._backbone.view_grid(size, count)
        else:
            raise ConfigError(
                f"the tokens of the resampler {self._resampler.name} show no certain directions, "
                "which models.pe_type directions, stitching_mode sphere, vision_rope "
                "closed_yaw and overlap_pairs directions need; choose other values of these, or a "
                "resampler that keeps tokens in their places, such as mlp, bimamba, avg_pool or "
                "spatial_pool."
            )
        sphere = SphereViews.of(self._image, size=size).tiles()
        return TokenRays(sphere, placed, self._backbone.read_share(size))

    @property
    def _size(self) -> tuple[int, int]:
        """Height and width of a view in pixels."""
        given = self._image.image_size
        if given is None or self._image.use_vision_processor:
            return self._backbone.image_size
        return given
