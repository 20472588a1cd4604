"""A model whose backbones also stand in folders of their own, as published ones do."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from benchmarks.gauntlet.stock import LORA, Stock
from torch import nn

from panovlm.config.schema import LoRASettings
from panovlm.models.model import PanoramaVLM


class Named(NamedTuple):
    """A model, and the folders that have its tower and its language model."""

    model: PanoramaVLM
    tower: str
    language: str

    @property
    def names(self) -> dict[str, str]:
        """What a user states who knows them."""
        return {"models.vision_name": self.tower, "models.language_model_name": self.language}


def named(stock: Stock, label: str = "published", **settings: Any) -> Named:
    """Return a model with frozen backbones that are those of two folders.

    Args:
        stock: where models and folders are.
        label: of the folders; one label goes with one set of ``settings``.
        settings: as for :meth:`Stock.model`.
    """
    tower, language = (stock.folder / f"{label}-{part}" for part in ("tower", "language"))
    names = {"vision_name": str(tower), "language_model_name": str(language)}
    model = stock.model(**names, **settings)
    encoder, text = model.vision_backbone.encoder, model.language_model
    assert isinstance(encoder, nn.Module) and model.tokenizer is not None
    encoder.requires_grad_(False)
    text.requires_grad_(False)
    if not tower.exists():
        encoder.save_pretrained(tower)
        text.save_pretrained(language)
        model.tokenizer.save_pretrained(language)
    return Named(model, str(tower), str(language))


def adapted(base: Named, stock: Stock, seed: int = 3, **lora: Any) -> PanoramaVLM:
    """Return that model after adapters were trained on it, and nothing else."""
    key = f"adapted {base} {seed} {sorted(lora.items())}"
    return stock.kept(key, lambda: _adapt(base, seed, lora))


def _adapt(base: Named, seed: int, lora: dict[str, Any]) -> PanoramaVLM:
    model = copy.deepcopy(base.model)
    model.add_adapters(LoRASettings.model_validate({**LORA, **lora}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.language_model.peft_config["default"].base_model_name_or_path = base.language
    return model.eval()
