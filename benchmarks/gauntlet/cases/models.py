"""Right checkpoints of every architecture, in the usual container and with every description."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.gauntlet.case import Case, Made
from benchmarks.gauntlet.stock import TOWERS, Stock, write_run

GROUP = "Models, fully described"
RESAMPLERS: dict[str, dict[str, Any]] = {
    "MLP": {"resampler": "mlp"},
    "MLP, odd sizes": {"resampler": "mlp", "sizes": {"hidden_dim": 37}, "latent_dimension": 33},
    "MLP, 4 layers without LayerNorm": {"resampler": "mlp", "sizes": {"depth": 4, "use_ln": False}},
    "MLP, one layer": {"resampler": "mlp", "sizes": {"depth": 1}},
    "BiMamba": {},
    "BiMamba, expand 1.37 of 33 rounds to 45": {
        "sizes": {"hidden_dim": 33, "expand": 1.37, "d_state": 3, "d_conv": 2, "depth": 1}
    },
    "BiMamba, expand 0.5": {"sizes": {"expand": 0.5}},
    "BiMamba, expand 3.1 of 17": {"sizes": {"hidden_dim": 17, "expand": 3.1}},
    "BiMamba, expand 1.9999 of 48 rounds to 95": {"sizes": {"expand": 1.9999}},
    "BiMamba, norm last": {"sizes": {"norm_first": False}},
    "BiMamba, directions added": {"sizes": {"directions": "sum"}},
    "BiMamba, 12 blocks": {"sizes": {"depth": 12, "hidden_dim": 20}},
    "BiMamba, state 64, 4 taps": {"sizes": {"d_state": 64, "d_conv": 4}},
    "Q-Former": {"resampler": "qformer"},
    "Q-Former, 7 queries, 3 layers": {
        "resampler": "qformer",
        "sizes": {"num_query_tokens": 7, "num_hidden_layers": 3},
    },
    "Q-Former, 4 heads": {"resampler": "qformer", "sizes": {"num_attention_heads": 4}},
    "Q-Former, one query": {"resampler": "qformer", "sizes": {"num_query_tokens": 1}},
}
SIGLIP = TOWERS["siglip"]
BACKBONES: dict[str, dict[str, Any]] = {
    "SigLIP, 2 heads": {"tower": {**SIGLIP, "num_attention_heads": 2}},
    "SigLIP, 5 layers": {"tower": {**SIGLIP, "num_hidden_layers": 5}},
    "SigLIP 2 (NaFlex)": {"tower": "siglip2"},
    "CLIP": {"tower": "clip"},
    "CLIP, GELU": {"tower": {**TOWERS["clip"], "hidden_act": "gelu"}},
    "DINOv2": {"tower": "dinov2"},
    "DINOv2, gated": {"tower": "dinov2, gated"},
    "DINOv2 with registers": {"tower": "dinov2, registers"},
    "DINOv3": {"tower": "dinov3"},
    "DINOv3, gated": {"tower": "dinov3, gated"},
    "Qwen2": {"language": "qwen2"},
    "Qwen3, untied": {"language": "qwen3, untied"},
    "Llama": {"language": "llama"},
    "Gemma 2": {"language": "gemma2"},
    "Gemma 3": {"language": "gemma3"},
}
REST: dict[str, dict[str, Any]] = {
    "no VICReg norm": {"use_vicreg_norm": False},
    "no VICReg head": {"use_vicreg_projector": False},
    "VICReg head of 3 layers without LayerNorm": {
        "vicreg_projector_dim": 20,
        "vicreg_projector_hidden": 28,
        "vicreg_projector_depth": 3,
        "vicreg_projector_ln": False,
    },
    "text projection": {"use_text_projection": True},
    "overlap 0.25": {"overlap_ratio": 0.25, "image": {"overlap_ratio": 0.25}},
    "no positions": {"use_projection_positional_encoding": False},
    "positions, other base, views counted": {
        "pe_temperature": 100.0,
        "pe_enable_continuity": False,
    },
    "stitching concat": {"stitching_mode": "concat"},
    "rotary positions on the loop": {"vision_rope": "closed_yaw"},
    "stitching resample, linear": {"stitching_mode": "resample", "stitch_interp": "linear"},
    "vision tokens at the end": {"vision_token_fallback_position": "suffix"},
    "sliding window": {"image": {"crop_strategy": "sliding_window"}},
    "cubemap": {"image": {"crop_strategy": "cubemap"}},
    "whole panorama": {"image": {"crop_strategy": "resize"}},
    "anyres with a global view": {"image": {"crop_strategy": "anyres", "anyres_max_patches": 4}},
    "field of view 75": {"image": {"fov_deg": 75.0}},
    "own image statistics": {"image": {"image_mean": [0.1, 0.4, 0.7], "image_std": [0.2] * 3}},
    "pixels not normalised": {"image": {"normalize": False}},
    "own system message": {"system": "red ball on the left"},
    "LoRA": {"lora": {}},
    "LoRA, two kinds of layers": {
        "lora": {"rank": 2, "alpha": 5.0, "target_modules": ["q_proj", "up_proj"]}
    },
    "DoRA": {"lora": {"rank": 3, "use_dora": True}},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
}


def case(name: str, settings: dict[str, Any]) -> Case:
    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model(**settings)
        return Made(write_run(model, folder), model)

    return Case(GROUP, name, make, valid=True)


def cases() -> Iterator[Case]:
    """Yield one case for each kind of model."""
    for name, settings in {**RESAMPLERS, **BACKBONES, **REST}.items():
        yield case(name, settings)
