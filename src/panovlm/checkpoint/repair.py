"""Give a checkpoint the metadata that it lacks, or mend what contradicts its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panovlm.checkpoint.atomic import write_bytes
from panovlm.checkpoint.averages import Weights
from panovlm.checkpoint.locate import SIDECAR
from panovlm.checkpoint.metadata import (
    CheckpointMetadata,
    Reference,
    TrainingRecord,
    library_versions,
    now,
)
from panovlm.checkpoint.original import section
from panovlm.checkpoint.resolution import Resolution
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.settling import Prefer


@dataclass(frozen=True)
class Repair:
    """What :func:`add_metadata` found and did.

    Attributes:
        path: the sidecar.
        resolution: what the checkpoint's documents and weights tell.
        complete: whether the sidecar said all of that already.
        written: whether it was written now.
    """

    path: Path
    resolution: Resolution
    complete: bool
    written: bool


def add_metadata(
    path: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    prefer: Prefer | None = None,
    weights: Weights | None = None,
    dry_run: bool = False,
) -> Repair:
    """Write ``checkpoint_metadata.json`` beside a checkpoint; the weights are never touched.

    What the weights or documents tell is recorded as such; what nobody knows is recorded as
    assumed, so that the next reader is told too. Nothing is written when the checkpoint's metadata
    is complete already.

    Args:
        path: checkpoint file or folder.
        overrides: settings that the user knows, by dotted name.
        prefer: which side wins where metadata and weights contradict each other.
        weights: which copy is meant where a file holds the live weights and their average.
        dry_run: find out, but write nothing.

    Raises:
        CheckpointError: the checkpoint cannot be opened.
        ContradictionError: a contradiction is left that ``prefer`` does not settle.
    """
    resolution = resolve(path, overrides, prefer=prefer, weights=weights)
    resolution.raise_conflicts()
    sidecar = resolution.location.folder / SIDECAR
    text = _document(resolution).to_json().encode()
    complete = sidecar.is_file() and sidecar.read_bytes() == text
    if not complete and not dry_run:
        write_bytes(sidecar, text)
    return Repair(sidecar, resolution, complete, written=not complete and not dry_run)


def _document(resolution: Resolution) -> CheckpointMetadata:
    """Return the complete document of a resolved checkpoint."""
    known = resolution.metadata
    extras = resolution.header.extras
    epoch, step = extras.get("epoch"), extras.get("global_step")
    record = TrainingRecord(
        epoch=epoch if isinstance(epoch, int) else 0,
        global_step=step if isinstance(step, int) else 0,
    )
    return CheckpointMetadata(
        experiment_name=known.experiment_name if known else "",
        stage=known.stage if known else str(section(extras, "hyper_parameters").get("stage", "")),
        fingerprint=resolution.fingerprint,
        amends=_amended(resolution),
        recipe=resolution.config,
        assumed=tuple(resolution.assumed),
        references={
            prefix: Reference(name=source.name, digest=source.digest)
            for prefix, source in resolution.borrowed.items()
        },
        tokenizer=known.tokenizer if known else {},
        training=known.training if known else record,
        versions=known.versions if known else library_versions(),
        created_at=known.created_at if known else now(),
    )


def _amended(resolution: Resolution) -> str:
    """Return the digest of the copy inside the file, if that copy says something else."""
    embedded = resolution.embedded
    if embedded is None or embedded.recipe == resolution.config:
        return ""
    return embedded.digest()
