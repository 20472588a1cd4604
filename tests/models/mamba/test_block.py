"""The mixer against transformers' implementation, its names, shapes and initial values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer as ReferenceMixer

from panovlm.models.mamba.block import MambaMixer


def reference_of(mixer: MambaMixer, d_model: int, d_state: int, d_conv: int) -> ReferenceMixer:
    config = MambaConfig(hidden_size=d_model, state_size=d_state, conv_kernel=d_conv)
    config.intermediate_size = len(mixer.D)  # its own `expand` must be an integer
    reference = ReferenceMixer(config, layer_idx=0)
    reference.load_state_dict(mixer.state_dict())
    return reference


def randomise(module: nn.Module) -> None:
    """Move every parameter off its initial value, so that none is idle."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


@pytest.mark.parametrize(
    ("d_model", "expand", "d_state", "d_conv", "length"),
    [(24, 1.75, 8, 4, 37), (20, 2.0, 5, 2, 16), (17, 1.3, 4, 3, 1), (8, 0.5, 3, 1, 5)],
)
def test_equals_transformers(backend, d_model, expand, d_state, d_conv, length) -> None:
    mixer = MambaMixer(d_model, expand=expand, d_state=d_state, d_conv=d_conv)
    randomise(mixer)
    reference = reference_of(mixer, d_model, d_state, d_conv)
    x = torch.randn(3, length, d_model, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    output, expected = mixer(x), reference(other)
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-5)
    theirs = dict(reference.named_parameters())
    for name, parameter in mixer.named_parameters():
        scale = theirs[name].grad.abs().max().item()
        torch.testing.assert_close(
            parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-5 * scale, msg=name
        )


@pytest.mark.parametrize("loop", [None, 3])
@pytest.mark.parametrize("d_conv", [1, 4])
def test_reverse_is_the_mixer_of_turned_sequences(loop, d_conv) -> None:
    """Loops change their order as a whole: the last step of the last sequence comes first."""
    mixer = MambaMixer(8, expand=1.5, d_state=3, d_conv=d_conv).double()
    randomise(mixer)
    x = torch.randn(6, 5, 8, dtype=torch.float64)
    axes = (1,) if loop is None else (0, 1)
    expected = mixer(x.flip(axes), loop).flip(axes)
    torch.testing.assert_close(mixer(x, loop, reverse=True), expected)


def test_parameter_names_and_shapes_are_those_of_mamba_ssm() -> None:
    mixer = MambaMixer(50, expand=1.99, d_state=6, d_conv=3)  # 99.5 -> 99, 50 / 16 -> 4
    assert {name: tuple(p.shape) for name, p in mixer.state_dict().items()} == {
        "A_log": (99, 6),
        "D": (99,),
        "in_proj.weight": (198, 50),
        "conv1d.weight": (99, 1, 3),
        "conv1d.bias": (99,),
        "x_proj.weight": (4 + 12, 99),
        "dt_proj.weight": (99, 4),
        "dt_proj.bias": (99,),
        "out_proj.weight": (50, 99),
    }


def assert_initialised(mixer: MambaMixer) -> None:
    inner, n = mixer.A_log.shape
    decay = torch.exp(mixer.A_log.detach())
    torch.testing.assert_close(decay, torch.arange(1.0, n + 1).expand(inner, n))
    assert torch.equal(mixer.D.detach(), torch.ones(inner))
    bound = mixer.dt_rank**-0.5
    assert mixer.dt_proj.weight.abs().max() <= bound
    assert mixer.dt_proj.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    steps = nn.functional.softplus(mixer.dt_proj.bias.detach()).log10().sort().values
    assert steps[0] >= -3 - 1e-3
    assert steps[-1] <= -1 + 1e-3
    uniform = torch.linspace(-3, -1, inner)
    assert (steps - uniform).abs().max() < 0.2  # log-uniform: the quantiles lie on a line
    for name in ("in_proj", "x_proj", "out_proj", "conv1d"):
        weight = getattr(mixer, name).weight
        fan_in = weight[0].numel()
        assert weight.abs().max() <= fan_in**-0.5
        assert weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)


def test_initial_values_are_those_of_mamba_ssm() -> None:
    torch.manual_seed(0)
    assert_initialised(MambaMixer(256, expand=2.0, d_state=4, d_conv=4))


def test_a_build_on_meta_can_be_initialised_later() -> None:
    with torch.device("meta"):
        mixer = MambaMixer(256, expand=2.0, d_state=4, d_conv=4)
    mixer.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.fill_(float("nan"))
    torch.manual_seed(0)
    mixer.reset_parameters()
    assert_initialised(mixer)


def test_half_precision_stays_close() -> None:
    mixer = MambaMixer(32, expand=1.75, d_state=16, d_conv=4)
    x = torch.randn(2, 20, 32, generator=torch.Generator().manual_seed(0))
    expected = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = mixer(x)
    assert mixed.dtype == torch.bfloat16
    scale = expected.abs().max().item()
    torch.testing.assert_close(mixed.float(), expected, rtol=0, atol=0.03 * scale)
    mixed.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())
    half = mixer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.03 * scale)
