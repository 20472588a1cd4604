"""The complete document of a resolved checkpoint: known, inferred and assumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from panovlm.checkpoint.documents import original
from panovlm.checkpoint.documents.metadata import (
    CheckpointMetadata,
    Reference,
    TrainingRecord,
    is_ours,
    library_versions,
    now,
    read_json,
)
from panovlm.checkpoint.fields import flatten, nest
from panovlm.checkpoint.probe.record import own_probe
from panovlm.checkpoint.resolution import Resolution
from panovlm.checkpoint.settle.backbones import BACKBONES
from panovlm.config.model_recipe import Recipe


def document(resolution: Resolution) -> CheckpointMetadata:
    """Return the document that says everything about a checkpoint.

    Its weights are not read. Of a checkpoint that has one already, it is the same again.
    """
    known, before = resolution.metadata, _original_document(resolution)
    recipe = _recipe(resolution)
    itself = resolution.embedded or known  # what the file says of itself counts
    return CheckpointMetadata(
        experiment_name=itself.experiment_name if itself else _text(before, "experiment_name"),
        stage=stage(resolution),
        fingerprint=resolution.fingerprint,
        amends=_amended(resolution, recipe),
        amends_weights=_amended_weights(resolution, recipe),
        recipe=recipe,
        assumed=tuple(resolution.assumed),
        inferred=_inferred(resolution, recipe),
        references={
            prefix: Reference(name=source.name, digest=source.digest)
            for prefix, source in resolution.borrowed.items()
        },
        tokenizer=known.tokenizer if known else {},
        training=training_record(resolution),
        conversions=known.conversions if known else (),
        versions=known.versions if known else library_versions(),
        created_at=known.created_at if known else now(),
        probe=own_probe(resolution),
    )


def stage(resolution: Resolution) -> str:
    """Return the stage in which this file was written, empty where nothing tells it."""
    itself = resolution.embedded or resolution.metadata
    if itself is not None:
        return itself.stage
    hyper = original.section(resolution.header.extras, "hyper_parameters")
    return _text(_original_document(resolution), "stage") or _text(hyper, "stage")


def training_record(resolution: Resolution) -> TrainingRecord:
    """Return where in its training this file was written.

    What the file says of itself goes before a document beside it, which may have been written with
    another checkpoint of the same run.
    """
    if resolution.embedded is not None:
        return resolution.embedded.training
    before = _original_document(resolution)
    beside = resolution.metadata.training if resolution.metadata else original.record(before)
    extras = resolution.header.extras
    epoch, step = extras.get("epoch"), extras.get("global_step")
    if not isinstance(epoch, int) or not isinstance(step, int):
        return beside
    if (beside.epoch, beside.global_step) == (epoch, step):
        return beside
    return beside.model_copy(update={"epoch": epoch, "global_step": step, "val_loss": None})


def _original_document(resolution: Resolution) -> dict[str, Any]:
    """Return the original system's document beside a checkpoint, empty where there is none."""
    path = resolution.location.sidecar
    raw = read_json(path)[0] if path is not None else {}
    return {} if is_ours(raw) else raw


def _recipe(resolution: Resolution) -> Recipe:
    """Return the resolved recipe; what a document leaves unset for the default stays unset.

    "Unset" is a value of some fields (the width of the overlap head is that of the resampler
    then). The weights show what it came to, but that is nothing the document lacks.
    """
    known = resolution.metadata
    if known is None:
        return resolution.config
    values = flatten(resolution.config)
    for name, value in flatten(known.recipe).items():
        if value is None and name not in BACKBONES and name in values:
            values[name] = None if resolution.sources[name].kind == "weights" else values[name]
    return Recipe.model_validate(nest(values))


def _inferred(resolution: Resolution, recipe: Recipe) -> dict[str, str]:
    """Return the fields whose values were read off the weights, now or for an earlier document."""
    before = resolution.metadata.inferred if resolution.metadata else {}
    unset = {name for name, value in flatten(recipe).items() if value is None}
    found: dict[str, str] = {}
    for name, source in resolution.sources.items():
        if source.kind == "weights" and name not in unset:
            found[name] = source.detail
        elif source.kind == "metadata" and name in before:
            found[name] = before[name]
    return found


def _amended(resolution: Resolution, recipe: Recipe) -> str:
    """Return what identifies the copy inside the file, if that copy says something else."""
    embedded = resolution.embedded
    return "" if embedded is None or embedded.recipe == recipe else embedded.identity()


def _amended_weights(resolution: Resolution, recipe: Recipe) -> str:
    """Return what identifies the settings among the weights, if they say something else."""
    record = resolution.record
    return "" if record is None or record.tells(recipe) else record.identity()


def _text(values: Mapping[str, Any], name: str) -> str:
    """Return an entry of a document as text, empty where there is none."""
    return str(values.get(name) or "")
