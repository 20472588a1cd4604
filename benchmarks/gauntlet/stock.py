"""Trained models for the cases, and the files that they are written into.

A model here is small and random, but no parameter of it is at its initial value, so that no swap,
omission or wrong setting goes unseen.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from benchmarks.gauntlet.observe import Observation, observe
from torch import Tensor

from panovlm.checkpoint.documents.metadata import EMBEDDED
from panovlm.checkpoint.fields import flatten_mapping
from panovlm.checkpoint.find.locate import SIDECAR
from panovlm.checkpoint.probe.record import ENTRY as PROBE
from panovlm.checkpoint.saving.save import (
    describe_model,
    embedded_entries,
    with_probe,
    write_tokenizer,
)
from panovlm.config.schema import LoRASettings, Settings
from panovlm.models.assemble import new_model
from panovlm.models.model import PanoramaVLM

TEXTS = ["what is left of the red ball ?", "a blue cube is on the right"]
VIT = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
DINO = {**{k: v for k, v in VIT.items() if k != "intermediate_size"}, "mlp_ratio": 2}
TOWERS: Mapping[str, Mapping[str, Any]] = {
    "siglip": {"model_type": "siglip_vision_model", **VIT},
    "siglip2": {
        "model_type": "siglip2_vision_model",
        **{k: v for k, v in VIT.items() if k != "image_size"},
        "num_patches": 16,
    },
    "clip": {"model_type": "clip_vision_model", **VIT},
    "dinov2": {"model_type": "dinov2", **DINO},
    "dinov2, gated": {"model_type": "dinov2", **DINO, "use_swiglu_ffn": True},
    "dinov2, registers": {"model_type": "dinov2_with_registers", **DINO, "num_register_tokens": 2},
    "dinov3": {"model_type": "dinov3_vit", **VIT, "num_register_tokens": 2},
    "dinov3, gated": {
        "model_type": "dinov3_vit",
        **VIT,
        "num_register_tokens": 2,
        "use_gated_mlp": True,
        "hidden_act": "silu",
    },
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 512,
}
LANGUAGES: Mapping[str, Mapping[str, Any]] = {
    "qwen2": {
        "model_type": "qwen2",
        **{k: v for k, v in TEXT.items() if k != "head_dim"},
        "tie_word_embeddings": True,
    },
    "qwen3": {"model_type": "qwen3", **TEXT, "head_dim": 8, "tie_word_embeddings": True},
    "qwen3, untied": {"model_type": "qwen3", **TEXT, "head_dim": 8, "tie_word_embeddings": False},
    "llama": {"model_type": "llama", **TEXT, "tie_word_embeddings": False},
    "gemma2": {"model_type": "gemma2", **TEXT, "query_pre_attn_scalar": 6},
    "gemma3": {"model_type": "gemma3_text", **TEXT, "query_pre_attn_scalar": 6},
}
RESAMPLERS: Mapping[str, Mapping[str, Any]] = {
    "mlp": {"hidden_dim": 40},
    "bimamba": {"hidden_dim": 48, "depth": 2, "d_state": 5, "d_conv": 3},
    "qformer": {"num_query_tokens": 9, "num_hidden_layers": 2},
}
IMAGE = {"crop_strategy": "e2p", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
LORA = {"rank": 3, "alpha": 12.0}
Prefix = str | Callable[[str], str]


class Stock:
    """Builds models and remembers them with what they compute.

    Args:
        folder: for the backbones that checkpoints refer to by name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._models: dict[str, PanoramaVLM] = {}
        self._truths: dict[int, Observation] = {}

    def model(
        self,
        resampler: str = "bimamba",
        *,
        seed: int = 1,
        tower: str | Mapping[str, Any] = "siglip",
        language: str | Mapping[str, Any] = "qwen3",
        sizes: Mapping[str, Any] | None = None,
        image: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        texts: list[str] = TEXTS,
        system: str | None = None,
        **models: Any,
    ) -> PanoramaVLM:
        """Return a trained model; equal settings give the same object.

        Args:
            resampler: its architecture.
            seed: another one is another training.
            tower: short name, or a configuration.
            language: likewise.
            sizes: settings of the resampler laid over the usual ones.
            image: settings of the views, likewise.
            lora: settings of adapters; ``None``: there are none.
            dtype: type of the weights.
            texts: what the vocabulary is made of.
            system: message in front of every conversation.
            models: other settings of the network.
        """
        blocks: dict[str, Any] = {
            "models": {
                "vision_config": TOWERS[tower] if isinstance(tower, str) else tower,
                "language_config": LANGUAGES[language] if isinstance(language, str) else language,
                "resampler_type": resampler,
                "resampler_config": {**RESAMPLERS.get(resampler, {}), **(sizes or {})},
                "latent_dimension": 40,
                **models,
            },
            "image_processing": {**IMAGE, **(image or {})},
            "training": {"stage_configs": {s: {} for s in ("vision", "resampler", "finetune")}},
        }
        if system is not None:
            blocks["system_messages"] = {"default": system}

        def make() -> PanoramaVLM:
            torch.manual_seed(seed)
            model = new_model(Settings.model_validate(blocks), texts)
            if lora is not None:
                model.add_adapters(LoRASettings.model_validate({**LORA, **lora}))
            return trained(model.eval(), seed, dtype)

        return self.kept(repr((blocks, seed, lora, dtype, texts)), make)

    def kept(self, key: str, make: Callable[[], PanoramaVLM]) -> PanoramaVLM:
        """Return a model that is made only once."""
        if key not in self._models:
            self._models[key] = make()
        return self._models[key]

    def truth(self, model: PanoramaVLM) -> Observation:
        """Return what a model computes, measured once on a copy."""
        if id(model) not in self._truths:
            self._truths[id(model)] = observe(copy.deepcopy(model))
            self._models[f"known by id {id(model)}"] = model  # the id stays its own
        return self._truths[id(model)]


@torch.no_grad()
def trained(model: PanoramaVLM, seed: int, dtype: torch.dtype | None = None) -> PanoramaVLM:
    """Move every parameter away from where it began."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        wide = 0.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.add_(wide * torch.randn(parameter.shape, generator=generator))
        if dtype is not None:
            parameter.data = parameter.data.to(dtype)
    return model


def state_of(model: PanoramaVLM, prefix: Prefix = "") -> dict[str, Tensor]:
    """Return a model's tensors with other names; ``prefix`` is put in front, or renames."""
    rename = prefix if callable(prefix) else lambda name: f"{prefix}{name}"
    return {rename(name): tensor.detach() for name, tensor in model.state_dict().items()}


def document_of(
    model: PanoramaVLM, changes: Mapping[str, Any] | None = None, *, probe: bool = True
) -> dict[str, Any]:
    """Return the document of a model as plain data, some settings of its recipe changed.

    Args:
        model: what it is about.
        changes: values by dotted name; ``...`` removes a setting.
        probe: whether it tells what the model computes.
    """
    document = json.loads(_document(model, probe=probe))
    for name, value in (changes or {}).items():
        *path, leaf = name.split(".")
        place = document["recipe"]
        for step in path:
            place = place[step]
        if value is ...:
            del place[leaf]
        else:
            place[leaf] = value
    return document


@cache
def _document(model: PanoramaVLM, *, probe: bool) -> str:
    known = describe_model(model, stage="finetune")
    return (with_probe(model, known) if probe else known).to_json()


def contents_of(
    model: PanoramaVLM,
    *,
    prefix: Prefix = "model.",
    state: Mapping[str, Tensor] | None = None,
    inside: Mapping[str, Any] | bool | None = True,
    hyper: Mapping[str, Any] | bool | None = True,
) -> dict[str, Any]:
    """Return what a ``.ckpt`` file of a training by Lightning holds.

    Args:
        model: what is saved.
        prefix: names of the tensors.
        state: the tensors instead of the model's, by their whole names.
        inside: the document inside; True: the right one.
        hyper: Lightning's hyper-parameters, likewise. PanoVLM does not write them, but any other
            module of Lightning would, and reads its settings from nowhere else.
    """
    contents: dict[str, Any] = {
        "epoch": 1,
        "global_step": 7,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": dict(state if state is not None else state_of(model, prefix)),
    }
    right = document_of(model) if True in (inside, hyper) else {}
    if inside:
        document = right if inside is True else inside
        contents |= embedded_entries(model, describe_model(model))
        contents[EMBEDDED] = json.dumps(document)
        if document.get("probe"):
            contents[PROBE] = json.dumps(document["probe"])
    if hyper:
        contents["hyper_parameters"] = {"recipe": right["recipe"]} if hyper is True else hyper
    return contents


def write_run(
    model: PanoramaVLM,
    folder: Path,
    *,
    name: str = "best.ckpt",
    beside: Mapping[str, Any] | str | bool | None = True,
    tokenizer: bool = True,
    legacy: bool = False,
    **options: Any,
) -> Path:
    """Write a run folder and return its checkpoint.

    Args:
        model: what is saved.
        folder: made if it is not there.
        name: of the file.
        beside: the document beside it; True: the right one; text is written as it is.
        tokenizer: whether the tokenizer's files stand beside it.
        legacy: write the format from before torch 1.6.
        options: as for :func:`contents_of`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(
        contents_of(model, **options), folder / name, _use_new_zipfile_serialization=not legacy
    )
    describe(model, folder, beside=beside, tokenizer=tokenizer)
    return folder / name


def describe(
    model: PanoramaVLM,
    folder: Path,
    *,
    beside: Mapping[str, Any] | str | bool | None = True,
    tokenizer: bool = True,
) -> None:
    """Write the document and the tokenizer beside a checkpoint."""
    if beside:
        document = document_of(model) if beside is True else beside
        text = document if isinstance(document, str) else json.dumps(document, indent=2)
        (folder / SIDECAR).write_text(text)
    if tokenizer:
        write_tokenizer(folder, model)


def settings_of(model: PanoramaVLM) -> dict[str, Any]:
    """Return every setting of a model by dotted name."""
    return flatten_mapping(model.config.typed_recipe().model_dump(mode="json"))
