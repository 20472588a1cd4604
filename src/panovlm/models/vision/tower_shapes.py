"""Reading the sizes of vision towers off their tensors' shapes, one function per kind of tower.

Each takes the subtree of the tower under today's names and adds what it sees. They raise
:class:`~panovlm.errors.CheckpointError` where a size cannot be read off, and
:class:`~panovlm.errors.ContradictionError` where tensors do not fit together. No torch is needed.
"""

from __future__ import annotations

from math import isqrt

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.errors import CheckpointError, ContradictionError

REGISTERS = "embeddings.register_tokens"
_PUBLISHED_SIZES = {(14, 27): 384}
"""Image size by (patch, patches per side) where it is no multiple of the patch: SigLIP So400m."""


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


def read_siglip(shapes: Shapes, seen: Observations) -> None:
    """Read a SigLIP tower of a fixed resolution."""
    hidden, patch = _read_patches(shapes, seen, "embeddings.patch_embedding.weight")
    table = "embeddings.position_embedding.weight"
    positions = shapes.dim(table, 0)
    grid = _grid(shapes, positions, table)
    size = _PUBLISHED_SIZES.get((patch, grid), grid * patch)
    seen.add("image_size", size, f"{grid} patches of {patch} a side")
    shapes.require(table, (positions, hidden), "positions × hidden")
    _read_clip_blocks(shapes, seen, hidden)
    seen.add("vision_use_head", shapes.has("head.probe"))


def read_siglip_naflex(shapes: Shapes, seen: Observations) -> None:
    """Read a SigLIP 2 tower on flattened patches of any number."""
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


def read_clip(shapes: Shapes, seen: Observations) -> None:
    """Read a CLIP tower."""
    hidden, patch = _read_patches(shapes, seen, "embeddings.patch_embedding.weight")
    table = "embeddings.position_embedding.weight"
    positions = shapes.dim(table, 0)
    grid = _grid(shapes, positions - 1, table)
    seen.add("image_size", grid * patch, f"class token + {grid} patches of {patch} a side")
    shapes.require(table, (positions, hidden), "positions × hidden")
    shapes.require("embeddings.class_embedding", (hidden,), "hidden")
    _read_clip_blocks(shapes, seen, hidden)


def read_dinov2(shapes: Shapes, seen: Observations) -> None:
    """Read a DINOv2 tower, with or without registers."""
    hidden, patch = _read_patches(shapes, seen, "embeddings.patch_embeddings.projection.weight")
    table = "embeddings.position_embeddings"
    positions = shapes.dim(table, 1)
    grid = _grid(shapes, positions - 1, table)
    seen.add("image_size", grid * patch, f"class token + {grid} patches of {patch} a side")
    shapes.require(table, (1, positions, hidden), "1 × positions × hidden")
    if REGISTERS in shapes:
        seen.add("num_register_tokens", shapes.dim(REGISTERS, 1))
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


def read_dinov3(shapes: Shapes, seen: Observations) -> None:
    """Read a DINOv3 tower. Its positions are rotary, so that no shape shows the image size."""
    hidden, _ = _read_patches(shapes, seen, "embeddings.patch_embeddings.weight")
    seen.add("num_register_tokens", shapes.dim(REGISTERS, 1))
    registers = seen["num_register_tokens"].value
    shapes.require(REGISTERS, (1, registers, hidden), "1 × registers × hidden")
    seen.add("num_hidden_layers", shapes.count("model.layer"))
    attention, mlp = "model.layer.0.attention.", "model.layer.0.mlp."
    for part in ("q", "k", "v", "o"):
        shapes.require(f"{attention}{part}_proj.weight", (hidden, hidden), "hidden × hidden")
    for part, field in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "proj")):
        seen.add(f"{field}_bias", shapes.has(f"{attention}{part}_proj.bias"))
    inner = shapes.dim(mlp + "up_proj.weight", 0)
    seen.add("intermediate_size", inner)
    shapes.require(mlp + "up_proj.weight", (inner, hidden), "intermediate × hidden")
    shapes.require(mlp + "down_proj.weight", (hidden, inner), "hidden × intermediate")
    seen.add("mlp_bias", shapes.has(mlp + "up_proj.bias"))
    seen.add("use_gated_mlp", shapes.has(mlp + "gate_proj.weight"))
