"""``adapter_config.json``: what PEFT records about adapters, read as settings of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panovlm.checkpoint.formats.jsontext import parse_object
from panovlm.checkpoint.locate import ADAPTER_CONFIG
from panovlm.errors import CheckpointError

_PLAIN: Mapping[str, Any] = {
    "bias": "none",
    "use_dora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "alpha_pattern": {},
    "rank_pattern": {},
}
"""Fields with the one value under which adapters are plain LoRA."""
_FIELDS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "target_modules",
}


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the contents of a folder's ``adapter_config.json``, empty where there is none.

    Raises:
        CheckpointError: it is no JSON, or describes another kind of adapters than plain LoRA.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return {}
    raw = parse_object(path.read_bytes(), str(path))
    kind = str(raw.get("peft_type", "LORA"))
    odd = [f"{k}={raw[k]!r}" for k, plain in _PLAIN.items() if raw.get(k) and raw[k] != plain]
    if kind.upper() != "LORA" or odd:
        raise CheckpointError(
            f"{path} describes adapters that are not read here "
            f"({', '.join(odd) if kind.upper() == 'LORA' else kind}); LoRA on Linear layers with "
            "one rank and one alpha is. Merge them into the language model with PEFT "
            "(merge_and_unload) and save the checkpoint anew."
        )
    return raw


def lora_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe fields that an ``adapter_config.json`` states."""
    fields = {f"lora.{ours}": raw.get(theirs) for theirs, ours in _FIELDS.items()}
    if isinstance(fields["lora.target_modules"], str):  # a pattern; the weights show what it met
        del fields["lora.target_modules"]
    if raw.get("use_rslora") and raw.get("r") and raw.get("lora_alpha"):
        # Rank-stabilised LoRA (arXiv:2312.03732) scales by alpha / sqrt(rank).
        fields["lora.alpha"] = raw["lora_alpha"] * math.sqrt(raw["r"])
    return {name: value for name, value in fields.items() if value is not None}


def base_model(raw: Mapping[str, Any]) -> str:
    """Return the name of the language model that the adapters were made for."""
    return str(raw.get("base_model_name_or_path") or "")
