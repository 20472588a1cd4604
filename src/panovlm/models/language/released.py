"""Configuration fields that leave no trace in a language model's weights, and what to assume."""

from __future__ import annotations

from typing import Any, NamedTuple


class Sizes(NamedTuple):
    """The shapes that tell a released model from others of its family."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    query_rows: int
    """Output rows of ``q_proj``: query heads × head width."""
    key_rows: int
    """Output rows of ``k_proj`` and ``v_proj``: key-value heads × head width."""


def assume(sizes: Sizes) -> tuple[str | None, dict[str, Any]]:
    """Return what to assume about a language model, for want of its configuration.

    A model with the sizes of a released one is taken for it. Any other gets the defaults of
    transformers, and as head width the one usual in its family: 64 up to a hidden size of 1024
    (Qwen2) or 2048 (Llama), 128 above; or, where that does not divide the key rows, the largest
    power of two that does.

    Returns:
        The name of the released model (None: there is none) and the assumed fields, with
        ``head_dim``, ``num_attention_heads`` and ``num_key_value_heads`` among them.
    """
    released, fields = _RELEASED.get(sizes, (None, _DEFAULTS[sizes.model_type]))
    assumed = dict(fields)
    head_dim = assumed.setdefault("head_dim", _usual_head_dim(sizes))
    assumed["num_attention_heads"] = sizes.query_rows // head_dim
    assumed["num_key_value_heads"] = sizes.key_rows // head_dim
    return released, assumed


def _usual_head_dim(sizes: Sizes) -> int:
    narrow = 2048 if sizes.model_type == "llama" else 1024
    power_of_two = sizes.key_rows & -sizes.key_rows
    return min(64 if sizes.hidden_size <= narrow else 128, power_of_two)


def _fields(
    theta: float, eps: float, positions: int, head_dim: int | None = None, **scaling: Any
) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": theta, **scaling}
    found = {
        "rope_parameters": rope,
        "rms_norm_eps": eps,
        "max_position_embeddings": positions,
        "hidden_act": "silu",
    }
    return found if head_dim is None else {**found, "head_dim": head_dim}


_DEFAULTS = {
    "qwen2": _fields(1e4, 1e-6, 32768),
    "qwen3": _fields(1e4, 1e-6, 32768),
    "llama": _fields(1e4, 1e-6, 2048),
}
"""Defaults of the configuration classes of transformers 5."""

_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}

# From the config.json of the models. Sizes shared by models with different fields (Qwen3-4B and
# its 2507 edition, Llama-3-8B and Mistral-7B) are left out on purpose.
_RELEASED: dict[Sizes, tuple[str, dict[str, Any]]] = {
    Sizes("qwen2", 896, 4864, 24, 896, 128): (
        "Qwen2.5-0.5B",
        _fields(1e6, 1e-6, 32768, head_dim=64),
    ),
    Sizes("qwen2", 1536, 8960, 28, 1536, 256): (
        "Qwen2.5-1.5B",
        _fields(1e6, 1e-6, 32768, head_dim=128),
    ),
    Sizes("qwen2", 2048, 11008, 36, 2048, 256): (
        "Qwen2.5-3B",
        _fields(1e6, 1e-6, 32768, head_dim=128),
    ),
    Sizes("qwen2", 3584, 18944, 28, 3584, 512): (
        "Qwen2.5-7B",
        _fields(1e6, 1e-6, 32768, head_dim=128),
    ),
    Sizes("qwen3", 1024, 3072, 28, 2048, 1024): (
        "Qwen3-0.6B",
        _fields(1e6, 1e-6, 40960, head_dim=128),
    ),
    Sizes("qwen3", 2048, 6144, 28, 2048, 1024): (
        "Qwen3-1.7B",
        _fields(1e6, 1e-6, 40960, head_dim=128),
    ),
    Sizes("llama", 2048, 8192, 16, 2048, 512): (
        "Llama-3.2-1B",
        _fields(5e5, 1e-5, 131072, head_dim=64, **_LLAMA3_SCALING),
    ),
    Sizes("llama", 3072, 8192, 28, 3072, 1024): (
        "Llama-3.2-3B",
        _fields(5e5, 1e-5, 131072, head_dim=128, **_LLAMA3_SCALING),
    ),
}
