"""Training in bfloat16 all through: every stage opens what the one before has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from panovlm.models.model import PanoramaVLM
from panovlm.training.run import train


def test_bf16_true(make_settings: Any, tmp_path: Path) -> None:
    settings = make_settings(
        tmp_path,
        "environment.precision=bf16-true",
        "models.vision_rope=closed_yaw",
        "training.stages=[vision,finetune]",
        "training.stage_configs.vision.epochs=1",
    )
    model = PanoramaVLM.from_checkpoint(train(settings), strict=True)
    assert {p.dtype for p in model.vision_backbone.parameters()} == {torch.bfloat16}
    assert model.resolution is not None and model.resolution.embedded is not None
    assert model.resolution.embedded.probe is not None
