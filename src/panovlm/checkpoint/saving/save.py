"""What a checkpoint carries besides weights, and writing it so that it can never be lost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panovlm.atomic import atomic_write, write_bytes
from panovlm.checkpoint.documents.metadata import (
    EMBEDDED,
    CheckpointMetadata,
    TrainingRecord,
    fingerprint,
    is_ours,
    library_versions,
    now,
    parse,
    read_json,
)
from panovlm.checkpoint.find.locate import SIDECAR, TOKENIZER, own_sidecar
from panovlm.checkpoint.find.tree import checkpoints_in
from panovlm.checkpoint.formats.header import RECORD
from panovlm.checkpoint.loading.borrow import NOTHING, LeftOut, find_left_out
from panovlm.checkpoint.names.keymap import EARLIER
from panovlm.checkpoint.probe.measure import take_probe
from panovlm.checkpoint.probe.record import ENTRY as PROBE
from panovlm.models.language.lora import require_recorded_adapters
from panovlm.models.language.tokenizer import tokenizer_files
from panovlm.models.model import PanoramaVLM

ATTACHED_TOKENIZER = "panovlm_tokenizer"
"""Entry of a checkpoint file that holds the tokenizer's files as byte tensors."""


def describe_model(
    model: PanoramaVLM,
    *,
    experiment_name: str = "",
    stage: str = "",
    training: TrainingRecord | None = None,
    left_out: LeftOut = NOTHING,
) -> CheckpointMetadata:
    """Return the complete document about a model as it is now, but for its probe.

    What was only assumed when the model was loaded stays assumed, unless it has been trained with
    it since (``training`` is given).

    Args:
        model: what the document is about.
        experiment_name: for the record.
        stage: likewise.
        training: where in its training the model is.
        left_out: tensors that the checkpoint will not hold.

    Raises:
        ConfigError: the model has adapters of which its recipe does not tell.
    """
    require_recorded_adapters(model, model.config.typed_recipe().lora)
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name not in left_out.names
    }
    files = tokenizer_files(model.tokenizer) if model.tokenizer is not None else {}
    loaded = model.resolution if training is None else None
    return CheckpointMetadata(
        experiment_name=experiment_name,
        stage=stage,
        fingerprint=fingerprint(shapes),
        recipe=model.config.typed_recipe(),
        assumed=tuple(loaded.assumed) if loaded else (),
        references=dict(left_out.references),
        tokenizer={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        training=training or TrainingRecord(),
        versions=library_versions(),
        created_at=now(),
    )


def with_probe(model: PanoramaVLM, metadata: CheckpointMetadata) -> CheckpointMetadata:
    """Return a document with the probe of the model that it describes."""
    probe = take_probe(model, assumed=metadata.assumed)
    return metadata.model_copy(update={"probe": probe and probe.model_dump(mode="json")})


def embedded_entries(model: PanoramaVLM, metadata: CheckpointMetadata) -> dict[str, Any]:
    """Return the entries that make a checkpoint file describe itself.

    The tokenizer's files are byte tensors, so that reading the description does not read them. The
    probe has an entry of its own besides its place in the document: it tells the settings when the
    document is lost or wrong.
    """
    entries: dict[str, Any] = {EMBEDDED: metadata.to_json()}
    if metadata.probe is not None:
        entries[PROBE] = json.dumps(metadata.probe)
    if model.tokenizer is not None:
        files = tokenizer_files(model.tokenizer)
        entries[ATTACHED_TOKENIZER] = {
            name: torch.frombuffer(bytearray(data), dtype=torch.uint8)
            for name, data in files.items()
            if data
        }
    return entries


def write_sidecar(folder: Path, metadata: CheckpointMetadata) -> Path:
    """Write the document beside a checkpoint and return its path."""
    path = folder / SIDECAR
    write_bytes(path, metadata.to_json().encode())
    return path


def write_tokenizer(folder: Path, model: PanoramaVLM) -> None:
    """Write the model's tokenizer into the folder ``tokenizer`` beside a checkpoint."""
    if model.tokenizer is None:
        return
    for name, data in tokenizer_files(model.tokenizer).items():
        target = folder / TOKENIZER / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, data)


def save_checkpoint(model: PanoramaVLM, path: Path, *, stage: str = "") -> None:
    """Write a model outside training, as one ``.ckpt`` file with its document beside it.

    The document is the folder's, or the file's own where the folder holds checkpoints of other
    models. Whenever the process is killed, there is the old checkpoint or the new one.

    Of a quantised language model the weights in full precision are not in memory: the file refers
    to the model of its name for them, and for what else is frozen and still as it is there.

    Args:
        model: what to write.
        path: the file; its folder must exist.
        stage: name of the training stage, for the record.

    Raises:
        ConfigError: the language model was quantised from other weights than those of its name.
    """
    left_out = find_left_out(model) if model.is_quantized else NOTHING
    metadata = with_probe(model, describe_model(model, stage=stage, left_out=left_out))
    state: Mapping[str, Tensor] = model.state_dict()
    kept = {name: tensor for name, tensor in state.items() if name not in left_out.names}
    contents = {
        "state_dict": {f"model.{name}": tensor for name, tensor in kept.items()},
        **embedded_entries(model, metadata),
    }
    beside = _place_of(path, metadata)
    if _described(beside) not in ("", metadata.identity()):
        # The old file describes itself, as the new one will; with this beside it neither loads.
        beside.unlink()
    if beside.name != SIDECAR and not path.exists():
        # Without its own, the folder's document would be taken for that of the new file.
        write_bytes(beside, metadata.to_json().encode())
    with atomic_write(path) as file:
        torch.save(contents, file)
    write_bytes(beside, metadata.to_json().encode())
    write_tokenizer(path.parent, model)


def _place_of(path: Path, metadata: CheckpointMetadata) -> Path:
    """Return where the document of a new checkpoint goes."""
    own, common = own_sidecar(path), path.parent / SIDECAR
    if own.is_file():
        return own
    others = checkpoints_in(path.parent) if path.parent.is_dir() else []
    alone = all(other == path for other in others)
    return common if alone or _described(common) == metadata.identity() else own


def _described(path: Path) -> str:
    """Return which model a document describes; empty where there is none of this format."""
    raw = read_json(path)[0] if path.is_file() else {}
    return parse(raw, str(path)).identity() if is_ours(raw) else ""


def strip_metadata(source: Path, target: Path) -> None:
    """Copy a checkpoint file, leaving nothing but its weights.

    The settings among the weights are left out too, in favour of what marked a file before there
    were any. This is what a file looks like of which every description was lost; the demonstration
    uses it.
    """
    contents = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    with atomic_write(target) as file:
        torch.save({"state_dict": without_record(contents["state_dict"])}, file)


def without_record(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict as it was before models kept their settings in it."""
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        front, dot, leaf = name.rpartition(".")
        if leaf == RECORD:
            kept[f"{front}{dot}{EARLIER}"] = torch.ones(1, dtype=torch.uint8)
        else:
            kept[name] = tensor
    return kept
