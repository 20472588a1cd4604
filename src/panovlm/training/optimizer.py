"""AdamW with warm-up and a falling learning rate."""

from __future__ import annotations

import math
from typing import Any, cast

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from panovlm.config.schema import StageConfig

BETAS = (0.9, 0.98)
EPS = 1e-8


def build_optimizer(model: nn.Module, settings: StageConfig) -> AdamW:
    """Return AdamW over the trainable parameters, one kernel for all of a step.

    Vectors (biases, norms) are not decayed, nor is a Mamba mixer's ``A_log``, as in mamba-ssm.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim > 1 and not name.endswith(".A_log")
            (decayed if matrix else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    optimizer = AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=BETAS,
        eps=EPS,
        fused=True,
    )
    # The kernel could take gradients as a loss scaler left them; nobody could clip them then, and
    # Lightning refuses to. Without this mark they are scaled back before they are clipped.
    cast(Any, optimizer)._step_supports_amp_scaling = False
    return optimizer


def learning_rate_factor(step: int, total: int, settings: StageConfig) -> float:
    """Return the fraction of the full learning rate at an optimizer step.

    It rises linearly over the first ``warmup_ratio`` of the steps, then falls to zero along half a
    cosine or a line, or stays.

    Args:
        step: optimizer steps done, from 0.
        total: optimizer steps of the stage.
        settings: warm-up and schedule.
    """
    warmup = math.ceil(total * settings.warmup_ratio)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if settings.schedule == "linear" else 1.0


def build_scheduler(optimizer: AdamW, settings: StageConfig, total: int) -> LambdaLR:
    """Return the schedule of a stage with ``total`` optimizer steps."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, total, settings))
