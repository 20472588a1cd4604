"""The resampler between vision tower and projector: settings in, network out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panovlm.config.schema import ModelSettings
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipe
from panovlm.models.vision.grid import Grid, ViewGrid


class ResamplerModule(nn.Module):
    """Holds the network of the architecture that ``settings.resampler_type`` names.

    Args:
        settings: type, settings and output width D (``latent_dimension``) of the resampler.
        vision_dim: width Dv of the tower's tokens.

    Attributes:
        name: the architecture.
        keeps_tokens: whether every token of the tower leaves as one token, in its place.
        reads_grid: whether the architecture must know where a view's tokens lie.
        crosses_views: whether a view's tokens depend on the other views of its sample.

    Raises:
        ConfigError: the architecture cannot be built for these widths.
    """

    def __init__(self, settings: ModelSettings, *, vision_dim: int) -> None:
        super().__init__()
        self._recipe = recipe(settings.resampler_type)
        self._settings = settings.resampler_config
        self.name = self._recipe.name
        self.keeps_tokens = self._recipe.keeps_tokens
        self.reads_grid = "view" in self._recipe.takes
        self.crosses_views = self._recipe.crosses_views(self._settings)
        self.resampler = self._recipe.build(
            self._settings,
            vision_dim=vision_dim,
            latent_dimension=settings.latent_dimension,
        )

    def grid(self, view: ViewGrid | None) -> Grid | None:
        """Return the rows and columns of the tokens that leave; ``None``: as their number tells.

        Args:
            view: the tokens of one view that enter; needed where ``reads_grid``.

        Raises:
            ConfigError: the settings do not fit that view.
        """
        return self._recipe.grid(self._settings, self._known(view)) if self.reads_grid else None

    def forward(
        self, tokens: Tensor, view: ViewGrid | None = None, *, num_views: int = 1, apart: int = 0
    ) -> Tensor:
        """Map the tokens of views.

        Args:
            tokens: ``[B·V, S, Dv]``, the views of a sample one after the other.
            view: where the tokens of one view lie; needed where ``reads_grid``.
            num_views: views V per sample, of which the tiles make a closed loop.
            apart: leading views of a sample that are no part of that loop.

        Returns:
            ``[B·V, S', D]``.

        Raises:
            ConfigError: the settings do not fit the views.
        """
        if self.reads_grid:
            known = self._known(view)
            self.grid(known)  # refuses a view that the settings do not fit
            if tokens.shape[1] != known.count:
                raise ConfigError(
                    f"the resampler got {tokens.shape[1]} tokens per view, but {known.rows} × "
                    f"{known.columns} patches and {known.extra} further tokens were announced."
                )
        if not self.crosses_views or num_views == apart:
            return self._run(tokens, view, 1)
        if tokens.shape[0] % num_views:
            raise ConfigError(
                f"the resampler got tokens of {tokens.shape[0]} views, which are no samples of "
                f"{num_views} views each."
            )
        views = tokens.unflatten(0, (-1, num_views))  # [B, V, S, Dv]
        whole, tiles = views[:, :apart], views[:, apart:]
        mixed = self._run(tiles.flatten(0, 1), view, num_views - apart)
        if not apart:
            return mixed
        alone = self._run(whole.flatten(0, 1), view, 1).unflatten(0, (-1, apart))
        return torch.cat((alone, mixed.unflatten(0, (len(views), -1))), 1).flatten(0, 1)

    def _run(self, tokens: Tensor, view: ViewGrid | None, num_views: int) -> Tensor:
        known: dict[str, object] = {"view": view, "num_views": num_views}
        return self.resampler(tokens, **{name: known[name] for name in self._recipe.takes})

    def _known(self, view: ViewGrid | None) -> ViewGrid:
        if view is None:
            raise ConfigError(
                f"the resampler {self._recipe.name!r} must know where a view's tokens lie; pass "
                "their ViewGrid."
            )
        return view
