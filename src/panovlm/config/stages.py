"""Names of the training stages."""

from __future__ import annotations

STAGES = ("vision", "resampler", "finetune")
"""Training stages in their natural order."""

STAGE_ALIASES = {
    "vision_pretraining": "vision",
    "vision_pretrain": "vision",
    "joint_vision_resampler": "vision",
    "joint_resampler": "vision",
    "resampler_training": "resampler",
    "instruction_tuning": "finetune",
    "instruction_tune": "finetune",
    "final_finetune": "finetune",
}
"""Older names of the stages."""
