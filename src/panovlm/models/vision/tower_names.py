"""Names of vision towers' tensors in older versions of transformers. No torch is needed here."""

from __future__ import annotations

import re

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
_DINOV3_BLOCK = re.compile(r"^layer\.(\d+\.(?:norm|attention|layer_scale|mlp).+)$")
_SWIGLU_NOW = {"weights_in": ("gate_proj", "up_proj"), "weights_out": ("down_proj",)}


def current_names(name: str) -> tuple[str, ...]:
    """Return today's names of a tower tensor.

    transformers 5 renamed parts of DINOv2, and cut the fused matrix of its SwiGLU variant in two;
    it put DINOv3's blocks one level deeper. The names of SigLIP and CLIP are the same in both.

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
    deeper = _DINOV3_BLOCK.match(name)
    return (f"model.layer.{deeper[1]}",) if deeper else (name,)
