"""States of the random generators that training draws from, as part of a checkpoint.

Only torch's are drawn from (dropout): order and jitter of the samples follow from the seed and the
position alone, see :mod:`panovlm.data.loader`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


def random_state(device: torch.device) -> list[dict[str, Any]]:
    """Return the generators' states of every training process, in the order of their ranks.

    All processes must call it together.

    Args:
        device: where this process trains.
    """
    own: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        own[device.type] = _generators(device).get_rng_state()
    if not _is_distributed():
        return [own]
    states: list[dict[str, Any]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(states, own)
    return states


def set_random_state(states: list[dict[str, Any]], device: torch.device) -> None:
    """Put this process's generators into a state of :func:`random_state`.

    A state that was taken on another kind of device is used as far as it goes.

    Args:
        states: of all training processes.
        device: where this process trains.
    """
    own = states[distributed.get_rank() if _is_distributed() else 0]
    torch.set_rng_state(own["cpu"].cpu())
    if device.type != "cpu" and device.type in own:
        _generators(device).set_rng_state(own[device.type].cpu())


def _generators(device: torch.device) -> Any:
    """Return torch's module for a kind of device; its functions are about the current one."""
    return torch.get_device_module(device)


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
