"""Give checkpoints the metadata that they lack, or mend what contradicts their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from panovlm.atomic import link_or_copy, write_bytes
from panovlm.checkpoint.documents.document import document
from panovlm.checkpoint.documents.metadata import CheckpointMetadata, is_ours, parse, read_json
from panovlm.checkpoint.fields import flatten, flatten_stated
from panovlm.checkpoint.find.locate import SIDECAR, Location, locate, own_sidecar
from panovlm.checkpoint.find.tree import checkpoints_by_folder, checkpoints_in
from panovlm.checkpoint.names.averages import Weights
from panovlm.checkpoint.resolution import Resolution
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.settle.settling import Prefer
from panovlm.errors import PanoVLMError

KEPT = "checkpoint_metadata.original.json"
"""Where the original system's document stays when today's takes its place."""


@dataclass(frozen=True)
class Repair:
    """What :func:`add_metadata` found and did.

    Attributes:
        path: the document: the folder's ``checkpoint_metadata.json``, or that of this file alone.
        resolution: what the checkpoint's documents and weights tell.
        document: what the document says now, or would say.
        complete: whether all of that was said already.
        written: whether it was written now.
        without_probe: whether the probe of an earlier document is left out, which is not of this
            model.
    """

    path: Path
    resolution: Resolution
    document: CheckpointMetadata
    complete: bool
    written: bool
    without_probe: bool = False

    @property
    def checkpoint(self) -> Path:
        """The file that is described."""
        return self.resolution.path

    @property
    def status(self) -> str:
        """``complete``, ``written`` or (of a dry run) ``would be written``."""
        return "complete" if self.complete else "written" if self.written else "would be written"

    def as_json(self) -> dict[str, Any]:
        """Return what was done as plain data."""
        return {
            "checkpoint": str(self.checkpoint),
            "document": str(self.path),
            "status": self.status,
            "inferred": self.document.inferred,
            "assumed": {name: self.resolution.value(name) for name in self.document.assumed},
            "without_probe": self.without_probe,
            "notes": self.resolution.notes,
        }


@dataclass(frozen=True)
class Failure:
    """A checkpoint of a tree that was left as it is.

    Attributes:
        reason: what is wrong with it and how to mend it.
    """

    checkpoint: Path
    reason: str
    status = "failed"

    def as_json(self) -> dict[str, Any]:
        """Return what went wrong as plain data."""
        return {
            "checkpoint": str(self.checkpoint),
            "document": None,
            "status": self.status,
            "error": self.reason,
        }


def add_metadata(
    path: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    prefer: Prefer | None = None,
    weights: Weights | None = None,
    dry_run: bool = False,
) -> Repair:
    """Write the document that a checkpoint lacks beside it; the weights are never touched.

    What the weights tell is recorded as inferred, and what nobody knows as assumed, so that the
    next reader is told too. Nothing is written where the checkpoint is described completely.

    The document is the folder's ``checkpoint_metadata.json`` if it holds for every checkpoint of
    the folder, as for those of one run. Otherwise the file gets one of its own
    (``last.ckpt.metadata.json``), so that describing one checkpoint never changes another.

    Args:
        path: checkpoint file or folder.
        overrides: settings that the user knows, by dotted name.
        prefer: which side wins where metadata and weights contradict each other.
        weights: which copy is meant where a file holds the live weights and their average.
        dry_run: find out, but write nothing.

    Raises:
        CheckpointError: the checkpoint cannot be opened, or the document not be written.
        ContradictionError: a contradiction is left that ``prefer`` does not settle.
    """
    found = _resolved(path, overrides, prefer, weights)
    shared = all(_alike(found, other) for other in _neighbours(found.location))
    return _give(found, shared=shared, dry_run=dry_run)


def add_metadata_below(
    root: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    prefer: Prefer | None = None,
    weights: Weights | None = None,
    dry_run: bool = False,
) -> Iterator[Repair | Failure]:
    """Do :func:`add_metadata` for every checkpoint below a folder, one after the other.

    What is stated holds for all of them. A checkpoint that cannot be described does not keep the
    others from it.

    Raises:
        CheckpointError: there is none.
    """
    for files in checkpoints_by_folder(root).values():
        resolved: dict[Path, list[Resolution]] = {}
        for file in files:
            try:
                found = _resolved(file, overrides, prefer, weights)
            except (PanoVLMError, OSError) as error:
                yield Failure(file, str(error))
            else:
                resolved.setdefault(found.location.folder, []).append(found)
        for folder, group in resolved.items():
            yield from _give_all(folder, group, dry_run=dry_run)


def _give_all(
    folder: Path, group: Sequence[Resolution], *, dry_run: bool
) -> Iterator[Repair | Failure]:
    """Describe the checkpoints whose documents stand in one folder."""
    shared = all(_alike(group[0], other) for other in group[1:])
    for found in _first_choice_first(folder, group):
        try:
            yield _give(found, shared=shared, dry_run=dry_run)
        except PanoVLMError as error:
            yield Failure(found.path, str(error))


def _resolved(
    path: Path,
    overrides: Mapping[str, Any] | None,
    prefer: Prefer | None,
    weights: Weights | None,
) -> Resolution:
    found = resolve(path, overrides, prefer=prefer, weights=weights)
    found.raise_conflicts()
    return found


def _neighbours(location: Location) -> Iterator[Resolution]:
    """Resolve the checkpoints that a folder's document is about, too.

    Those that do not load anyway have no say.
    """
    if location.folder == location.checkpoint:
        return
    for path in checkpoints_in(location.folder):
        if path != location.checkpoint:
            try:
                found = resolve(path)
            except PanoVLMError:
                continue
            if found.location.folder == location.folder:
                yield found


def _first_choice_first(folder: Path, found: Sequence[Resolution]) -> list[Resolution]:
    """Put the checkpoint that the folder stands for in front: its step is what is recorded."""
    if len(found) < 2:
        return list(found)
    try:
        chosen = locate(folder).checkpoint
    except PanoVLMError:  # several, and none of them comes first
        return list(found)
    return sorted(found, key=lambda resolution: resolution.path != chosen)


def _alike(one: Resolution, other: Resolution) -> bool:
    """Tell whether one document can describe both checkpoints."""
    return not other.conflicts and _same(document(one), document(other))


def _same(one: CheckpointMetadata, other: CheckpointMetadata) -> bool:
    """Tell whether two documents say the same about a model, whatever the step."""
    fields = ("fingerprint", "recipe", "assumed", "inferred", "references")
    # A setting that a document leaves out equals its default, and is not said all the same.
    return flatten_stated(one.recipe).keys() == flatten_stated(other.recipe).keys() and all(
        getattr(one, name) == getattr(other, name) for name in fields
    )


def _give(found: Resolution, *, shared: bool, dry_run: bool) -> Repair:
    """Write a checkpoint's document where it belongs, unless it is there."""
    wanted, there = document(found), _present(found)
    dropped = False
    if wanted.probe is None and there is not None and there.probe is not None:
        dropped = _is_foreign(there, found, wanted)
        # Otherwise it is of this file, or of another one of the folder.
        wanted = wanted.model_copy(update={"probe": None if dropped else there.probe})
    complete = there is not None and _same(there, wanted) and _corrects(there) == _corrects(wanted)
    own, common = own_sidecar(found.path), found.location.folder / SIDECAR
    path = common if shared and not own.is_file() else own
    if complete:
        path = locate(found.path).sidecar or path
    elif not dry_run:
        _keep_original(path)
        write_bytes(path, wanted.to_json().encode())
    written = not complete and not dry_run
    return Repair(path, found, wanted, complete, written, without_probe=dropped)


def _is_foreign(there: CheckpointMetadata, found: Resolution, wanted: CheckpointMetadata) -> bool:
    """Tell whether a document was made for another model: what it probed was another one, too.

    It is for other weights, or the weights disprove a setting that it states.
    """
    documents = (claim.document for claim in found.claims)
    believed = {document.identity() for document in documents if document is not None}
    if there.fingerprint != found.fingerprint and there.identity() not in believed:
        return True
    told, now = flatten_stated(there.recipe), flatten(wanted.recipe)
    by_weights = (n for n in told if n in found.sources and found.sources[n].kind == "weights")
    return any(_differ(told[name], now.get(name)) for name in by_weights)


def _differ(told: Any, now: Any) -> bool:
    """Compare two values of a setting; of a backbone's configuration, what both of them state."""
    if isinstance(told, Mapping) and isinstance(now, Mapping):
        stated = cast("Mapping[str, Any]", told)
        return any(stated[key] != value for key, value in now.items() if key in stated)
    return told != now


def _corrects(document: CheckpointMetadata) -> tuple[str, str]:
    """Return what a document was written to correct."""
    return document.amends, document.amends_weights


def _present(found: Resolution) -> CheckpointMetadata | None:
    """Return the document of today's format that describes a checkpoint, if it is whole."""
    path = locate(found.path).sidecar  # it may have been written since, with a neighbour
    if path is None:
        return found.embedded
    raw, note = read_json(path)
    return parse(raw, path.name) if note is None and is_ours(raw) else None


def _keep_original(path: Path) -> None:
    """Keep the original system's document, which says more than the model, under another name."""
    before = read_json(path)[0] if path.is_file() else {}
    if before and not is_ours(before):
        link_or_copy(path, path.parent / KEPT)
