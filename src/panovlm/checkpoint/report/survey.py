"""The verdict on every checkpoint of a tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panovlm.checkpoint.find.tree import checkpoints_by_folder
from panovlm.checkpoint.names.averages import Weights
from panovlm.checkpoint.report.describe import Verdict, trained, verdict
from panovlm.checkpoint.resolution import Resolution
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.settle.settling import Prefer
from panovlm.errors import PanoVLMError

LOADS: frozenset[Verdict] = frozenset({"ok", "assumed"})


@dataclass(frozen=True)
class Finding:
    """What became of opening one checkpoint of a tree.

    Attributes:
        reason: why it does not load; of one that does, what is known of its training.
        resolution: ``None`` where it could not be opened.
    """

    checkpoint: Path
    verdict: Verdict
    reason: str
    resolution: Resolution | None

    def as_json(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        found = self.resolution
        return {
            "checkpoint": str(self.checkpoint),
            "verdict": self.verdict,
            "reason": self.reason,
            "container": found.header.container if found else None,
            "resampler_type": found.config.models.resampler_type if found else None,
            "assumed": found.assumed if found else [],
            "conflicts": [str(conflict) for conflict in found.conflicts] if found else [],
        }


def survey(
    root: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    prefer: Prefer | None = None,
    weights: Weights | None = None,
) -> Iterator[Finding]:
    """Resolve every checkpoint below a folder; only headers are read.

    Raises:
        CheckpointError: there is none.
    """
    for files in checkpoints_by_folder(root).values():
        for file in files:
            yield examine(file, overrides=overrides, prefer=prefer, weights=weights)


def examine(
    file: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    prefer: Prefer | None = None,
    weights: Weights | None = None,
) -> Finding:
    """Resolve one checkpoint; what is wrong with it is part of the finding."""
    try:
        found = resolve(file, overrides, prefer=prefer, weights=weights)
        told = trained(found)
    except (PanoVLMError, OSError) as error:
        return Finding(file, "broken", str(error), None)
    kind, words = verdict(found)
    if kind == "conflict":
        first, *more = map(str, found.conflicts)
        words = first + (f" (and {len(more)} more)" if more else "")
    return Finding(file, kind, told if kind in LOADS else words, found)
