"""Descriptions with one wrong value: those that shapes disprove, and those that leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gauntlet.case import Case, Made
from benchmarks.gauntlet.stock import Stock, document_of, write_run

BESIDE = "One wrong value beside the file"
BOTH = "One wrong value in every description"
RESAMPLER = "models.resampler_config"
TOWER = "models.vision_config"
TEXT = "models.language_config"
VISIBLE: dict[str, tuple[str, Any]] = {
    "hidden width": (f"{RESAMPLER}.hidden_dim", 64),
    "expand": (f"{RESAMPLER}.expand", 2.0),
    "depth": (f"{RESAMPLER}.depth", 3),
    "state size": (f"{RESAMPLER}.d_state", 16),
    "latent width": ("models.latent_dimension", 768),
    "tower layers": (f"{TOWER}.num_hidden_layers", 3),
    "language width": (f"{TEXT}.hidden_size", 48),
    "vocabulary": (f"{TEXT}.vocab_size", 5),
    "untied output layer": (f"{TEXT}.tie_word_embeddings", False),
    "no vision norm": ("models.use_vicreg_norm", False),
    "adapters that are not there": ("lora.use_lora", True),
}
INVISIBLE: dict[str, tuple[str, Any]] = {
    "norm order": (f"{RESAMPLER}.norm_first", False),
    "directions": (f"{RESAMPLER}.directions", "sum"),
    "heads of the tower": (f"{TOWER}.num_attention_heads", 2),
    "activation of the tower": (f"{TOWER}.hidden_act", "relu"),
    "epsilon of the tower": (f"{TOWER}.layer_norm_eps", 1e-2),
    "epsilon of the language model": (f"{TEXT}.rms_norm_eps", 1e-2),
    "activation of the language model": (f"{TEXT}.hidden_act", "relu"),
    "RoPE base": (f"{TEXT}.rope_parameters", {"rope_theta": 50.0, "rope_type": "default"}),
    "overlap of the model": ("models.overlap_ratio", 0.25),
    "overlap of the views": ("image_processing.overlap_ratio", 0.25),
    "field of view": ("image_processing.fov_deg", 60.0),
    "crop strategy": ("image_processing.crop_strategy", "sliding_window"),
    "image mean": ("image_processing.image_mean", [0.485, 0.456, 0.406]),
    "image standard deviation": ("image_processing.image_std", [0.229, 0.224, 0.225]),
    "pixels not normalised": ("image_processing.normalize", False),
    "no positions": ("models.use_projection_positional_encoding", False),
    "spatial positions": ("models.pe_spatial_encoding_type", "none"),
    "base of the positions": ("models.pe_temperature", 100.0),
    "continuity of the positions": ("models.pe_enable_continuity", False),
    "stitching": ("models.stitching_mode", "concat"),
    "rotary positions": ("models.vision_rope", "closed_yaw"),
    "system message": ("system_messages.default", "blue cube"),
}
ADAPTED: dict[str, tuple[str, Any]] = {
    "LoRA alpha": ("lora.alpha", 6.0),
    "LoRA switched off": ("lora.use_lora", False),
    "LoRA rank": ("lora.rank", 8),
    "DoRA instead of LoRA": ("lora.use_dora", True),
}


def case(group: str, name: str, field: str, value: Any, *, both: bool, **settings: Any) -> Case:
    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model(**settings)
        wrong = document_of(model, {field: value})
        everywhere = {"inside": wrong, "hyper": {"recipe": wrong["recipe"]}} if both else {}
        return Made(write_run(model, folder, beside=wrong, **everywhere), model)

    return Case(group, name, make, valid=False)


def cases() -> Iterator[Case]:
    """Yield a wrong value of each field, in the document beside the file and in all of them."""
    for name, (field, value) in {**VISIBLE, **INVISIBLE}.items():
        yield case(BOTH, name, field, value, both=True)
    for name, (field, value) in ADAPTED.items():
        yield case(BOTH, name, field, value, both=True, lora={})
    yield case(BOTH, "heads of the Q-Former", f"{RESAMPLER}.num_attention_heads", 4, both=True,
               resampler="qformer")  # fmt: skip
    yield case(BOTH, "key heads of a Llama", f"{TEXT}.num_key_value_heads", 4, both=True,
               language="llama")  # fmt: skip
    yield case(BOTH, "width of a head of a Llama", f"{TEXT}.head_dim", 12, both=True,
               language="llama")  # fmt: skip
    some = ("hidden width", "expand", "norm order", "overlap of the model", "RoPE base")
    for name in (*some, "image mean", "system message"):
        field, value = {**VISIBLE, **INVISIBLE}[name]
        yield case(BESIDE, name, field, value, both=False)
