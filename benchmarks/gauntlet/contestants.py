"""Those who open checkpoints: PanoVLM, and the loaders that are commonly used."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import torch
from benchmarks.gauntlet import reading
from benchmarks.gauntlet.case import Made
from benchmarks.gauntlet.verdict import NotApplicableError
from peft import PeftModel
from transformers import PreTrainedModel

from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.model import PanoramaVLM

Opener = Callable[[Made], PanoramaVLM]


def panovlm(made: Made) -> PanoramaVLM:
    """PanoVLM, which here may assume nothing: ``from_checkpoint(..., strict=True)``."""
    return PanoramaVLM.from_checkpoint(
        made.path, strict=True, overrides=made.stated or None, weights=made.weights
    )


def panovlm_assuming(made: Made) -> PanoramaVLM:
    """PanoVLM as it is called without ``strict``: what nobody recorded is assumed."""
    return PanoramaVLM.from_checkpoint(
        made.path, overrides=made.stated or None, weights=made.weights
    )


class Plain(PanoramaVLM):
    """The model as transformers loads it, without what PanoVLM adds to ``from_pretrained``."""

    from_pretrained = classmethod(PreTrainedModel.from_pretrained.__func__)
    _init_weights = PreTrainedModel._init_weights


def transformers(made: Made) -> PanoramaVLM:
    """``from_pretrained`` of transformers: a folder, or a state dict and a configuration."""
    folder = made.path
    if folder.is_dir() and (folder / "config.json").is_file():
        return Plain.from_pretrained(folder)
    found = reading.contents(made.path)
    return Plain.from_pretrained(
        None,
        config=PanoramaVLMConfig(reading.settings(made, found)),
        state_dict=reading.state_dict(found, made),
    )


def lightning_module(made: Made) -> type[lightning.LightningModule]:
    """Return a module that takes its settings from its hyper-parameters, else the defaults."""

    class Trained(lightning.LightningModule):
        def __init__(self, recipe: Mapping[str, Any] | None = None, **names: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            known = {"hyper_parameters": {"recipe": recipe} if recipe else names}
            bare = Made(made.path / "nothing", made.model, made.stated)
            self.model = reading.build(reading.settings(bare, known), made)

    return Trained


def lightning_checkpoint(made: Made) -> PanoramaVLM:
    """``load_from_checkpoint`` of Lightning."""
    path = reading.chosen(made.path)
    with tempfile.TemporaryDirectory() as scratch:
        file = reading.torch_file(path, Path(scratch))
        if "state_dict" not in torch.load(file, map_location="cpu"):
            raise NotApplicableError("not written by Lightning")
        return lightning_module(made).load_from_checkpoint(file, map_location="cpu").model


def load_state_dict(made: Made) -> PanoramaVLM:
    """``load_state_dict(..., strict=False)`` into a model built from the settings beside it."""
    found = reading.contents(made.path)
    model = reading.build(reading.settings(made, found), made)
    result = model.load_state_dict(reading.state_dict(found, made), strict=False)
    if result.missing_keys or result.unexpected_keys:
        # What it returns is seldom looked at, but it does tell.
        warnings.warn(f"returned {str(result)[:200]}", UserWarning, stacklevel=1)
    return model


def peft(made: Made) -> PanoramaVLM:
    """``PeftModel.from_pretrained`` on the right base; the rest of the model is given."""
    if made.adapters is None or made.base is None:
        raise NotApplicableError("no adapters in PEFT's folder")
    model = copy.deepcopy(made.base)
    model.language_model = PeftModel.from_pretrained(model.language_model, made.adapters)
    return model


def spandrel(made: Made) -> PanoramaVLM:
    """``spandrel``, which recognises models by their weights; made for image restoration."""
    from spandrel import ModelLoader  # pyright: ignore[reportMissingImports]

    path = reading.chosen(made.path)
    if path.is_dir() or path.suffix not in {".ckpt", ".pt", ".pth", ".safetensors"}:
        raise NotApplicableError("a container that it does not read")
    return ModelLoader().load_from_file(path).model


OURS: Mapping[str, Opener] = {"PanoVLM": panovlm, "PanoVLM, assuming": panovlm_assuming}
PEERS: Mapping[str, Opener] = {
    "transformers": transformers,
    "Lightning": lightning_checkpoint,
    "load_state_dict": load_state_dict,
    "PEFT": peft,
    **({"spandrel": spandrel} if find_spec("spandrel") else {}),
}
ABSENT = [] if find_spec("spandrel") else ["spandrel"]
"""Contestants that are not installed, and so have no results."""
