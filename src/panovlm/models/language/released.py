"""Released language models by their sizes, and what to assume of fields that leave no trace.

The sizes and fields are those of the models' published configurations.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Sizes(NamedTuple):
    """The shapes that tell a released model from others of its family."""

    model_type: str
    """Family whose tensor names these are."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    query_rows: int
    """Output rows of ``q_proj``: query heads × head width."""
    key_rows: int
    """Output rows of ``k_proj`` and ``v_proj``: key-value heads × head width."""


class Assumption(NamedTuple):
    """What is assumed about a language model for want of its configuration."""

    fields: dict[str, Any]
    """With ``head_dim``, ``num_attention_heads`` and ``num_key_value_heads`` among them."""
    candidates: tuple[str, ...]
    """Released models that have these sizes, the likeliest first; its fields are assumed."""
    disputed: tuple[str, ...]
    """Fields in which the candidates differ."""


def assume(sizes: Sizes) -> Assumption:
    """Return what to assume about a language model.

    A model with the sizes of a released one is taken for it. Any other gets the defaults of
    transformers, and as head width the one usual in its family: 256 for Gemma, 64 up to a hidden
    size of 1024 (Qwen2) or 2048 (Llama), 128 above; or, where that does not divide the key rows,
    the largest power of two that does.
    """
    released = _RELEASED.get(sizes, {})
    likeliest = next(iter(released.values()), _DEFAULTS[sizes.model_type])
    disputed = {
        field
        for other in released.values()
        for field in likeliest | other
        if likeliest.get(field) != other.get(field)
    }
    fields = dict(likeliest)
    head_dim = fields.setdefault("head_dim", _usual_head_dim(sizes))
    fields["num_attention_heads"] = sizes.query_rows // head_dim
    fields["num_key_value_heads"] = sizes.key_rows // head_dim
    return Assumption(fields, tuple(released), tuple(sorted(disputed)))


def _usual_head_dim(sizes: Sizes) -> int:
    power_of_two = sizes.key_rows & -sizes.key_rows
    if sizes.model_type.startswith("gemma"):
        return min(256, power_of_two)
    narrow = 2048 if sizes.model_type == "llama" else 1024
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


def _gemma() -> dict[str, Any]:
    return {
        **_fields(1e4, 1e-6, 8192, head_dim=256),
        "model_type": "gemma",
        "hidden_act": "gelu_pytorch_tanh",
    }


def _gemma2(head_dim: int | None = None, query_scalar: int = 256) -> dict[str, Any]:
    fields = _fields(1e4, 1e-6, 8192, head_dim)
    del fields["hidden_act"]
    return {
        **fields,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": query_scalar,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }


def _gemma3(window: int, query_scalar: int = 256, **scaling: Any) -> dict[str, Any]:
    everywhere = {"rope_type": "default", "rope_theta": 1e6, **scaling}
    return {
        "rope_parameters": {
            "full_attention": everywhere,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072 if scaling or window > 512 else 32768,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": query_scalar,
        "sliding_window": window,
    }


_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
_LINEAR: dict[str, Any] = {"rope_type": "linear", "factor": 8.0}

_DEFAULTS = {
    "qwen2": _fields(1e4, 1e-6, 32768),
    "qwen3": _fields(1e4, 1e-6, 32768),
    "llama": _fields(1e4, 1e-6, 2048),
    "gemma2": _gemma2(),
    "gemma3_text": _gemma3(4096),
}
"""Defaults of the configuration classes of transformers 5."""

_QWEN2 = _fields(1e6, 1e-6, 32768, head_dim=128)
_QWEN2_LARGE = _fields(1e6, 1e-5, 32768, head_dim=128)
_QWEN2_MATH = _fields(1e4, 1e-6, 4096, head_dim=128)
_QWEN3 = _fields(1e6, 1e-6, 40960, head_dim=128)
_QWEN3_2507 = _fields(5e6, 1e-6, 262144, head_dim=128)
_SMOLLM2 = _fields(1e5, 1e-5, 8192, head_dim=64)
_SMOLLM = _fields(1e4, 1e-5, 2048, head_dim=64)

_RELEASED: dict[Sizes, dict[str, dict[str, Any]]] = {
    Sizes("qwen2", 896, 4864, 24, 896, 128): {
        "Qwen2.5-0.5B": _fields(1e6, 1e-6, 32768, head_dim=64)
    },
    Sizes("qwen2", 1536, 8960, 28, 1536, 256): {
        "Qwen2.5-1.5B": _QWEN2,
        "Qwen2.5-Math-1.5B": _QWEN2_MATH,
    },
    Sizes("qwen2", 2048, 11008, 36, 2048, 256): {"Qwen2.5-3B": _QWEN2},
    Sizes("qwen2", 3584, 18944, 28, 3584, 512): {
        "Qwen2.5-7B": _QWEN2,
        "Qwen2.5-Math-7B": _QWEN2_MATH,
    },
    Sizes("qwen2", 5120, 13824, 48, 5120, 1024): {"Qwen2.5-14B": _QWEN2_LARGE},
    Sizes("qwen2", 5120, 27648, 64, 5120, 1024): {"Qwen2.5-32B": _QWEN2_LARGE},
    Sizes("qwen3", 1024, 3072, 28, 2048, 1024): {"Qwen3-0.6B": _QWEN3},
    Sizes("qwen3", 2048, 6144, 28, 2048, 1024): {"Qwen3-1.7B": _QWEN3},
    Sizes("qwen3", 2560, 9728, 36, 4096, 1024): {
        "Qwen3-4B": _QWEN3,
        "Qwen3-4B-2507": _QWEN3_2507,
    },
    Sizes("qwen3", 4096, 12288, 36, 4096, 1024): {"Qwen3-8B": _QWEN3},
    Sizes("qwen3", 5120, 17408, 40, 5120, 1024): {"Qwen3-14B": _QWEN3},
    Sizes("qwen3", 5120, 25600, 64, 8192, 1024): {"Qwen3-32B": _QWEN3},
    Sizes("llama", 2048, 8192, 16, 2048, 512): {
        "Llama-3.2-1B": _fields(5e5, 1e-5, 131072, head_dim=64, **_LLAMA3, factor=32.0)
    },
    Sizes("llama", 3072, 8192, 28, 3072, 1024): {
        "Llama-3.2-3B": _fields(5e5, 1e-5, 131072, head_dim=128, **_LLAMA3, factor=32.0)
    },
    Sizes("llama", 4096, 14336, 32, 4096, 1024): {
        "Llama-3.1-8B": _fields(5e5, 1e-5, 131072, head_dim=128, **_LLAMA3, factor=8.0),
        "Llama-3-8B": _fields(5e5, 1e-5, 8192, head_dim=128),
        "Mistral-7B-v0.3": {**_fields(1e6, 1e-5, 32768, head_dim=128), "model_type": "mistral"},
    },
    Sizes("llama", 576, 1536, 30, 576, 192): {"SmolLM2-135M": _SMOLLM2, "SmolLM-135M": _SMOLLM},
    Sizes("llama", 960, 2560, 32, 960, 320): {"SmolLM2-360M": _SMOLLM2, "SmolLM-360M": _SMOLLM},
    Sizes("llama", 2048, 8192, 24, 2048, 2048): {
        "SmolLM2-1.7B": _fields(1.3e5, 1e-5, 8192, head_dim=64),
        "SmolLM-1.7B": _SMOLLM,
    },
    Sizes("llama", 2048, 16384, 18, 2048, 256): {"Gemma-2B": _gemma()},
    Sizes("llama", 3072, 24576, 28, 4096, 4096): {"Gemma-7B": _gemma()},
    Sizes("gemma2", 2304, 9216, 26, 2048, 1024): {"Gemma-2-2B": _gemma2(256)},
    Sizes("gemma2", 3584, 14336, 42, 4096, 2048): {"Gemma-2-9B": _gemma2(256)},
    Sizes("gemma2", 4608, 36864, 46, 4096, 2048): {"Gemma-2-27B": _gemma2(128, 144)},
    Sizes("gemma3_text", 640, 2048, 18, 1024, 256): {"Gemma-3-270M": _gemma3(512)},
    Sizes("gemma3_text", 1152, 6912, 26, 1024, 256): {"Gemma-3-1B": _gemma3(512)},
    Sizes("gemma3_text", 2560, 10240, 34, 2048, 1024): {"Gemma-3-4B": _gemma3(1024, **_LINEAR)},
    Sizes("gemma3_text", 3840, 15360, 48, 4096, 2048): {"Gemma-3-12B": _gemma3(1024, **_LINEAR)},
    Sizes("gemma3_text", 5376, 21504, 62, 4096, 2048): {
        "Gemma-3-27B": _gemma3(1024, 168, **_LINEAR)
    },
}
"""Released models by their sizes, the likeliest backbone first where several share them.

The entries of Qwen3-4B-2507, the first SmolLM, Mistral and Gemma-3-270M were not compared with the
files that these models were published with.
"""
