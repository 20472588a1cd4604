"""The settings of a checkpoint while they are being decided, one field after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from panovlm.checkpoint.documents.metadata import CheckpointMetadata
from panovlm.checkpoint.documents.sources import Claims
from panovlm.checkpoint.names.keymap import KeyMap
from panovlm.checkpoint.resolution import Conflict, Source, SourceKind
from panovlm.checkpoint.settle.infer import Inferred
from panovlm.checkpoint.settle.shapes import Observed

OVERRIDE = "override"
"""Origin of what the caller states."""

Side = Literal["weights", "metadata"]
Prefer = Side | Mapping[str, Side]
"""Which side wins where two contradict each other: for all fields, or by dotted field."""


@dataclass
class Settling:
    """What is known about one checkpoint, and what has been decided from it so far.

    Attributes:
        keys: the names in the file.
        inferred: what its shapes tell.
        claims: what documents state, strongest first.
        prefer: which side wins where metadata and weights contradict each other.
        embedded: the document inside the file.
        values: dotted field → value.
        sources: dotted field → where its value came from.
        conflicts: contradictions that nothing has settled.
        assumed: fields that nobody knows.
        notes: remarks for the reader.
    """

    keys: KeyMap
    inferred: Inferred
    claims: Sequence[Claims]
    prefer: Prefer | None
    embedded: CheckpointMetadata | None = None
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    sources: dict[str, Source] = field(default_factory=dict[str, Source])
    conflicts: list[Conflict] = field(default_factory=list[Conflict])
    assumed: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])

    def claim(self, name: str) -> Claims | None:
        """Return the strongest document that states a field.

        "Unset" states nothing about a field that the weights show, and nobody has a say about a
        part that is left out.
        """
        if name in self.inferred.overruled:
            return None
        unset_counts = name not in self.inferred.fields
        claims = self.claims
        if self.preferred(name) == "weights":
            claims = inside_first(claims, self.embedded)
        for claim in claims:
            if name in claim.values and (unset_counts or claim.values[name] is not None):
                return claim
        return None

    def preferred(self, name: str) -> Side | None:
        """Return which side the caller prefers for a field."""
        return preferred(self.prefer, name)

    def set(self, name: str, value: Any, source: Source, *, assumed: bool = False) -> None:
        """Decide one field."""
        self.values[name] = value
        self.sources[name] = source
        if assumed and name not in self.assumed:
            self.assumed.append(name)
        if not assumed and name in self.assumed:
            self.assumed.remove(name)

    def contradict(self, name: str, claimed: Any, origin: str, observed: Observed) -> Any:
        """Record that a document contradicts the weights.

        Returns:
            The value to go on with: that of the weights where they are preferred, and then the
            contradiction is settled.
        """
        if self.preferred(name) == "weights":
            self.notes.append(f"{name}: {origin} says {claimed!r}; the weights were preferred")
            return observed.value
        evidence = f"weights: {observed.evidence}"
        self.conflicts.append(Conflict(name, claimed, origin, observed.value, evidence))
        return claimed


def preferred(prefer: Prefer | None, name: str) -> Side | None:
    """Return which side wins for a field."""
    return prefer.get(name) if isinstance(prefer, Mapping) else prefer


def inside_first(claims: Sequence[Claims], embedded: CheckpointMetadata | None) -> Sequence[Claims]:
    """Put what the file itself says in front of all but what the caller states.

    The settings among the weights come first, then the document inside the file.
    """

    def rank(claim: Claims) -> int:
        if claim.origin == OVERRIDE:
            return 0
        if claim.among_weights:
            return 1
        return 3 if claim.document is None or claim.document != embedded else 2

    return sorted(claims, key=rank)


def kind_of(claim: Claims) -> SourceKind:
    """Tell whether a claim is the caller's, a document's or the weights'."""
    if claim.among_weights:
        return "weights"
    return "override" if claim.origin == OVERRIDE else "metadata"


def source_of(claim: Claims, name: str) -> Source:
    """Return the source of a field that a claim decides: the caller's word, or a document."""
    evidence = claim.inferred.get(name)
    return Source(kind_of(claim), claim.origin + (f" (inferred: {evidence})" if evidence else ""))


def plain(value: Any) -> Any:
    """Return a value in the form in which two sources can be compared."""
    if isinstance(value, tuple | list):
        items = [plain(item) for item in value]
        return items[0] if len(items) == 2 and items[0] == items[1] else items
    return value


def stated_otherwise(documents: Sequence[Claims], stated: Mapping[str, Any]) -> list[str]:
    """Return the fields that the caller states otherwise than a document does.

    Args:
        documents: what the checkpoint's documents state.
        stated: what the caller does, single keys of a backbone's configuration included.
    """

    def differs(name: str, claim: Claims) -> bool:
        section, _, key = name.rpartition(".")
        whole = claim.values.get(section)
        known, key = (whole, key) if isinstance(whole, Mapping) else (claim.values, name)
        return key in known and plain(known[key]) != plain(stated[name])

    return [name for name in stated if any(differs(name, claim) for claim in documents)]
