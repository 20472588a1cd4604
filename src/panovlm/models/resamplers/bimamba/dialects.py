"""Other names for the tensors of a bidirectional Mamba block, translated where nothing is lost.

- transformers puts each mixer below ``mixer``: ``forward_block.mixer.in_proj.weight``.
- Vision Mamba (Zhu et al. 2024, arXiv:2401.09417; ``bimamba_type="v2"``) has one mixer per block
  whose two directions share ``in_proj`` and ``out_proj``; what the backward one has of its own is
  marked by ``_b``. Both projections act on each token by itself, so that they commute with turning
  the sequence round, and ``out_proj`` is linear: ``out_proj(f + b) = out_proj(f) + out_proj(b)``.
  Two mixers that each hold a copy of them compute the same, up to whether the directions are added
  or averaged (the setting ``directions``).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from panovlm.errors import CheckpointError
from panovlm.models.resamplers.recipe import Dialect

_INSIDE_BLOCK = re.compile(r"(blocks\.\d+)\.(.+)")
_HUGGING_FACE = re.compile(r"(forward_block|backward_block)\.mixer\.(.+)")
_WRAPPERS = ("", "mixer.", "mamba.")
"""What may stand between a block and its one mixer in Vision Mamba."""
_SHARED = ("in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias")
_OWN = {
    "A_log": "A_b_log",
    "D": "D_b",
    "conv1d.weight": "conv1d_b.weight",
    "conv1d.bias": "conv1d_b.bias",
    "x_proj.weight": "x_proj_b.weight",
    "dt_proj.weight": "dt_proj_b.weight",
    "dt_proj.bias": "dt_proj_b.bias",
}
"""Tensors of the forward direction and their counterparts of the backward one."""
_DIRECTIONS = (
    "Vision Mamba adds the outputs of its two directions, or takes their mean "
    "(if_divide_out), and its weights show neither"
)


def dialect(names: Sequence[str]) -> Dialect | None:
    """Recognise the names of transformers or of Vision Mamba below a resampler.

    Raises:
        CheckpointError: the blocks compute something that two mixers do not.
    """
    blocks: dict[str, list[str]] = defaultdict(list)
    for name in names:
        inside = _INSIDE_BLOCK.fullmatch(name)
        if inside:
            blocks[inside[1]].append(inside[2])
    for block, inside in blocks.items():
        _refuse_mamba_2(block, inside)
    vim = _joined({block: _from_vim(block, inside) for block, inside in blocks.items()})
    if vim:
        note = (
            "Vision Mamba's in_proj and out_proj serve both directions; each mixer has a copy of "
            "its own now, so that further training lets them differ"
        )
        return Dialect("Vision Mamba", vim, {"directions": _DIRECTIONS}, note)
    hf = _joined({block: _from_hugging_face(block, inside) for block, inside in blocks.items()})
    return Dialect("transformers' Mamba", hf) if hf else None


def _joined(blocks: dict[str, dict[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    return {
        f"{block}.{name}": tuple(f"{block}.{one}" for one in today)
        for block, inside in blocks.items()
        for name, today in inside.items()
    }


def _refuse_mamba_2(block: str, inside: Iterable[str]) -> None:
    found = next((name for name in inside if name.endswith("dt_bias")), None)
    if found is not None:
        raise CheckpointError(
            f"{block}.{found} is of a Mamba-2 mixer, which has one decay per head; a BiMamba block "
            "has one per channel and state and cannot compute that. Train it as a resampler of "
            "its own."
        )


def _from_hugging_face(block: str, inside: Iterable[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in inside:
        match = _HUGGING_FACE.fullmatch(name)
        if match:
            found[name] = (f"{match[1]}.{match[2]}",)
        elif found and name.startswith(("forward_block.norm", "backward_block.norm")):
            raise CheckpointError(
                f"{block}.{name} belongs to a block of transformers' Mamba, which has a norm and a "
                "residual of its own around the mixer; a BiMamba block has them around both "
                "directions together and cannot compute that."
            )
    return found


def _from_vim(block: str, inside: list[str]) -> dict[str, tuple[str, ...]]:
    wrapper = next((w for w in _WRAPPERS if f"{w}A_b_log" in inside), None)
    if wrapper is None:
        return {}
    if f"{wrapper}conv1d_b.weight" not in inside:
        raise CheckpointError(
            f"{block}.{wrapper}A_b_log is of Vision Mamba's first version, whose backward scan "
            "reads what the forward convolution gave (there is no conv1d_b). A BiMamba block "
            "convolves each direction by itself and cannot compute that; train it as a resampler "
            "of its own."
        )
    found: dict[str, tuple[str, ...]] = {}
    for name in _SHARED:
        found[wrapper + name] = (f"forward_block.{name}", f"backward_block.{name}")
    for forward, backward in _OWN.items():
        found[wrapper + forward] = (f"forward_block.{forward}",)
        found[wrapper + backward] = (f"backward_block.{forward}",)
    return {name: today for name, today in found.items() if name in inside}
