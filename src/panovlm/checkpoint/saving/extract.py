"""Writes the backbones of a checkpoint as models of their own, to train others from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from panovlm.atomic import atomic_folder, write_bytes
from panovlm.checkpoint.loading.load import assemble, convert, load_checkpoint
from panovlm.checkpoint.saving.convert import equal_tensors
from panovlm.checkpoint.saving.export import carried_files
from panovlm.errors import CheckpointError, ConfigError
from panovlm.models.model import PanoramaVLM

VISION = "vision"
LANGUAGE = "language"


def extract_backbones(
    source: Path, target: Path, *, merge_lora: bool = False, overwrite: bool = False, **how: Any
) -> list[Path]:
    """Write the vision tower and the language model into ``target/vision`` and ``target/language``.

    Both are folders as transformers writes them, the language model's with the tokenizer, and can
    be named by ``models.vision_name`` and ``models.language_model_name``. A quantised language
    model is written in full precision; with its adapters merged, as what it computes with.

    Args:
        source: checkpoint file or folder.
        target: folder to be made.
        merge_lora: add the adapters into the language model.
        overwrite: replace what is there.
        how: how the checkpoint is loaded, as for :meth:`PanoramaVLM.from_checkpoint`.

    Raises:
        CheckpointError: the source does not load, the target is there, cannot be written, or does
            not come out equal; then nothing is left of it.
        ConfigError: there are adapters that nobody asked to merge, or none to merge.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not overwrite):
        raise CheckpointError(f"{target} is there already; replace it with --overwrite.")
    model = load_checkpoint(source, device=torch.device("cpu"), **how)
    adapted = model.recipe.lora.use_lora
    if adapted != merge_lora:
        raise ConfigError(
            "the language model has adapters, which a plain model has no place for; add them into "
            "its weights with --merge-lora."
            if adapted
            else "the checkpoint has no adapters to merge; leave out --merge-lora."
        )
    if adapted:
        quantised = model.is_quantized
        model.merge_adapters()
        if quantised:  # what computes the same is in float32
            convert(model.language_model, cast("Any", model.get_input_embeddings()).weight.dtype)
    elif model.is_quantized:
        assert model.resolution is not None
        model = assemble(model.resolution, full=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as folder:
        tower = cast("PreTrainedModel", model.vision_backbone.encoder)
        _write(tower, folder / VISION, type(tower))
        language = cast("PreTrainedModel", model.language_model)
        _write(language, folder / LANGUAGE, AutoModelForCausalLM)
        _write_tokenizer(model, folder / LANGUAGE)
    return [target / VISION, target / LANGUAGE]


def _write(model: PreTrainedModel, folder: Path, reader: Any) -> None:
    model.save_pretrained(folder)
    again = cast("nn.Module", reader.from_pretrained(folder, dtype="auto"))
    meant, read = model.state_dict(), again.state_dict()
    wrong = [n for n in meant.keys() | read.keys() if not equal_tensors(read.get(n), meant.get(n))]
    if wrong:
        raise CheckpointError(
            f"{folder.name}: transformers reads {min(wrong)} and {len(wrong) - 1} other tensors of "
            "what it wrote differently; nothing was written. Convert to huggingface instead."
        )


def _write_tokenizer(model: PanoramaVLM, folder: Path) -> None:
    for name, data in carried_files(model).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / name, data)
