"""The result of resolving a checkpoint: its whole configuration, and where each part came from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from panovlm.checkpoint.documents.metadata import CheckpointMetadata, Prefix
from panovlm.checkpoint.documents.recipe_record import ORIGIN, RecipeRecord
from panovlm.checkpoint.documents.sources import Claims
from panovlm.checkpoint.fields import FieldMap
from panovlm.checkpoint.find.adapters import Part
from panovlm.checkpoint.find.locate import Location
from panovlm.checkpoint.formats import Header
from panovlm.checkpoint.names.averages import Weights
from panovlm.checkpoint.names.keymap import MARKERS, KeyMap
from panovlm.checkpoint.probe.record import ENTRY as PROBE
from panovlm.checkpoint.settle.infer import Inferred
from panovlm.config.model_recipe import Recipe
from panovlm.errors import CheckpointError, ContradictionError

FINGERPRINT = "fingerprint"
"""Stands for a field where a document was written for other weights."""

SourceKind = Literal["override", "metadata", "weights", "default"]


@dataclass(frozen=True)
class Source:
    """Where the value of one field came from."""

    kind: SourceKind
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


@dataclass(frozen=True)
class Conflict:
    """One field that two sources describe differently."""

    field: str
    claimed: Any
    claimed_by: str
    observed: Any
    observed_in: str
    possible: bool = False
    """Whether a model could be as claimed: the other side is a document, not the weights."""

    def __str__(self) -> str:
        return (
            f"{self.field}: {self.claimed!r} ({self.claimed_by}) against {self.observed!r} "
            f"({self.observed_in})"
        )


@dataclass(frozen=True)
class Borrowed:
    """A backbone of which weights are in no file of the checkpoint, and where they come from.

    Attributes:
        name: folder or hub id that has them.
        digest: of their values; empty where nobody recorded it.
        why: what says so.
    """

    name: str
    digest: str
    why: str


@dataclass
class Resolution:
    """The resolved configuration of one checkpoint.

    Attributes:
        config: the whole recipe.
        sources: field (dotted, or its last part) → :class:`Source`.
        conflicts: contradictions that nothing has settled; such a checkpoint does not load.
        assumed: fields that decide outputs and that neither metadata nor weights tell.
        claims: what the caller and every document that was read state, strongest first.
        notes: remarks for the reader.
        metadata: the typed document of the checkpoint, if it has one of this format.
        embedded: the typed document inside the file, which ``metadata`` may correct.
        weights: which of two copies of the weights is meant, as the caller said.
        adapters: adapters of another file that join the weights.
        borrowed: backbones whose weights are elsewhere, by the beginning of their names.
        fingerprint: of the names and shapes in the checkpoint file.
        changed: fields that the caller states otherwise than a document of the checkpoint.
        record: the settings that the weights keep.
    """

    location: Location
    header: Header
    keys: KeyMap
    inferred: Inferred
    config: Recipe
    sources: FieldMap[Source]
    conflicts: list[Conflict]
    assumed: list[str]
    claims: Sequence[Claims] = ()
    notes: list[str] = field(default_factory=list[str])
    metadata: CheckpointMetadata | None = None
    embedded: CheckpointMetadata | None = None
    weights: Weights | None = None
    adapters: Part | None = None
    borrowed: Mapping[Prefix, Borrowed] = field(default_factory=dict[Prefix, Borrowed])
    fingerprint: str = ""
    changed: list[str] = field(default_factory=list[str])
    record: RecipeRecord | None = None

    @property
    def path(self) -> Path:
        """The checkpoint file."""
        return self.location.checkpoint

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights under the model's own names; a marker is no weight."""
        shapes = self.keys.shapes({n: info.shape for n, info in self.header.tensors.items()})
        return {name: shape for name, shape in shapes.items() if name not in MARKERS}

    def raise_conflicts(self) -> None:
        """Stop if a contradiction is left.

        Raises:
            ContradictionError: both sides of each, and both ways out.
        """
        if not self.conflicts:
            return
        lines = "\n".join(f"  {conflict}" for conflict in self.conflicts)
        raise ContradictionError(
            f"{self.path}: {self.contradiction}:\n{lines}\nNo model can be both. {self._ways_out()}"
        )

    @property
    def contradiction(self) -> str:
        """Who contradicts whom."""
        if all(conflict.possible and conflict.field != FINGERPRINT for conflict in self.conflicts):
            if all(conflict.observed_in == ORIGIN for conflict in self.conflicts):
                return f"metadata and the {ORIGIN} contradict each other"
            return "its documents contradict each other"
        if all(conflict.claimed_by == "override" for conflict in self.conflicts):
            return "what you state and the weights contradict each other"
        return "metadata and weights contradict each other"

    def _ways_out(self) -> str:
        """Say how contradictions are settled."""
        if all(conflict.claimed_by == "override" for conflict in self.conflicts):
            return "Correct what you state, or leave it out: the weights show these."
        weights, metadata = "the weights' side", "the document's side"
        if "documents" in self.contradiction:
            weights, metadata = "the copy inside the file", "the one beside it"
        ways = f'Take {weights} with --prefer weights (prefer="weights"),'
        if all(conflict.possible for conflict in self.conflicts):
            ways += f' or {metadata} with --prefer metadata (prefer="metadata"),'
        if len(self.conflicts) > 1:
            ways += " each field by itself with --prefer FIELD=weights,"
        return (
            f"{ways} or mend the metadata for good with "
            f"`panovlm add-metadata --checkpoint {self.path} --prefer weights`."
        )

    def raise_assumed(self) -> None:
        """Stop if a field is assumed (strict loading).

        Raises:
            CheckpointError: the fields, and how to settle them.
        """
        if self.assumed:
            lines = "\n".join(f"  {name} = {self.value(name)!r}" for name in self.assumed)
            raise CheckpointError(
                f"{self.path}: neither metadata nor weights tell these settings, and strict "
                f"loading does not assume them:\n{lines}\n{self.how_to_settle()}"
            )

    def told_assumed(self) -> str:
        """Say in a sentence what is assumed."""
        return (
            f"{self.path}: neither metadata nor weights tell {len(self.assumed)} setting(s), and "
            "usual values are assumed; if one is wrong, so is what the model computes: "
            f"{', '.join(self.assumed)}. Give overrides={{...}}, or settle them for good with "
            "`panovlm add-metadata`; strict=True refuses them."
        )

    def how_to_settle(self) -> str:
        """Say how the assumed fields become known, with the command for a shell to do it.

        The command states the values that are assumed now; those that are wrong are to be changed.
        """
        solving = ""
        known = (self.metadata, self.embedded)
        if PROBE in self.header.extras or any(m is not None and m.probe for m in known):
            solving = (
                f"`panovlm repair {shlex.quote(str(self.path))} --solve --write` settles those "
                "that the checkpoint's probe shows. "
            )
        stated = "".join(
            f" \\\n    --set {shlex.quote(f'{name}={json.dumps(self.value(name))}')}"
            for name in self.assumed
        )
        return (
            f"{solving}State them with --set FIELD=VALUE, or for good with (after changing what is "
            f"wrong):\n  panovlm add-metadata --checkpoint {shlex.quote(str(self.path))}{stated}"
        )

    def value(self, name: str) -> Any:
        """Return the value of a field by dotted name (or its last part)."""
        place: Any = self.config
        for part in self.sources.full_name(name).split("."):
            place = place[part] if isinstance(place, Mapping) else getattr(place, part)
        return place
