"""The network of average pooling."""

from __future__ import annotations

from torch import Tensor, nn

from panovlm.models.resamplers.avg_pool.recipe import AvgPoolSettings
from panovlm.models.resamplers.layers import as_pictures, as_tokens, mark
from panovlm.models.vision.grid import ViewGrid


class AvgPoolResampler(nn.Module):
    """Takes the mean of each window of patches."""

    def __init__(self, settings: AvgPoolSettings, width: int) -> None:
        super().__init__()
        self.side = settings.window
        mark(self, "avg_pool", width)
        mark(self, "window", settings.window)

    def forward(self, tokens: Tensor, view: ViewGrid) -> Tensor:
        """Map tokens ``[B·V, S, D]`` to ``[B·V, rows · columns / window², D]``."""
        return as_tokens(nn.functional.avg_pool2d(as_pictures(tokens, view), self.side))
