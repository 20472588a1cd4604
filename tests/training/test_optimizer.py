"""Parameter groups and the learning rate, against formulas and another library."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from panovlm.config.schema import StageConfig
from panovlm.models.mamba.block import MambaMixer
from panovlm.training.optimizer import build_optimizer, build_scheduler, learning_rate_factor

SCHEDULES = st.sampled_from(["cosine", "linear", "constant"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.conv = nn.Conv2d(3, 4, 2)
        self.mixer = MambaMixer(4, expand=2, d_state=3, d_conv=2)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_groups() -> None:
    net = Net()
    optimizer = build_optimizer(net, StageConfig(lr=3e-4, weight_decay=0.25))
    decayed = {
        "linear.weight",
        "conv.weight",
        "mixer.in_proj.weight",
        "mixer.conv1d.weight",
        "mixer.x_proj.weight",
        "mixer.dt_proj.weight",
        "mixer.out_proj.weight",
    }
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = {
        group["weight_decay"]: {names[id(p)] for p in group["params"]}
        for group in optimizer.param_groups
    }
    trained = {name for name, _ in net.named_parameters() if not name.startswith("frozen")}
    assert groups == {0.25: decayed, 0.0: trained - decayed}
    assert {"mixer.A_log", "mixer.D", "norm.weight", "linear.bias"} <= groups[0.0]
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (3e-4, (0.9, 0.98), 1e-8)


def test_a_stage_that_trains_vectors_only() -> None:
    optimizer = build_optimizer(nn.LayerNorm(3), StageConfig())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]


def test_steps_are_those_of_the_paper() -> None:
    """Algorithm 2 of Loshchilov and Hutter, "Decoupled Weight Decay Regularization", in float64."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 3, bias=False)
    lr, decay, (beta1, beta2), eps = 1e-2, 0.25, (0.9, 0.98), 1e-8
    optimizer = build_optimizer(layer, StageConfig(lr=lr, weight_decay=decay))
    weight = layer.weight.detach().double()
    mean = square = torch.zeros_like(weight)
    for step in range(1, 6):
        gradient = torch.randn(3, 5)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        mean = beta1 * mean + (1 - beta1) * gradient.double()
        square = beta2 * square + (1 - beta2) * gradient.double() ** 2
        unbiased = (square / (1 - beta2**step)).sqrt() + eps
        weight = weight - lr * (mean / (1 - beta1**step) / unbiased + decay * weight)
    torch.testing.assert_close(layer.weight.detach().double(), weight, rtol=1e-5, atol=1e-7)


@given(total=st.integers(1, 400), warmup=st.floats(0, 0.99), schedule=SCHEDULES)
def test_factor(total: int, warmup: float, schedule: str) -> None:
    settings = StageConfig.model_validate({"warmup_ratio": warmup, "schedule": schedule})
    factors = [learning_rate_factor(step, total, settings) for step in range(total + 1)]
    rising = math.ceil(total * warmup)
    assert all(0 < factor <= 1 for factor in factors[:total])
    assert factors[:rising] == pytest.approx([(n + 1) / (rising + 1) for n in range(rising)])
    if rising < total:
        assert factors[rising] == 1
        assert factors[total] == pytest.approx(1 if schedule == "constant" else 0, abs=1e-12)
    assert all(a >= b for a, b in zip(factors[rising:], factors[rising + 1 :], strict=False))


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        ("cosine", get_cosine_schedule_with_warmup),
        ("linear", get_linear_schedule_with_warmup),
    ],
)
def test_the_fall_is_that_of_transformers(schedule: str, reference: object) -> None:
    total, warmup = 37, 5
    settings = StageConfig.model_validate(
        {"warmup_ratio": warmup / total, "schedule": schedule, "lr": 0.5}
    )

    def rates(make: object) -> list[float]:
        optimizer = build_optimizer(nn.Linear(2, 2), settings)
        scheduler = make(optimizer)  # type: ignore[operator]
        found: list[float] = []
        for _ in range(total):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    ours = rates(lambda optimizer: build_scheduler(optimizer, settings, total))
    theirs = rates(lambda optimizer: reference(optimizer, warmup, total))  # type: ignore[operator]
    assert ours[warmup:] == pytest.approx(theirs[warmup:])
    assert theirs[0] == 0 < ours[0]  # ours wastes no step


def test_steps_beyond_the_planned_ones_do_not_rise_again() -> None:
    settings = StageConfig(schedule="cosine")
    assert learning_rate_factor(150, 100, settings) == pytest.approx(0, abs=1e-12)


def test_the_scheduler_can_be_saved_with_weights_only(tmp_path: object) -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), StageConfig())
    state = build_scheduler(optimizer, StageConfig(), 10).state_dict()
    path = f"{tmp_path}/state.pt"
    torch.save(state, path)
    assert torch.load(path, weights_only=True) == state
