"""How many processes load panoramas."""

from __future__ import annotations

import os

import torch

from panovlm.config.schema import Environment, Settings

MOST = 8
"""Of each training process; more of them wait for each other's memory more than they load."""


def worker_count(settings: Settings) -> int:
    """Return how many processes load panoramas beside each training process.

    ``auto`` leaves one core to every training process and gives its share of the others to its
    loaders. Views that are kept in memory need no loaders.
    """
    wanted = settings.training.num_workers
    if wanted != "auto":
        return wanted
    if settings.training.cache_views is True:
        return 0
    share = _cores() // _training_processes(settings.environment)
    return min(max(share - 1, 0), MOST)


def _training_processes(environment: Environment) -> int:
    """Return how many processes train on this machine: one for every device."""
    devices = environment.devices
    if isinstance(devices, int) and devices > 0:
        return devices
    on_gpus = environment.accelerator in ("auto", "gpu")
    return max(torch.cuda.device_count(), 1) if on_gpus else 1


def _cores() -> int:
    """Return the cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
