from __future__ import annotations

import pytest
import torch

from panovlm.config.schema import Settings
from panovlm.training import workers
from panovlm.training.workers import worker_count


@pytest.mark.parametrize(
    ("cores", "training", "environment", "expected"),
    [
        (2, {}, {}, 1),
        (1, {}, {}, 0),
        (6, {}, {}, 5),
        (64, {}, {}, workers.MOST),
        (12, {}, {"devices": 4}, 2),
        (2, {}, {"devices": 4}, 0),
        (6, {"cache_views": True}, {}, 0),
        (6, {"num_workers": 12}, {}, 12),
        (6, {"num_workers": 0}, {}, 0),
        (6, {"num_workers": 3, "cache_views": True}, {}, 3),
    ],
)
def test_cores_are_shared_out(cores, training, environment, expected, monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    stages = {"stages": ["vision"], "stage_configs": {"vision": {}}}
    given = {"training": {**stages, **training}, "environment": environment}
    assert worker_count(Settings.model_validate(given)) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 3),
        ({"devices": -1, "accelerator": "gpu"}, 3),
        ({"devices": 2}, 7),
        ({"accelerator": "cpu"}, workers.MOST),
    ],
)
def test_every_gpu_of_a_machine_has_its_training_process(environment, expected, monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    stages = {"stages": ["vision"], "stage_configs": {"vision": {}}}
    given = {"training": stages, "environment": environment}
    assert worker_count(Settings.model_validate(given)) == expected
