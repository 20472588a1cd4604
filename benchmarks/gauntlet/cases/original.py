"""Run folders of the original system, whose checkpoints this project was made to rescue."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.gauntlet.backbones import Named, named
from benchmarks.gauntlet.case import Case, Made
from benchmarks.gauntlet.stock import Stock, state_of
from torch import Tensor

GROUP = "The original system"
ALIASES = {
    "resampler_module.resampler.": "resampler.",
    "projector.linear.": "vision_to_language_projection.",
}
OLDER = {
    **ALIASES,
    "vision_backbone.encoder.": "vision_encoder.",
    "vision_backbone.norm.": "vicreg_norm.",
}
DEFAULTS: dict[str, Any] = {
    "layout": "original",
    "global_view": "first_view",
    "training_placeholder": False,
    "use_projection_positional_encoding": False,
    "use_vicreg_projector": False,
}


def trained(stock: Stock, resampler: str, **settings: Any) -> Named:
    """Return a model as the original trained it, its backbones in folders."""
    label = f"original-{resampler}-{'-'.join(map(str, settings.values()))}".replace("/", "")
    return named(stock, label, resampler=resampler, **DEFAULTS, **settings)


def renamed(names: dict[str, str], name: str) -> str:
    for now, then in names.items():
        if name.startswith(now):
            return then + name.removeprefix(now)
    return name


def state(known: Named, *, older: bool, aliases: bool) -> dict[str, Tensor]:
    own = state_of(known.model)
    if older:
        return {f"model.{renamed(OLDER, name)}": tensor for name, tensor in own.items()}
    whole = {f"model.{name}": tensor for name, tensor in own.items()}
    if aliases:
        whole |= {f"model.{renamed(ALIASES, name)}": tensor for name, tensor in own.items()}
    return whole


def hyper_parameters(known: Named) -> dict[str, Any]:
    models = known.model.recipe.models
    return {
        "stage": "finetune",
        "lr": 1e-3,
        "use_lora": False,
        "vision_name": known.tower,
        "language_model_name": known.language,
        "resampler_type": models.resampler_type,
        "latent_dimension": models.latent_dimension,
        "vicreg_loss_weight": 0.0,
        "model_overlap_ratio": models.overlap_ratio,
    }


def data_parameters(known: Named) -> dict[str, Any]:
    image = known.model.recipe.image_processing
    return {
        "csv_train": ["train.csv"],
        "image_size": list(image.image_size or ()),
        "crop_strategy": image.crop_strategy,
        "overlap_ratio": image.overlap_ratio,
        "fov_deg": image.fov_deg,
        "image_mean": list(image.image_mean or ()),
        "image_std": list(image.image_std or ()),
        "use_vision_processor": False,
        "normalize": image.normalize,
        "tokenizer_name": known.language,
        "vision_model_name": known.tower,
        "anyres_patch_size": image.anyres_patch_size,
        "anyres_max_patches": image.anyres_max_patches,
        "max_text_length": 256,
        "system_msg": known.model.recipe.system_messages.default,
    }


def models_block(known: Named) -> dict[str, Any]:
    """Return the ``models`` block of the run's ``config.yaml``."""
    models = known.model.recipe.models
    plain = (
        "resampler_type latent_dimension overlap_ratio use_vicreg_norm use_vicreg_projector "
        "stitching_mode use_projection_positional_encoding vision_token_fallback_position"
    )
    sizes = models.resampler_config.model_dump(mode="json")
    sizes.pop("directions", None)
    return {
        "vision_name": known.tower,
        "language_model_name": known.language,
        "resampler_config": {**sizes, "latent_dimension": models.latent_dimension},
        **{name: getattr(models, name) for name in plain.split()},
    }


def metadata(known: Named) -> dict[str, Any]:
    """Return the document that the original meant to write."""
    block = models_block(known)
    image = data_parameters(known)
    names = "vision_name language_model_name resampler_type latent_dimension overlap_ratio"
    return {
        "experiment_name": "TINY",
        "stage": "finetune",
        "model_config": {
            **{name: block[name] for name in names.split()},
            "image_size": image["image_size"],
            "resampler_config": block["resampler_config"],
        },
        "training_config": {
            name: image[name]
            for name in VIEWS
            if name not in {"image_size", "image_mean", "image_std"}
        },
        "epoch_info": {"current_epoch": 1, "global_step": 7, "val_loss": 0.5},
    }


def cut_off(document: dict[str, Any]) -> str:
    """Return what its writer left behind when it met an object that JSON has no form for."""
    text, key = json.dumps(document, indent=2), '"resampler_config": '
    return text[: text.index(key) + len(key)]


def run(
    resampler: str,
    *,
    older: bool = False,
    aliases: bool = True,
    config: bool = True,
    beside: Callable[[dict[str, Any]], str] | None = None,
    **settings: Any,
) -> Callable[[Stock, Path], Made]:
    """Write a run folder: the file, its metadata and its configuration."""

    def make(stock: Stock, folder: Path) -> Made:
        known = trained(stock, resampler, **settings)
        contents = {
            "epoch": 1,
            "global_step": 7,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": state(known, older=older, aliases=aliases),
            "hyper_parameters": hyper_parameters(known),
            "datamodule_hparams_name": "kwargs",
            "datamodule_hyper_parameters": data_parameters(known),
        }
        torch.save(contents, folder / "best.ckpt")
        if config:
            views = {k: v for k, v in data_parameters(known).items() if k in VIEWS}
            blocks = {"models": models_block(known), "image_processing": views}
            (folder / "config.yaml").write_text(yaml.safe_dump(blocks))
        if beside:
            (folder / "checkpoint_metadata.json").write_text(beside(metadata(known)))
        return Made(folder / "best.ckpt", known.model)

    return make


VIEWS = (
    "crop_strategy",
    "image_size",
    "overlap_ratio",
    "fov_deg",
    "image_mean",
    "image_std",
    "use_vision_processor",
    "normalize",
)
CASES: dict[str, tuple[Callable[[Stock, Path], Made], bool]] = {
    "MLP": (run("mlp", beside=json.dumps), True),
    "BiMamba": (run("bimamba", beside=json.dumps), True),
    "BiMamba, norm last": (
        run("bimamba", beside=json.dumps, sizes={"norm_first": False}),
        True,
    ),
    "Q-Former": (run("qformer", beside=json.dumps), True),
    "metadata cut off": (run("bimamba", beside=cut_off), True),
    "no metadata": (run("bimamba"), True),
    "names without aliases": (run("bimamba", aliases=False), True),
    "names from before September 2025": (run("bimamba", older=True), True),
    "with a global view": (
        run("mlp", image={"crop_strategy": "anyres", "anyres_max_patches": 4}),
        True,
    ),
    "neither config.yaml nor metadata": (run("bimamba", config=False), False),
    "neither, norm last": (run("bimamba", config=False, sizes={"norm_first": False}), False),
    "neither, metadata cut off": (run("mlp", config=False, beside=cut_off), False),
}


def cases() -> Iterator[Case]:
    """Yield run folders, complete and not."""
    for name, (make, valid) in CASES.items():
        yield Case(GROUP, name, make, valid=valid)
