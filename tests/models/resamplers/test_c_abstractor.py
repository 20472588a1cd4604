"""The C-Abstractor against transformers' RegNet blocks, with copied weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import RegNetConfig
from transformers.models.regnet.modeling_regnet import RegNetYLayer

from panovlm.checkpoint.settle.shapes import Shapes
from panovlm.errors import ConfigError, ContradictionError
from panovlm.models.resamplers import recipe
from panovlm.models.resamplers.c_abstractor.recipe import CAbstractorSettings, squeezed
from panovlm.models.vision.grid import ViewGrid

VISION, WIDTH, LATENT = 8, 12, 5
VIEW = ViewGrid(5, 7, extra=1)
NORMS = {
    "layer.0.normalization": "norm1",
    "layer.1.normalization": "norm2",
    "layer.3.normalization": "norm3",
    "shortcut.normalization": "shortcut_norm",
}
WEIGHTS = {
    "layer.0.convolution": "conv1",
    "layer.1.convolution": "conv2",
    "layer.2.attention.0": "reduce",
    "layer.2.attention.2": "excite",
    "layer.3.convolution": "conv3",
    "shortcut.convolution": "shortcut",
}


class OverChannels(nn.Module):
    """LayerNorm of every place of a picture, as Honeybee puts it where RegNet has BatchNorm."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        scaled = (x - mean) / ((x - mean).square().mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * self.weight[:, None, None] + self.bias[:, None, None]


def reference(block: nn.Module, into: int) -> nn.Module:
    """Transformers' layer, with SiLU, other norms and the weights of ours."""
    made = RegNetYLayer(RegNetConfig(groups_width=1, hidden_act="silu"), into, WIDTH)
    made.layer[2].attention[1] = nn.SiLU()
    state = block.state_dict()
    for theirs, ours in NORMS.items():
        if f"{ours}.weight" in state:
            parent, _, name = theirs.rpartition(".")
            norm = OverChannels(state[f"{ours}.weight"], state[f"{ours}.bias"])
            setattr(made.get_submodule(parent), name, norm)
    copied = {
        f"{theirs}.{kind}": state[f"{ours}.{kind}"]
        for theirs, ours in WEIGHTS.items()
        for kind in ("weight", "bias")
        if f"{ours}.{kind}" in state
    }
    made.load_state_dict(copied)
    return made.double().eval()


def build(**changes) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_dim": WIDTH, "depth": 2, "rows": 2, "columns": 3}
    settings = CAbstractorSettings(**{**sizes, **changes})
    module = recipe("c_abstractor").build(settings, vision_dim=VISION, latent_dimension=LATENT)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double()


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, VIEW.count, VISION, dtype=torch.float64, generator=generator)


def pooled(x: Tensor, rows: int, columns: int) -> Tensor:
    """Mean of each part of pictures ``[N, C, H, W]``."""
    (height, width), out = x.shape[2:], x.new_empty(*x.shape[:2], rows, columns)
    for i in range(rows):
        for j in range(columns):
            top, left = i * height // rows, j * width // columns
            bottom, right = -(-(i + 1) * height // rows), -(-(j + 1) * width // columns)
            out[:, :, i, j] = x[:, :, top:bottom, left:right].mean((2, 3))
    return out


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mlp_depth", [1, 3])
def test_equals_blocks_of_regnet(training, mlp_depth) -> None:
    module = build(mlp_depth=mlp_depth).train(training)
    x = tokens()[:, 1:].mT.unflatten(2, (5, 7))
    for number, block in enumerate(module.before):
        x = reference(block, WIDTH if number else VISION)(x)
    x = pooled(x, 2, 3)
    for block in module.after:
        x = reference(block, WIDTH)(x)
    x = x.flatten(2).mT
    for number, layer in enumerate(module.readout):
        x = x * torch.sigmoid(x) if number % 2 else x @ layer.weight.T + layer.bias
    found = module(tokens(), VIEW)
    assert found.shape == (3, 6, LATENT)
    torch.testing.assert_close(found, x)


def test_every_weight_and_patch_gets_a_gradient() -> None:
    module, x = build(), tokens().requires_grad_()
    module(x, VIEW).square().sum().backward()
    assert not x.grad[:, :1].any() and x.grad[:, 1:].abs().amax(2).min() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())


def test_a_shortcut_of_its_own_only_where_the_width_changes() -> None:
    names = build().state_dict()
    assert "before.0.shortcut.weight" in names and "before.1.shortcut.weight" not in names
    settings = CAbstractorSettings(hidden_dim=VISION, depth=1)
    same = recipe("c_abstractor").build(settings, vision_dim=VISION, latent_dimension=3)
    assert not any("shortcut" in name for name in same.state_dict())


def test_squeezed_channels_are_those_of_timm() -> None:
    assert [squeezed(n) for n in (1, 2, 6, 10, 768, 1152)] == [1, 1, 2, 2, 192, 288]


def test_more_rows_than_the_view_has_are_refused() -> None:
    architecture, wide = recipe("c_abstractor"), CAbstractorSettings(rows=5, columns=8)
    assert architecture.grid(CAbstractorSettings(rows=5, columns=7), VIEW) == (5, 7)
    with pytest.raises(ConfigError, match=r"5 rows and 8 columns of tokens, .* 5 × 7 patches"):
        architecture.grid(wide, VIEW)


def test_half_a_layer_at_the_end_is_named() -> None:
    shapes = {name: tuple(t.shape) for name, t in build(mlp_depth=2).state_dict().items()}
    shapes["readout.3.weight"] = (LATENT, LATENT)
    with pytest.raises(ContradictionError, match=r"readout\.3 is the last layer"):
        recipe("c_abstractor").infer(Shapes(shapes))
