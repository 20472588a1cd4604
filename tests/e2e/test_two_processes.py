"""One stage on two training processes, as on a machine with two GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from panovlm.config.load import load_settings
from panovlm.models.model import PanoramaVLM
from panovlm.training.rundir import LAST
from panovlm.training.state import StateFile


def test_two_processes_train_one_model(experiment: Path, tmp_path: Path) -> None:
    """The Q-Former has parameters without gradient, which plain DDP cannot digest.

    What the frozen tower makes of the panoramas is computed by both, and then read by both.
    """
    runs = f"paths.runs_dir={tmp_path}"
    changes = [
        "environment.devices=2",
        "models.resampler_type=qformer",
        "models.resampler_config={num_query_tokens: 4, num_hidden_layers: 1}",
        "training.stages=[vision]",
        "training.stage_configs.vision.epochs=1",
        "training.stage_configs.vision.trainable={vision_blocks: 0}",
        "training.augment=false",
        "training.cache_features=true",
        f"paths.cache_dir={tmp_path / 'cache'}",
        runs,
    ]
    command = [sys.executable, "-m", "panovlm", "train", "-c"]
    done = subprocess.run(
        [*command, str(experiment / "small.yaml"), *changes],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("stage vision: done") == 1
    assert done.stdout.count("evaluate with: ") == 1
    assert done.stdout.count("features of 10 of 10 panoramas are to be computed") == 1
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 10
    settings = load_settings(experiment / "small.yaml", changes)
    assert StateFile(settings).read().is_completed("vision")
    folder = tmp_path / "small" / "vision" / "anyres-e2p_qformer"
    PanoramaVLM.from_checkpoint(folder, strict=True)
    state = torch.load(folder / LAST, weights_only=True)
    # Eight panoramas in batches of three: two batches for each of the two.
    assert state["global_step"] == 2
    assert len(state["callbacks"]["CheckpointWriter"]["random"]) == 2
