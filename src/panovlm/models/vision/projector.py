"""From resampled view tokens to the language model's vision tokens."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from panovlm.config.schema import ModelSettings
from panovlm.errors import ConfigError
from panovlm.models.vision.canvas import canvas
from panovlm.models.vision.directions import TokenDirections, TokenRays
from panovlm.models.vision.grid import Grid, token_grid
from panovlm.models.vision.loop import LoopPlaces
from panovlm.models.vision.positional import cached_positions, direction_positions
from panovlm.models.vision.stitching import read_canvas, stitch, strip_columns


class PanoramaProjector(nn.Module):
    """Adds panoramic positions, projects to the language width, and stitches the views.

    Args:
        settings: positional encoding, stitching, ``latent_dimension`` D.
        language_dim: width Dm of the language model.
        leading_global: whether the first view shows the whole panorama. With
            ``settings.global_view == "apart"`` its tokens get no position and stand, row by row,
            in front of the stitched strip of the other views.
        directions: where the tokens look; needed for ``pe_type`` directions and ``stitching_mode``
            sphere.

    Raises:
        ConfigError: these are asked for, but a view of the whole panorama counts as a tile.
    """

    def __init__(
        self,
        settings: ModelSettings,
        *,
        language_dim: int,
        leading_global: bool,
        directions: TokenDirections | None = None,
    ) -> None:
        super().__init__()
        self._directions = directions
        self.settings = settings
        self.apart = int(leading_global and settings.global_view == "apart")
        positioned = settings.use_projection_positional_encoding
        self._sphere = settings.stitching_mode == "sphere"
        loop = settings.vision_rope == "closed_yaw"
        true_places = self._sphere or loop or (positioned and settings.pe_type == "directions")
        if true_places and leading_global and not self.apart:
            raise ConfigError(
                "models.global_view is first_view, but models.pe_type directions, stitching_mode "
                "sphere and vision_rope closed_yaw need the view of the whole panorama to stand "
                "apart from the tiles; set global_view to apart."
            )
        if loop and settings.vision_token_fallback_position == "suffix":  # noqa: S105
            raise ConfigError(
                "models.vision_rope is closed_yaw, but vision_token_fallback_position suffix puts "
                "vision tokens where answers begin, which count on from them; set it to prefix."
            )
        if loop and settings.stitching_mode == "resample":
            raise ConfigError(
                "models.vision_rope is closed_yaw, but the tokens of stitching_mode resample are "
                "means of several places; choose another mode, such as sphere."
            )
        self.dropout = nn.Dropout(settings.pe_dropout if positioned else 0.0)
        self.linear = nn.Linear(settings.latent_dimension, language_dim)

    def num_tokens(self, num_views: int, tokens_per_view: int, grid: Grid | None = None) -> int:
        """Return the vision tokens T of one sample.

        Args:
            num_views: views V, a leading global one included.
            tokens_per_view: tokens S' after the resampler.
            grid: rows and columns of them; ``None``: as their number tells.
        """
        rows, columns = _laid_out(tokens_per_view, grid)
        tiles = num_views - self.apart
        if tiles and self._sphere:
            strip = len(canvas(self._rays(tiles, tokens_per_view, grid)).view)
        else:
            strip = rows * strip_columns(tiles, columns, self.settings) if tiles else 0
        return self.apart * tokens_per_view + strip

    def forward(self, tokens: Tensor, num_views: int, grid: Grid | None = None) -> Tensor:
        """Project the tokens of a batch.

        Args:
            tokens: ``[B·V, S', D]``, the views of a sample one after the other.
            num_views: views V per sample.
            grid: rows and columns of a view's tokens, as the resampler tells them; ``None``: as
                their number tells.

        Returns:
            ``[B, T, Dm]``.

        Raises:
            ConfigError: the rows of ``tokens`` are no whole number of samples, or a view's tokens
                are not as many as ``grid`` has places.
        """
        if num_views < 1 or tokens.shape[0] % num_views:
            raise ConfigError(
                f"the projector got tokens of {tokens.shape[0]} views, which are no samples of "
                f"{num_views} views each; pass the number of views that the pixels have."
            )
        views = tokens.unflatten(0, (-1, num_views))  # [B, V, S', D]
        whole, tiles = views[:, : self.apart], views[:, self.apart :]
        if tiles.shape[1] == 0:
            return self._project(whole).flatten(1, 2)
        projected = self._project(self._positioned(tiles, grid))
        front = self._project(whole).flatten(1, 2)
        return torch.cat((front, self._stitched(projected, grid)), 1)

    def places(self, num_views: int, count: int, grid: Grid | None = None) -> LoopPlaces:
        """Return where the vision tokens lie on the closed loop.

        Args:
            num_views: views V per sample.
            count: tokens S' of a view.
            grid: rows and columns of them, as the resampler tells them.

        Raises:
            ConfigError: nobody knows where the tokens look.
        """
        tiles, front = num_views - self.apart, self.apart * count
        if not tiles:
            return LoopPlaces.of(front, (0,), np.zeros((0, 3)), 1.0)
        rays = self._rays(tiles, count, grid)
        columns = 360 * rays.grid.columns / min(view.hfov for view in rays.sphere.views)
        if self._sphere:
            strip = canvas(rays)
            return LoopPlaces.of(front, strip.rows, strip.directions, columns)
        laid = _laid_out(count, grid)
        numbers = torch.arange(tiles * count, dtype=torch.float64, device="cpu")
        index = stitch(numbers.view(1, tiles, *laid, 1), self.settings).flatten().long().numpy()
        rows = (len(index) // laid[0],) * laid[0]
        return LoopPlaces.of(front, rows, rays.tokens.reshape(-1, 3)[index], columns)

    def _stitched(self, tiles: Tensor, grid: Grid | None) -> Tensor:
        """Return the strip ``[B, T, Dm]`` of projected tiles ``[B, V, S', Dm]``."""
        if not self._sphere:
            return stitch(tiles.unflatten(2, _laid_out(tiles.shape[2], grid)), self.settings)
        rays = self._rays(tiles.shape[1], tiles.shape[2], grid)
        return read_canvas(tiles[:, :, rays.grid.extra :].flatten(1, 2), canvas(rays))

    def _rays(self, tiles: int, count: int, grid: Grid | None) -> TokenRays:
        """Return where the tokens of the tiles look.

        Raises:
            ConfigError: nobody knows, or there are not as many tiles as the settings give.
        """
        if self._directions is None:
            raise ConfigError(
                "a projector with models.pe_type directions, stitching_mode sphere or vision_rope "
                "closed_yaw was built "
                "without the directions of its tokens; pass a TokenDirections."
            )
        rays = self._directions.of(count, grid)
        if len(rays.sphere.views) != tiles:
            raise ConfigError(
                f"the projector got {tiles} tiles, but image_processing gives "
                f"{len(rays.sphere.views)}, whose directions are known; cut the views with the "
                "model's own settings."
            )
        return rays

    def _project(self, tokens: Tensor) -> Tensor:
        return self.linear(self.dropout(tokens))

    def _positioned(self, tiles: Tensor, grid: Grid | None) -> Tensor:
        """Return the tiles ``[B, V, S', D]`` with their positions, if these are switched on."""
        settings = self.settings
        if not settings.use_projection_positional_encoding:
            return tiles
        if settings.pe_type == "directions":
            rays = self._rays(tiles.shape[1], tiles.shape[2], grid)
            codes = _codes(rays, tiles.shape[3], settings.pe_highest_frequency, tiles.device)
            return (tiles + codes).to(tiles.dtype)
        positions = cached_positions(
            num_views=tiles.shape[1],
            grid=_laid_out(tiles.shape[2], grid),
            width=tiles.shape[3],
            overlap=settings.overlap_ratio,
            temperature=settings.pe_temperature,
            continuity=settings.pe_enable_continuity,
            spatial=settings.pe_spatial_encoding_type,
            device=tiles.device,
        )
        return (tiles + positions).to(tiles.dtype)


@lru_cache(maxsize=16)
def _codes(rays: TokenRays, width: int, highest: float, device: torch.device) -> Tensor:
    """Return the codes ``[V, S', D]`` of the tokens' directions, float32; do not modify them."""
    table = direction_positions(rays.tokens, width, highest)
    # A tensor made in inference mode could never take part in training later.
    with torch.inference_mode(mode=False):
        return torch.from_numpy(table.astype("float32")).to(device)


def _laid_out(count: int, grid: Grid | None) -> Grid:
    """Return the rows and columns of a view's tokens."""
    if grid is not None and grid[0] * grid[1] != count:
        raise ConfigError(
            f"the projector got {count} tokens per view, but the resampler announced "
            f"{grid[0]} × {grid[1]}."
        )
    return token_grid(count) if grid is None else grid
