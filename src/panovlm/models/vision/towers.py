"""What a vision tower's tensor names and shapes tell about its configuration.

Names are those below ``vision_backbone.encoder.``, as today's transformers writes them. Each family
of towers says which names it has and lacks, reads its observable sizes, and lists what no shape can
show (heads, activation, norm epsilon) with the value that its published models have. No torch is
imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from panovlm.checkpoint.settle.shapes import Observations, Observed, Shapes
from panovlm.errors import CheckpointError, ContradictionError
from panovlm.models.vision.released import published
from panovlm.models.vision.tower_shapes import (
    REGISTERS,
    read_clip,
    read_dinov2,
    read_dinov3,
    read_siglip,
    read_siglip_naflex,
)


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

    other: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What else no shape of this family shows, with the value of its published models."""

    def assume(self, seen: Mapping[str, Observed]) -> dict[str, Any]:
        """Return the fields that shapes cannot tell, as published models of this width have them.

        Heads are 64 channels wide in nearly all of them; the exceptions stand in ``_PUBLISHED``.
        Where 64 does not divide the width, the number of heads is taken whose width comes
        nearest to 64.
        """
        hidden_size = seen["hidden_size"].value
        gated = "use_gated_mlp" in seen and seen["use_gated_mlp"].value
        return {
            "num_attention_heads": _heads(hidden_size),
            "hidden_act": "silu" if gated else self.hidden_act,
            "layer_norm_eps": self.layer_norm_eps,
            **self.other,
            **_PUBLISHED.get((self.model_type, hidden_size), {}),
        }


_PUBLISHED: dict[tuple[str, int], dict[str, Any]] = {
    ("siglip_vision_model", 1152): {"num_attention_heads": 16},  # So400m
    ("siglip_vision_model", 1536): {"num_attention_heads": 16},  # SigLIP 2 giant
    ("siglip2_vision_model", 1152): {"num_attention_heads": 16},  # So400m NaFlex
    ("clip_vision_model", 1280): {"num_attention_heads": 16, "hidden_act": "gelu"},  # ViT-H
    ("clip_vision_model", 1408): {"num_attention_heads": 16, "hidden_act": "gelu"},  # ViT-g
    ("clip_vision_model", 1664): {"num_attention_heads": 16, "hidden_act": "gelu"},  # ViT-bigG
    ("dinov3_vit", 4096): {"num_attention_heads": 32},  # ViT-7B
}
"""Published widths that do not follow their family's rule."""


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
    assumed = family.assume(seen)
    return TowerInference(family.model_type, seen, assumed, published(family.model_type, seen))


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
_DINOV3 = (
    "embeddings.cls_token",
    "embeddings.mask_token",
    REGISTERS,
    "embeddings.patch_embeddings.weight",
    "model.layer.0.norm1.weight",
    "model.layer.0.attention.q_proj.weight",
    "model.layer.0.layer_scale1.lambda1",
    "model.layer.0.mlp.up_proj.weight",
    "norm.weight",
)

FAMILIES = (
    TowerFamily(
        model_type="siglip_vision_model",
        has=_SIGLIP,
        lacks=_CLIP_ONLY,
        patches=_CLIP_LIKE[0],
        patch_rank=4,
        read=read_siglip,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    ),
    TowerFamily(
        model_type="siglip2_vision_model",
        has=_SIGLIP,
        lacks=_CLIP_ONLY,
        patches=_CLIP_LIKE[0],
        patch_rank=2,
        read=read_siglip_naflex,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    ),
    TowerFamily(
        model_type="clip_vision_model",
        has=(*_CLIP_LIKE, *_CLIP_ONLY),
        lacks=("embeddings.patch_embedding.bias", "head.probe"),
        patches=_CLIP_LIKE[0],
        patch_rank=4,
        read=read_clip,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    ),
    TowerFamily(
        model_type="dinov2",
        has=_DINOV2,
        lacks=(REGISTERS,),
        patches=_DINOV2[2],
        patch_rank=4,
        read=read_dinov2,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    ),
    TowerFamily(
        model_type="dinov2_with_registers",
        has=(*_DINOV2, REGISTERS),
        lacks=(),
        patches=_DINOV2[2],
        patch_rank=4,
        read=read_dinov2,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    ),
    TowerFamily(
        model_type="dinov3_vit",
        has=_DINOV3,
        lacks=("embeddings.position_embeddings",),
        patches=_DINOV3[3],
        patch_rank=4,
        read=read_dinov3,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        other={"rope_theta": 100.0, "image_size": 224},
    ),
)
"""Every family that can be recognised. Fixed-resolution SigLIP 2 is of the SigLIP architecture."""
