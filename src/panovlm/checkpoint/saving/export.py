"""Lays a model out in the files of a format, with everything that describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from panovlm.atomic import write_bytes
from panovlm.checkpoint.documents.metadata import EMBEDDED, CheckpointMetadata
from panovlm.checkpoint.find.locate import SIDECAR, TOKENIZER, WHOLE_MODELS
from panovlm.checkpoint.formats.header import ATTACHMENTS
from panovlm.checkpoint.loading.load import tied_names
from panovlm.checkpoint.saving.save import embedded_entries
from panovlm.checkpoint.saving.weight_files import Stored, write_safetensors, write_shards
from panovlm.models.language.tokenizer import tokenizer_files
from panovlm.models.model import PanoramaVLM


def carried_files(model: PanoramaVLM) -> dict[str, bytes]:
    """Return the tokenizer's files; an empty one cannot be attached and says nothing."""
    files = tokenizer_files(model.tokenizer) if model.tokenizer is not None else {}
    return {name: data for name, data in files.items() if data}


@dataclass(frozen=True)
class Export:
    """A model that is to be written.

    Attributes:
        weights: what is stored of its state dict, by name.
        document: what describes it.
    """

    model: PanoramaVLM
    weights: Mapping[str, Stored]
    document: CheckpointMetadata

    def safetensors(self, file: BinaryIO) -> None:
        """Write one safetensors file that holds the tokenizer's files as well."""
        attached = {
            f"{ATTACHMENTS}/{name}": Stored(
                torch.frombuffer(bytearray(data), dtype=torch.uint8), torch.uint8
            )
            for name, data in carried_files(self.model).items()
        }
        write_safetensors(file, {**self.weights, **attached}, self._header())

    def lightning(self, file: BinaryIO) -> None:
        """Write a checkpoint as Lightning saves one without the state of the training."""
        ties = tied_names(self.model)
        state: dict[str, Tensor] = {}
        for name, stored in self.weights.items():
            # Tied names share their memory in the file too, also after a change of type.
            twin = state.get(f"model.{ties.get(name)}")
            state[f"model.{name}"] = stored.value() if twin is None else twin
        record = self.document.training
        step = {"epoch": record.epoch, "global_step": record.global_step}
        contents = {
            **{name: value for name, value in step.items() if value is not None},
            "pytorch-lightning_version": version("lightning"),
            "state_dict": state,
            **embedded_entries(self.model, self.document),
        }
        torch.save(contents, file)

    def sharded(self, folder: Path, max_size: int) -> None:
        """Write shards with their index, the document and the tokenizer."""
        write_shards(folder, self.weights, self._header(), max_size=max_size)
        self._beside(folder, folder / TOKENIZER)

    def huggingface(self, folder: Path, max_size: int) -> None:
        """Write what ``save_pretrained`` writes of a model and its tokenizer, and the document."""
        if sum(stored.nbytes for stored in self.weights.values()) <= max_size:
            with (folder / WHOLE_MODELS[0]).open("wb") as file:
                write_safetensors(file, self.weights, self._header())
        else:
            write_shards(folder, self.weights, self._header(), max_size=max_size)
        config = self.model.config
        config.architectures = [type(self.model).__name__]
        types = (stored.dtype for stored in self.weights.values())
        config.dtype = next(dtype for dtype in types if dtype.is_floating_point)
        config.save_pretrained(folder)
        self._beside(folder, folder)

    def _header(self) -> dict[str, str]:
        return {"format": "pt", EMBEDDED: self.document.to_json()}

    def _beside(self, folder: Path, files: Path) -> None:
        """Write the tokenizer into ``files`` and the document into ``folder``."""
        for name, data in carried_files(self.model).items():
            (files / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(files / name, data)
        write_bytes(folder / SIDECAR, self.document.to_json().encode())
