"""The network of the C-Abstractor."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional
from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm

from panovlm.models.resamplers.c_abstractor.recipe import CAbstractorSettings, squeezed
from panovlm.models.resamplers.layers import as_pictures, as_tokens, mark
from panovlm.models.vision.grid import ViewGrid


class CAbstractorResampler(nn.Module):
    """Convolutional abstractor of Honeybee (Cha et al., 2024), without its table of positions.

    Blocks of RegNet on the grid of a view's patches, adaptive average pooling, blocks again, and an
    MLP with SiLU token by token. Beyond the edge of a view there are zeros.
    """

    def __init__(
        self, settings: CAbstractorSettings, *, vision_dim: int, latent_dimension: int
    ) -> None:
        super().__init__()
        width, size = settings.hidden_dim, (settings.rows, settings.columns)
        widths = [vision_dim, *[width] * settings.depth]
        self.before = nn.Sequential(*(RegNetBlock(n, width) for n in widths[:-1]))
        self.pool = nn.AdaptiveAvgPool2d(size)
        self.after = nn.Sequential(*(RegNetBlock(n, width) for n in widths[1:]))
        layers: list[nn.Module] = [nn.Linear(width, latent_dimension)]
        for _ in range(settings.mlp_depth - 1):
            layers += [nn.SiLU(), nn.Linear(latent_dimension, latent_dimension)]
        self.readout = nn.Sequential(*layers)
        mark(self, "grid", *size)

    def forward(self, tokens: Tensor, view: ViewGrid) -> Tensor:
        """Map tokens ``[B·V, S, Dv]`` to ``[B·V, rows · columns, D]``."""
        pictures = self.after(self.pool(self.before(as_pictures(tokens, view))))
        return self.readout(as_tokens(pictures))


class RegNetBlock(nn.Module):
    """Bottleneck block of RegNet-Y (Radosavovic et al., 2020) with LayerNorm and SiLU.

    A convolution of single places, a depthwise one of 3 × 3, squeeze-and-excitation, and one of
    single places, with a residual around them.
    """

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 1, bias=False)
        self.norm1 = _norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, groups=out, bias=False)
        self.norm2 = _norm(out)
        self.reduce = nn.Conv2d(out, squeezed(into), 1)
        self.excite = nn.Conv2d(squeezed(into), out, 1)
        self.conv3 = nn.Conv2d(out, out, 1, bias=False)
        self.norm3 = _norm(out)
        self.shortcut = nn.Conv2d(into, out, 1, bias=False) if into != out else nn.Identity()
        self.shortcut_norm = _norm(out) if into != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures ``[N, into, rows, columns]`` to ``[N, out, rows, columns]``."""
        y = functional.silu(self.norm1(self.conv1(x)))
        y = functional.silu(self.norm2(self.conv2(y)))
        mean = y.mean((2, 3), keepdim=True)
        y = y * self.excite(functional.silu(self.reduce(mean))).sigmoid()
        y = self.norm3(self.conv3(y))
        return functional.silu(y + self.shortcut_norm(self.shortcut(x)))


def _norm(channels: int) -> nn.Module:
    return ConvNextLayerNorm(channels, eps=1e-6, data_format="channels_first")
