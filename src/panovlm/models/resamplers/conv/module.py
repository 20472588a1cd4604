"""The network of the convolutional resampler."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import ConvNextConfig
from transformers.models.convnext.modeling_convnext import ConvNextLayer

from panovlm.models.resamplers.conv.recipe import ConvSettings
from panovlm.models.resamplers.layers import as_pictures, as_tokens
from panovlm.models.vision.grid import ViewGrid

EPS = 1e-6


class ConvResampler(nn.Module):
    """A stage of ConvNeXt (Liu et al., 2022) on the grid of a view's patches.

    LayerNorm and a convolution that joins windows of patches, blocks of a depthwise convolution and
    a token-wise MLP with residual, then LayerNorm and a Linear. Beyond the edge of a view there are
    zeros.
    """

    def __init__(self, settings: ConvSettings, *, vision_dim: int, latent_dimension: int) -> None:
        super().__init__()
        width, stride, depth = settings.hidden_dim, settings.stride, settings.depth
        config = ConvNextConfig(hidden_act="gelu", layer_scale_init_value=1e-6)
        self.norm = nn.LayerNorm(vision_dim, eps=EPS)
        self.downsample = nn.Conv2d(vision_dim, width, stride, stride)
        rates: list[Any] = [settings.drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.Sequential(*(ConvNextLayer(config, width, rate) for rate in rates))
        self.final_norm = nn.LayerNorm(width, eps=EPS)
        self.output_proj = nn.Linear(width, latent_dimension)

    def forward(self, tokens: Tensor, view: ViewGrid) -> Tensor:
        """Map tokens ``[B·V, S, Dv]`` to ``[B·V, rows · columns / stride², D]``."""
        pictures = self.downsample(as_pictures(self.norm(tokens), view))
        return self.output_proj(self.final_norm(as_tokens(self.layers(pictures))))
