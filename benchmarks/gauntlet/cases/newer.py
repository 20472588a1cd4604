"""Younger resamplers, views, positions, stitching and losses: described, bare, and contradicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gauntlet.case import Case, Made
from benchmarks.gauntlet.stock import Stock, document_of, write_run

DESCRIBED = "Younger options, fully described"
UNDESCRIBED = "Younger options, bare weights"
CONTRADICTED = "Younger options, contradicting documents"
BARE: dict[str, Any] = {"inside": None, "hyper": None, "beside": None}
NARROW = {"latent_dimension": 32}
"""Resamplers without weights keep the tower's width."""
PERCEIVER = {"num_latents": 6, "hidden_dim": 48, "num_attention_heads": 2, "depth": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "identity": {"resampler": "identity", **NARROW},
    "average pooling": {"resampler": "avg_pool", "sizes": {"window": 2}, **NARROW},
    "spatial pooling": {
        "resampler": "spatial_pool",
        "sizes": {"rows": 2, "columns": 3, "mode": "max"},
        **NARROW,
    },
    "masked drop": {"resampler": "masked_drop", "sizes": {"rate": 0.5}, **NARROW},
    "convolutions": {"resampler": "conv", "sizes": {"hidden_dim": 24, "depth": 2, "stride": 2}},
    "Perceiver": {"resampler": "perceiver", "sizes": PERCEIVER},
    "Perceiver, 4 heads": {
        "resampler": "perceiver",
        "sizes": {**PERCEIVER, "num_attention_heads": 4},
    },
    "C-Abstractor": {
        "resampler": "c_abstractor",
        "sizes": {"hidden_dim": 24, "depth": 1, "rows": 2, "columns": 2},
    },
    "BiMamba across views": {"sizes": {"cross_view": True}},
    "views on a sphere": {"image": {"crop_strategy": "e2p_sphere", "pitch_rows": 2, "poles": True}},
    "six faces of a cube": {"image": {"crop_strategy": "cubemap6"}},
    "icosahedron, 12 views": {"image": {"crop_strategy": "icosahedral", "icosahedral_views": 12}},
    "the panorama as one view": {
        "tower": "siglip2",
        "image": {"crop_strategy": "erp", "image_size": [16, 32]},
    },
    "positions by direction": {"pe_type": "directions", "pe_highest_frequency": 8.0},
    "stitching on the sphere": {
        "stitching_mode": "sphere",
        "image": {"crop_strategy": "e2p_sphere", "pitch_rows": 2},
    },
    "Barlow twins": {"overlap_loss": "barlow_twins", "overlap_ratio": 0.25},
    "InfoNCE": {"overlap_loss": "info_nce", "overlap_pairs": "directions", "overlap_ratio": 0.25},
    "dense contrastive": {"overlap_loss": "dense_cl", "overlap_ratio": 0.25},
}
CLAIMS: dict[str, tuple[str, dict[str, Any]]] = {
    "Q-Former that claims to be a Perceiver": (
        "qformer",
        {"models.resampler_type": "perceiver", "models.resampler_config": PERCEIVER},
    ),
    "Perceiver that claims to be a Q-Former": (
        "Perceiver",
        {"models.resampler_type": "qformer", "models.resampler_config": {"num_query_tokens": 6}},
    ),
    "identity that claims to pool": (
        "identity",
        {"models.resampler_type": "avg_pool", "models.resampler_config": {"window": 2}},
    ),
    "pooling that claims another window": (
        "average pooling",
        {"models.resampler_config.window": 4},
    ),
    "pooling that claims to average": (
        "spatial pooling",
        {"models.resampler_config.mode": "average"},
    ),
    "dropping that claims another rate": ("masked drop", {"models.resampler_config.rate": 0.25}),
    "convolutions that claim another stride": (
        "convolutions",
        {"models.resampler_config.stride": 1},
    ),
    "Perceiver with other heads": (
        "Perceiver",
        {"models.resampler_config.num_attention_heads": 4},
    ),
    "C-Abstractor with more rows": ("C-Abstractor", {"models.resampler_config.rows": 4}),
    "BiMamba across views that claims not to be": (
        "BiMamba across views",
        {"models.resampler_config.cross_view": False},
    ),
    "views on a sphere that claim one row": (
        "views on a sphere",
        {"image_processing.pitch_rows": 1},
    ),
    "other number of views of an icosahedron": (
        "icosahedron, 12 views",
        {"image_processing.icosahedral_views": 20},
    ),
    "positions by direction that claim columns": (
        "positions by direction",
        {"models.pe_type": "columns"},
    ),
    "stitching on the sphere that claims to drop": (
        "stitching on the sphere",
        {"models.stitching_mode": "drop_overlap"},
    ),
    "other overlap than was trained with": ("InfoNCE", {"models.overlap_ratio": 0.5}),
}


def written(settings: Mapping[str, Any], **options: Any) -> Callable[[Stock, Path], Made]:
    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model(**settings)
        return Made(write_run(model, folder, **options), model)

    return make


def contradicted(
    settings: Mapping[str, Any], claims: Mapping[str, Any], *, probe: bool
) -> Callable[[Stock, Path], Made]:
    """Every document says the same wrong things; the weights are all that tells otherwise."""

    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model(**settings)
        wrong = document_of(model, claims, probe=probe)
        hyper = {"recipe": wrong["recipe"]}
        return Made(write_run(model, folder, beside=wrong, inside=wrong, hyper=hyper), model)

    return make


def cases() -> Iterator[Case]:
    """Yield every option three times: described, bare, and with documents that are wrong."""
    for name, settings in OPTIONS.items():
        yield Case(DESCRIBED, name, written(settings), valid=True)
    for name, settings in OPTIONS.items():
        yield Case(UNDESCRIBED, name, written(settings, **BARE), valid=True)
    for name, (option, claims) in CLAIMS.items():
        settings = OPTIONS.get(option, {"resampler": option})
        for probe in (True, False):
            told = name if probe else f"{name}, no probe"
            yield Case(CONTRADICTED, told, contradicted(settings, claims, probe=probe), valid=False)
