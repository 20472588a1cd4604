"""The network of pooling to a given grid."""

from __future__ import annotations

from torch import Tensor, nn

from panovlm.models.resamplers.layers import as_pictures, as_tokens, mark
from panovlm.models.resamplers.spatial_pool.recipe import SpatialPoolSettings
from panovlm.models.vision.grid import ViewGrid


class SpatialPoolResampler(nn.Module):
    """Pools rows ``floor(i·H / rows)`` to ``ceil((i + 1)·H / rows)``, columns likewise."""

    def __init__(self, settings: SpatialPoolSettings, width: int) -> None:
        super().__init__()
        size = settings.rows, settings.columns
        average = settings.mode == "average"
        self.pool = nn.AdaptiveAvgPool2d(size) if average else nn.AdaptiveMaxPool2d(size)
        mark(self, "spatial_pool", width)
        mark(self, "grid", *size)

    def forward(self, tokens: Tensor, view: ViewGrid) -> Tensor:
        """Map tokens ``[B·V, S, D]`` to ``[B·V, rows · columns, D]``."""
        return as_tokens(self.pool(as_pictures(tokens, view)))
