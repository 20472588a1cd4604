"""``adapter_config.json``: what PEFT records about adapters, read as settings of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panovlm.checkpoint.find.locate import ADAPTER_CONFIG
from panovlm.checkpoint.formats.jsontext import parse_object
from panovlm.config.legacy import ORIGINAL_DEFAULTS
from panovlm.config.model_recipe import Layout, LoRASettings
from panovlm.errors import CheckpointError

PEFT_DEFAULTS: Mapping[str, Any] = {"lora_alpha": 8, "lora_dropout": 0.0}
"""What PEFT takes for a field that its file does not have; rank and targets show in the weights."""

_FIELDS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_dora": "use_dora",
    "target_modules": "target_modules",
}
_NO_BEARING = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "peft_version", "inference_mode", "revision"),
        *("base_model_name_or_path", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("modules_to_save", "ensure_weight_tying", "use_rslora", "init_lora_weights"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
        *("megatron_config", "megatron_core", "qalora_group_size", "runtime_config"),
        "unsloth_fixed",
    }
)
"""Fields that are read elsewhere, show in the weights, or tell how adapters were trained."""
_BASE_CHANGED = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Beginnings that take something away from the weights they adapt, which PEFT does not save."""


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the contents of a folder's ``adapter_config.json``, empty where there is none.

    Raises:
        CheckpointError: it is no JSON, or describes another kind of adapters than LoRA or DoRA.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return {}
    raw = parse_object(path.read_bytes(), str(path))
    kind = str(raw.get("peft_type", "LORA"))
    # What a field of a later version does is not known, so that only those with a value count.
    plain = {"bias": "none"}
    known = {*_FIELDS, *_NO_BEARING}
    odd = [f"{k}={v!r}" for k, v in raw.items() if v and k not in known and v != plain.get(k)]
    if kind.upper() != "LORA" or odd:
        raise CheckpointError(
            f"{path} describes adapters that are not read here "
            f"({', '.join(odd) if kind.upper() == 'LORA' else kind}); LoRA and DoRA on Linear "
            "layers with one rank and one alpha are. Merge them into the language model with PEFT "
            "(merge_and_unload) and save the checkpoint anew."
        )
    return raw


def lora_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe fields that an ``adapter_config.json`` states.

    Args:
        raw: its contents; empty where there is no such file, and then nothing is stated.
    """
    raw = {**PEFT_DEFAULTS, **raw} if raw else raw
    fields = {f"lora.{ours}": raw.get(theirs) for theirs, ours in _FIELDS.items()}
    if isinstance(fields["lora.target_modules"], str):  # a pattern; the weights show what it met
        del fields["lora.target_modules"]
    if raw.get("use_rslora") and raw.get("r") and raw.get("lora_alpha"):
        # Rank-stabilised LoRA (arXiv:2312.03732) scales by alpha / sqrt(rank).
        fields["lora.alpha"] = raw["lora_alpha"] * math.sqrt(raw["r"])
    return {name: value for name, value in fields.items() if value is not None}


def assumed_alpha(layout: Layout, rank: int) -> float:
    """Return the alpha of adapters of which no document tells it.

    The original system took one number whatever the rank, in its trainer and in its model's own
    settings. Elsewhere alpha is usually twice the rank, as in the defaults of today.

    Args:
        layout: family of the checkpoint.
        rank: of the adapters, from their weights.
    """
    if layout == "original":
        return float(ORIGINAL_DEFAULTS["lora.alpha"])
    usual = LoRASettings()
    return float(usual.alpha / usual.rank * rank)


def require_base_as_named(raw: Mapping[str, Any], path: Path) -> None:
    """Refuse adapters that were made for other weights than those of the model that they name.

    Args:
        raw: their ``adapter_config.json``.
        path: its folder.

    Raises:
        CheckpointError: they took something away from these weights when they were begun.
    """
    began = str(raw.get("init_lora_weights") or "")
    if began.lower().startswith(_BASE_CHANGED):
        raise CheckpointError(
            f"{path / ADAPTER_CONFIG}: init_lora_weights={began!r} changed the weights under the "
            "adapters, and the changed ones are not saved with them. Save the adapters as ordinary "
            "ones (PEFT's path_initial_model_for_weight_conversion), or merge them with "
            "merge_and_unload and save the checkpoint anew."
        )


def trained_modules(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of whole modules that were trained with the adapters."""
    named = raw.get("modules_to_save") or ()
    return (named,) if isinstance(named, str) else tuple(map(str, named))


def base_model(raw: Mapping[str, Any]) -> str:
    """Return the name of the language model that the adapters were made for."""
    return str(raw.get("base_model_name_or_path") or "")
