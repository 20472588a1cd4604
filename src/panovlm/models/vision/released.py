"""Published vision towers by their sizes. No torch is needed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from panovlm.checkpoint.settle.shapes import Observed


class Tower(NamedTuple):
    """The sizes of a published tower; SigLIP's So400m is one in two resolutions of patches."""

    name: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    patch_sizes: tuple[int, ...]


_SIGLIP = (
    Tower("base", 768, 12, 3072, (16, 32)),
    Tower("large", 1024, 24, 4096, (16,)),
    Tower("So400m", 1152, 27, 4304, (14, 16)),
    Tower("giant", 1536, 40, 6144, (16,)),
)
_DINOV2 = (
    Tower("small", 384, 12, 1536, (14,)),
    Tower("base", 768, 12, 3072, (14,)),
    Tower("large", 1024, 24, 4096, (14,)),
    Tower("giant", 1536, 40, 4096, (14,)),
)
_DINOV3 = (
    Tower("small or small+", 384, 12, 1536, (16,)),
    Tower("base", 768, 12, 3072, (16,)),
    Tower("large", 1024, 24, 4096, (16,)),
    Tower("huge+", 1280, 32, 5120, (16,)),
    Tower("7B", 4096, 40, 8192, (16,)),
)
TOWERS: Mapping[str, tuple[Tower, ...]] = {
    "siglip_vision_model": tuple(t._replace(name=f"SigLIP/SigLIP 2 {t.name}") for t in _SIGLIP),
    "siglip2_vision_model": tuple(t._replace(name=f"SigLIP 2 {t.name} NaFlex") for t in _SIGLIP),
    "clip_vision_model": (
        Tower("CLIP ViT-B", 768, 12, 3072, (16, 32)),
        Tower("CLIP ViT-L", 1024, 24, 4096, (14,)),
        Tower("CLIP ViT-H", 1280, 32, 5120, (14,)),
        Tower("CLIP ViT-g", 1408, 40, 6144, (14,)),
        Tower("CLIP ViT-bigG", 1664, 48, 8192, (14,)),
    ),
    "dinov2": tuple(t._replace(name=f"DINOv2 {t.name}") for t in _DINOV2),
    "dinov2_with_registers": tuple(
        t._replace(name=f"DINOv2 {t.name} with registers") for t in _DINOV2
    ),
    "dinov3_vit": tuple(t._replace(name=f"DINOv3 {t.name}") for t in _DINOV3),
}
"""Published towers of every family."""


def published(family: str, seen: Mapping[str, Observed]) -> tuple[str, ...]:
    """Return the names of published towers that have the observed sizes.

    Args:
        family: ``model_type`` of the tower.
        seen: observed fields of its configuration.
    """
    width, layers, patch = (
        seen[name].value for name in ("hidden_size", "num_hidden_layers", "patch_size")
    )
    inner = seen["intermediate_size"].value if "intermediate_size" in seen else None
    return tuple(
        f"{tower.name}, patches of {patch}"
        for tower in TOWERS[family]
        if (tower.hidden_size, tower.num_hidden_layers) == (width, layers)
        and patch in tower.patch_sizes
        and inner in (None, tower.intermediate_size)
    )
