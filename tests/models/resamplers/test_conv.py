"""The convolutional resampler against formulas in float64 and transformers' ConvNeXt stage."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import ConvNextConfig
from transformers.models.convnext.modeling_convnext import ConvNextStage

from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipe
from panovlm.models.resamplers.conv.recipe import ConvSettings
from panovlm.models.vision.grid import ViewGrid

VISION, WIDTH, LATENT = 5, 6, 4
VIEW = ViewGrid(4, 6, extra=2)


def build(**changes) -> torch.nn.Module:
    torch.manual_seed(0)
    settings = ConvSettings(**{"hidden_dim": WIDTH, "depth": 2, "stride": 2, **changes})
    module = recipe("conv").build(settings, vision_dim=VISION, latent_dimension=LATENT)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double().eval()


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, VIEW.count, VISION, dtype=torch.float64, generator=generator)


def norm(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * s[f"{name}.weight"] + s[f"{name}.bias"]


def formula(x: Tensor, s: dict[str, Tensor], stride: int, depth: int) -> Tensor:
    """Channels last, one place of a kernel after the other."""
    grid = norm(x, s, "norm")[:, VIEW.extra :].unflatten(1, (VIEW.rows, VIEW.columns))
    joined = s["downsample.bias"]
    for i in range(stride):
        for j in range(stride):
            joined = joined + grid[:, i::stride, j::stride] @ s["downsample.weight"][:, :, i, j].T
    rows, columns = joined.shape[1:3]
    for n in range(depth):
        layer = {k.removeprefix(f"layers.{n}."): v for k, v in s.items()}
        wide = joined.new_zeros(len(x), rows + 6, columns + 6, joined.shape[3])
        wide[:, 3:-3, 3:-3] = joined
        mixed = layer["dwconv.bias"]
        for i in range(7):
            for j in range(7):
                taps = layer["dwconv.weight"][:, 0, i, j]
                mixed = mixed + wide[:, i : i + rows, j : j + columns] * taps
        y = norm(mixed, layer, "layernorm")
        y = y @ layer["pwconv1.weight"].T + layer["pwconv1.bias"]
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        y = y @ layer["pwconv2.weight"].T + layer["pwconv2.bias"]
        joined = joined + layer["layer_scale_parameter"] * y
    out = norm(joined.flatten(1, 2), s, "final_norm")
    return out @ s["output_proj.weight"].T + s["output_proj.bias"]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("depth", [1, 3])
def test_equals_the_formulas(stride, depth) -> None:
    module = build(stride=stride, depth=depth)
    found = module(tokens(), VIEW)
    assert found.shape == (3, 24 // stride**2, LATENT)
    torch.testing.assert_close(found, formula(tokens(), module.state_dict(), stride, depth))


def test_equals_a_stage_of_convnext() -> None:
    module = build()
    stage = ConvNextStage(ConvNextConfig(), VISION, WIDTH, depth=2)
    names = {"norm": "downsampling_layer.0", "downsample": "downsampling_layer.1"}
    state = {}
    for name, tensor in module.state_dict().items():
        part, _, rest = name.partition(".")
        if part in ("norm", "downsample", "layers"):
            state[f"{names.get(part, part)}.{rest}"] = tensor
    stage.load_state_dict(state)
    pictures = tokens()[:, VIEW.extra :].mT.unflatten(2, (VIEW.rows, VIEW.columns))
    inner = stage.double().eval()(pictures).flatten(2).mT
    torch.testing.assert_close(module(tokens(), VIEW), module.output_proj(module.final_norm(inner)))


def test_every_weight_and_patch_gets_a_gradient() -> None:
    module, x = build(), tokens().requires_grad_()
    module(x, VIEW).square().sum().backward()
    assert not x.grad[:, : VIEW.extra].any()  # they show no place
    assert x.grad[:, VIEW.extra :].abs().amax(2).min() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())


def test_drop_path_is_of_training() -> None:
    module = build(drop_path=0.5)
    assert torch.equal(module(tokens(), VIEW), build()(tokens(), VIEW))
    rates = [
        getattr(layer.drop_path, "drop_prob", 0.0) for layer in build(depth=3, drop_path=0.5).layers
    ]
    assert rates == [0.0, 0.25, 0.5]
    torch.manual_seed(0)
    module.train()
    assert not torch.equal(module(tokens(), VIEW), module(tokens(), VIEW))


def test_windows_must_fill_the_view() -> None:
    architecture = recipe("conv")
    assert architecture.grid(ConvSettings(stride=2), VIEW) == (2, 3)
    with pytest.raises(ConfigError, match=r"stride is 4, which does not divide .* 4 × 6 patches"):
        architecture.grid(ConvSettings(stride=4), VIEW)
