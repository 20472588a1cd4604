"""What a vision tower's tensor names and shapes tell about its configuration.

Names are those below ``vision_backbone.encoder.``; :func:`current_names` translates those of older
transformers versions. Each family of towers says which names it has
and lacks, reads its observable sizes, and lists what no shape can show (heads, activation, norm
epsilon) with the value that its published models have. No torch is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from typing import Any

from panovlm.checkpoint.shapes import Observations, Shapes
from panovlm.errors import CheckpointError, ContradictionError
from panovlm.models.vision.released import published

_DINOV2_ATTENTION = re.compile(
    r"^(encoder\.layer\.\d+\.attention)\.(attention\.query|attention\.key|attention\.value|"
    r"output\.dense)\.(weight|bias)$"
)
_DINOV2_NOW = {
    "attention.query": "q_proj",
    "attention.key": "k_proj",
    "attention.value": "v_proj",
    "output.dense": "o_proj",
}

_DINOV2_SWIGLU = re.compile(
    r"^(encoder\.layer\.\d+\.mlp)\.(weights_in|weights_out)\.(weight|bias)$"
)
_SWIGLU_NOW = {"weights_in": ("gate_proj", "up_proj"), "weights_out": ("down_proj",)}


def current_names(name: str) -> tuple[str, ...]:
    """Return today's names of a tower tensor.

    transformers 5 renamed parts of DINOv2, and cut the fused matrix of its SwiGLU variant in two;
    the names of SigLIP and CLIP are the same in both.

    Args:
        name: tensor name below the tower, as transformers 4.x or 5.x writes it.

    Returns:
        The name in the installed transformers. Several names are those of equal parts of the
        tensor, cut along its first axis, in this order.
    """
    attention, mlp = _DINOV2_ATTENTION.match(name), _DINOV2_SWIGLU.match(name)
    if attention:
        return (f"{attention[1]}.{_DINOV2_NOW[attention[2]]}.{attention[3]}",)
    if mlp:
        return tuple(f"{mlp[1]}.{today}.{mlp[3]}" for today in _SWIGLU_NOW[mlp[2]])
    return (name,)


@dataclass(frozen=True)
class TowerInference:
    """A tower's configuration as far as its tensors show it."""

    family: str
    """``model_type`` of the Hugging Face configuration."""
    observed: Observations
    """Fields that shapes give. Of the image sizes with the observed grid of patches,
    ``image_size`` is the published or else the smallest one (384 and 378 both have 27 patches
    of 14 pixels); a recorded size with the same grid is no contradiction."""
    assumed: dict[str, Any]
    """Fields that no shape gives, with the value of the family's published models."""
    candidates: tuple[str, ...]
    """Published towers that have these sizes."""


@dataclass(frozen=True)
class TowerFamily:
    """One kind of tower: how to recognise it and how to read it."""

    model_type: str
    has: tuple[str, ...]
    lacks: tuple[str, ...]
    patches: str
    """Name of the patch embedding's weight."""
    patch_rank: int
    """Its number of dimensions: 4 for a convolution, 2 for a matrix on flattened patches."""
    read: Callable[[Shapes, Observations], None]
    hidden_act: str
    layer_norm_eps: float

    def missing(self, shapes: Shapes) -> list[str]:
        """Return why ``shapes`` is not of this family (empty: it is)."""
        reasons = [f"{name} is absent" for name in self.has if name not in shapes]
        reasons += [f"{name} is present" for name in self.lacks if name in shapes]
        if self.patches in shapes and len(shapes[self.patches]) != self.patch_rank:
            reasons.append(
                f"{self.patches} has {len(shapes[self.patches])} dimensions, not {self.patch_rank}"
            )
        return reasons

    def assume(self, hidden_size: int) -> dict[str, Any]:
        """Return the fields that shapes cannot tell, as published models of this width have them.

        Heads are 64 channels wide in nearly all of them; the exceptions stand in ``_PUBLISHED``.
        Where 64 does not divide the width, the number of heads is taken whose width comes
        nearest to 64.
        """
        return {
            "num_attention_heads": _heads(hidden_size),
            "hidden_act": self.hidden_act,
            "layer_norm_eps": self.layer_norm_eps,
            **_PUBLISHED.get((self.model_type, hidden_size), {}),
        }


_PUBLISHED: dict[tuple[str, int], dict[str, Any]] = {
    ("siglip_vision_model", 1152): {"num_attention_heads": 16},  # So400m
    ("siglip_vision_model", 1536): {"num_attention_heads": 16},  # SigLIP 2 giant
    ("siglip2_vision_model", 1152): {"num_attention_heads": 16},  # So400m NaFlex
    ("clip_vision_model", 1280): {"num_attention_heads": 16, "hidden_act": "gelu"},  # ViT-H
    ("clip_vision_model", 1408): {"num_attention_heads": 16, "hidden_act": "gelu"},  # ViT-g
    ("clip_vision_model", 1664): {"num_attention_heads": 16, "hidden_act": "gelu"},  # ViT-bigG
}
"""Published widths that do not follow their family's rule."""

_PUBLISHED_SIZES = {(14, 27): 384}
"""Image size by (patch, patches per side) where it is no multiple of the patch: SigLIP So400m."""


def _heads(hidden_size: int) -> int:
    divisors = (n for n in range(1, hidden_size + 1) if hidden_size % n == 0)
    return min(divisors, key=lambda heads: abs(hidden_size / heads - 64))


def infer_tower(shapes: Shapes) -> TowerInference:
    """Read a tower's configuration off its tensors.

    Args:
        shapes: the subtree ``vision_backbone.encoder.``, under today's names.

    Raises:
        CheckpointError: no known family has these names; the nearest one and what it misses are
            named.
        ContradictionError: two families claim the names, or the tensors do not fit together.
    """
    reasons = {family.model_type: family.missing(shapes) for family in FAMILIES}
    matches = [family for family in FAMILIES if not reasons[family.model_type]]
    if len(matches) > 1:
        raise ContradictionError(
            f"{shapes.prefix}* fits several vision towers: "
            f"{', '.join(family.model_type for family in matches)}. Say which one it is with "
            "models.vision_config."
        )
    if not matches:
        nearest = min(reasons, key=lambda name: len(reasons[name]))
        raise CheckpointError(
            f"{shapes.prefix}* is no known vision tower ({', '.join(reasons)}). The nearest is "
            f"{nearest}, but {'; '.join(reasons[nearest][:4])}. Give the tower's Hugging Face "
            "configuration as models.vision_config."
        )
    family = matches[0]
    seen = Observations(shapes)
    family.read(shapes, seen)
    assumed = family.assume(seen["hidden_size"].value)
    return TowerInference(family.model_type, seen, assumed, published(family.model_type, seen))


def _grid(shapes: Shapes, positions: int, name: str) -> int:
    """Return the patches per side of a square grid."""
    side = isqrt(positions)
    if side * side != positions:
        raise CheckpointError(
            f"{shapes.prefix}{name} holds {positions} patch positions, which form no square, so "
            "the image size cannot be read off. Give the tower's Hugging Face configuration as "
            "models.vision_config."
        )
    return side


def _read_patches(shapes: Shapes, seen: Observations, name: str) -> tuple[int, int]:
    """Read a convolutional patch embedding; return (hidden_size, patch_size)."""
    hidden, channels, patch = (shapes.dim(name, axis) for axis in range(3))
    shapes.take_reads()
    seen.add("hidden_size", shapes.dim(name, 0))
    seen.add("num_channels", shapes.dim(name, 1))
    seen.add("patch_size", shapes.dim(name, 2))
    shapes.require(name, (hidden, channels, patch, patch), "hidden × channels × square patch")
    return hidden, patch


def _read_clip_blocks(shapes: Shapes, seen: Observations, hidden: int) -> None:
    """Read the encoder that SigLIP and CLIP share."""
    seen.add("num_hidden_layers", shapes.count("encoder.layers"))
    layer = "encoder.layers.0."
    inner = shapes.dim(layer + "mlp.fc1.weight", 0)
    seen.add("intermediate_size", inner)
    shapes.require(layer + "mlp.fc1.weight", (inner, hidden), "intermediate × hidden")
    shapes.require(layer + "mlp.fc2.weight", (hidden, inner), "hidden × intermediate")
    shapes.require(layer + "self_attn.q_proj.weight", (hidden, hidden), "hidden × hidden")


def _read_siglip(shapes: Shapes, seen: Observations) -> None:
    hidden, patch = _read_patches(shapes, seen, "embeddings.patch_embedding.weight")
    table = "embeddings.position_embedding.weight"
    positions = shapes.dim(table, 0)
    grid = _grid(shapes, positions, table)
    size = _PUBLISHED_SIZES.get((patch, grid), grid * patch)
    seen.add("image_size", size, f"{grid} patches of {patch} a side")
    shapes.require(table, (positions, hidden), "positions × hidden")
    _read_clip_blocks(shapes, seen, hidden)
    seen.add("vision_use_head", shapes.has("head.probe"))


def _read_siglip_naflex(shapes: Shapes, seen: Observations) -> None:
    matrix, table = "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"
    hidden = shapes.dim(matrix, 0)
    seen.add("hidden_size", hidden)
    patch = isqrt(shapes.dim(matrix, 1) // 3)
    seen.add("patch_size", patch, "square patches of 3 channels")
    seen.add("num_channels", shapes.dim(matrix, 1) // (patch * patch), "of these patches")
    shapes.require(matrix, (hidden, 3 * patch * patch), "hidden × flattened patch of 3 channels")
    positions = shapes.dim(table, 0)
    seen.add("num_patches", positions)
    shapes.require(table, (positions, hidden), "positions × hidden")
    _read_clip_blocks(shapes, seen, hidden)
    seen.add("vision_use_head", shapes.has("head.probe"))


def _read_clip(shapes: Shapes, seen: Observations) -> None:
    hidden, patch = _read_patches(shapes, seen, "embeddings.patch_embedding.weight")
    table = "embeddings.position_embedding.weight"
    positions = shapes.dim(table, 0)
    grid = _grid(shapes, positions - 1, table)
    seen.add("image_size", grid * patch, f"class token + {grid} patches of {patch} a side")
    shapes.require(table, (positions, hidden), "positions × hidden")
    shapes.require("embeddings.class_embedding", (hidden,), "hidden")
    _read_clip_blocks(shapes, seen, hidden)


def _read_dinov2(shapes: Shapes, seen: Observations) -> None:
    hidden, patch = _read_patches(shapes, seen, "embeddings.patch_embeddings.projection.weight")
    table = "embeddings.position_embeddings"
    positions = shapes.dim(table, 1)
    grid = _grid(shapes, positions - 1, table)
    seen.add("image_size", grid * patch, f"class token + {grid} patches of {patch} a side")
    shapes.require(table, (1, positions, hidden), "1 × positions × hidden")
    if _REGISTERS in shapes:
        seen.add("num_register_tokens", shapes.dim(_REGISTERS, 1))
    else:  # towers with registers always have a mask token
        seen.add("use_mask_token", shapes.has("embeddings.mask_token"))
    seen.add("num_hidden_layers", shapes.count("encoder.layer"))
    layer = "encoder.layer.0."
    query = layer + "attention.q_proj."
    shapes.require(query + "weight", (hidden, hidden), "hidden × hidden")
    seen.add("qkv_bias", shapes.has(query + "bias"))
    _read_dinov2_mlp(shapes, seen, hidden)


def _read_dinov2_mlp(shapes: Shapes, seen: Observations, hidden: int) -> None:
    """Read ``mlp_ratio``; SwiGLU layers are two thirds as wide, rounded up to a multiple of 8."""
    mlp = "encoder.layer.0.mlp."
    gated = mlp + "gate_proj.weight" in shapes
    name = mlp + ("gate_proj.weight" if gated else "fc1.weight")
    if not shapes.has(name):
        raise ContradictionError(f"{shapes.prefix}{name} is absent: the checkpoint is incomplete.")
    seen.add("use_swiglu_ffn", gated)
    inner = shapes.dim(name, 0)
    # 4 is the ratio of every published model, so it is tried first: at tiny widths several
    # ratios round to one width, and build the same network.
    for ratio in (4, *range(1, 33)):
        width = hidden * ratio
        if inner == ((int(width * 2 / 3) + 7) // 8 * 8 if gated else width):
            seen.add("mlp_ratio", ratio)
            return
    raise ContradictionError(
        f"{shapes.prefix}{name} has {inner} rows, which is no whole multiple of the width {hidden}."
    )


_CLIP_LIKE = (
    "embeddings.patch_embedding.weight",
    "embeddings.position_embedding.weight",
    "encoder.layers.0.self_attn.q_proj.weight",
    "encoder.layers.0.mlp.fc1.weight",
    "post_layernorm.weight",
)
_SIGLIP = (*_CLIP_LIKE, "embeddings.patch_embedding.bias")
_CLIP_ONLY = ("embeddings.class_embedding", "pre_layrnorm.weight")
_DINOV2 = (
    "embeddings.cls_token",
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection.weight",
    "encoder.layer.0.norm1.weight",
    "encoder.layer.0.layer_scale1.lambda1",
    "encoder.layer.0.layer_scale2.lambda1",
    "layernorm.weight",
)
_REGISTERS = "embeddings.register_tokens"

FAMILIES = (
    TowerFamily(
        model_type="siglip_vision_model",
        has=_SIGLIP,
        lacks=_CLIP_ONLY,
        patches=_CLIP_LIKE[0],
        patch_rank=4,
        read=_read_siglip,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    ),
    TowerFamily(
        model_type="siglip2_vision_model",
        has=_SIGLIP,
        lacks=_CLIP_ONLY,
        patches=_CLIP_LIKE[0],
        patch_rank=2,
        read=_read_siglip_naflex,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    ),
    TowerFamily(
        model_type="clip_vision_model",
        has=(*_CLIP_LIKE, *_CLIP_ONLY),
        lacks=("embeddings.patch_embedding.bias", "head.probe"),
        patches=_CLIP_LIKE[0],
        patch_rank=4,
        read=_read_clip,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    ),
    TowerFamily(
        model_type="dinov2",
        has=_DINOV2,
        lacks=(_REGISTERS,),
        patches=_DINOV2[2],
        patch_rank=4,
        read=_read_dinov2,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    ),
    TowerFamily(
        model_type="dinov2_with_registers",
        has=(*_DINOV2, _REGISTERS),
        lacks=(),
        patches=_DINOV2[2],
        patch_rank=4,
        read=_read_dinov2,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    ),
)
"""Every family that can be recognised. Fixed-resolution SigLIP 2 is of the SigLIP architecture."""
