"""From resampled view tokens to the language model's vision tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panovlm.config.schema import ModelSettings
from panovlm.errors import ConfigError
from panovlm.models.vision.grid import Grid, token_grid
from panovlm.models.vision.positional import cached_positions
from panovlm.models.vision.stitching import stitch, strip_columns


class PanoramaProjector(nn.Module):
    """Adds panoramic positions, projects to the language width, and stitches the views.

    Args:
        settings: positional encoding, stitching, ``latent_dimension`` D.
        language_dim: width Dm of the language model.
        leading_global: whether the first view shows the whole panorama. With
            ``settings.global_view == "apart"`` its tokens get no position and stand, row by row,
            in front of the stitched strip of the other views.
    """

    def __init__(self, settings: ModelSettings, *, language_dim: int, leading_global: bool) -> None:
        super().__init__()
        self.settings = settings
        self.apart = int(leading_global and settings.global_view == "apart")
        positioned = settings.use_projection_positional_encoding
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
        grid = _laid_out(tokens.shape[1], grid)
        strip = self._project(self._positioned(tiles, grid)).unflatten(2, grid)
        return torch.cat((self._project(whole).flatten(1, 2), stitch(strip, self.settings)), 1)

    def _project(self, tokens: Tensor) -> Tensor:
        return self.linear(self.dropout(tokens))

    def _positioned(self, tiles: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the tiles ``[B, V, S', D]`` with their positions, if these are switched on."""
        settings = self.settings
        if not settings.use_projection_positional_encoding:
            return tiles
        positions = cached_positions(
            num_views=tiles.shape[1],
            grid=grid,
            width=tiles.shape[3],
            overlap=settings.overlap_ratio,
            temperature=settings.pe_temperature,
            continuity=settings.pe_enable_continuity,
            spatial=settings.pe_spatial_encoding_type,
            device=tiles.device,
        )
        return (tiles + positions).to(tiles.dtype)


def _laid_out(count: int, grid: Grid | None) -> Grid:
    """Return the rows and columns of a view's tokens."""
    if grid is not None and grid[0] * grid[1] != count:
        raise ConfigError(
            f"the projector got {count} tokens per view, but the resampler announced "
            f"{grid[0]} × {grid[1]}."
        )
    return token_grid(count) if grid is None else grid
