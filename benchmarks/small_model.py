"""A small untrained model with its tokenizer, for benchmarks that need a real checkpoint."""

from __future__ import annotations

from typing import Any

import torch

from panovlm.config.schema import Settings
from panovlm.models.assemble import new_model
from panovlm.models.model import PanoramaVLM

TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 32,
    "patch_size": 8,
}
LANGUAGE = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}


TEXT = (
    "what is left of the red ball ? is the green blue yellow house behind you in front of you to "
    "your left and near the door above the table"
)
"""Words that its tokenizer knows."""


def small_model(seed: int = 0, **models: Any) -> PanoramaVLM:
    """Build it; ``models`` are settings laid over those of the block of that name."""
    torch.manual_seed(seed)
    settings = Settings.model_validate(
        {
            "models": {
                "vision_config": TOWER,
                "language_config": LANGUAGE,
                "resampler_type": "bimamba",
                "resampler_config": {"hidden_dim": 48, "depth": 2, "d_state": 8},
                "latent_dimension": 40,
                **models,
            },
            "training": {"stage_configs": {s: {} for s in ("vision", "resampler", "finetune")}},
        }
    )
    return new_model(settings, [TEXT]).eval()
