"""Whether a checkpoint loads, and whether it loads as the model that was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from panovlm.checkpoint.find.locate import locate
from panovlm.checkpoint.loading.load import (
    build_empty,
    complete,
    convert,
    fill,
    prove_model,
)
from panovlm.checkpoint.names.averages import Weights
from panovlm.checkpoint.probe.check import NAMES, ProbeReport, check_probe, explain
from panovlm.checkpoint.probe.measure import precisions
from panovlm.checkpoint.probe.record import Part
from panovlm.checkpoint.resolution import Resolution
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.settle.settling import Prefer
from panovlm.errors import CheckpointError, PanoVLMError

Outcome = Literal["passed", "failed", "not checked"]


@dataclass(frozen=True)
class Check:
    """One question about a checkpoint, and the answer."""

    name: str
    outcome: Outcome
    detail: str


@dataclass
class Verification:
    """What :func:`verify` found.

    Attributes:
        path: the checkpoint file (what was asked about, where none was found).
        checks: the questions in order; after a failure no more are asked.
        resolution: the resolved configuration, if there is one.
        report: the comparison with the probe, as far as it came to that.
    """

    path: Path
    checks: list[Check] = field(default_factory=list[Check])
    resolution: Resolution | None = None
    report: ProbeReport = field(default_factory=lambda: ProbeReport(None))

    @property
    def holds(self) -> bool:
        """Whether nothing came out negative."""
        return all(check.outcome != "failed" for check in self.checks)

    @property
    def verdict(self) -> str:
        """The result in one line."""
        if not self.holds:
            differs = self.checks[-1].name == "probe"
            return "does not load" + (": it is not the model that was saved" if differs else "")
        if self.report.expected:
            return "loads, changed by the settings that you gave"
        if not self.report.compared:
            return "loads; it has no probe that shows whether it computes what it did"
        return "loads, and computes what it computed when it was saved"

    def as_json(self) -> dict[str, Any]:
        """Return the findings as plain data."""
        report = self.report
        return {
            "checkpoint": str(self.path),
            "holds": self.holds,
            "verdict": self.verdict,
            "checks": [vars(check) for check in self.checks],
            "assumed": self.resolution.assumed if self.resolution else [],
            "notes": self.resolution.notes if self.resolution else [],
            "probe": {
                "found": report.found_in,
                "compared": report.compared,
                "differences": {
                    part: [str(difference) for difference in found]
                    for part, found in report.differences.items()
                },
                "expected": report.expected,
                "other_weights": report.other_weights,
                "skipped": report.skipped,
            },
        }


class _Steps:
    """The questions about one checkpoint; each builds on the answers before it."""

    def __init__(self, resolution: Resolution, device: torch.device, dtype: torch.dtype | None):
        self.resolution = resolution
        self.device = device
        self.dtype = dtype
        self.report = ProbeReport(None)

    def configuration(self, *, strict: bool) -> Check:
        """Whether its documents agree with each other and with its weights."""
        resolution = self.resolution
        resolution.raise_conflicts()
        if strict:
            resolution.raise_assumed()
        assumed = len(resolution.assumed)
        detail = f"{assumed} setting(s) are assumed" if assumed else "every setting is known"
        return Check("configuration", "passed", detail)

    def proof(self) -> Check:
        """Whether every tensor has its place, and every place a tensor."""
        self.model = build_empty(complete(self.resolution))
        self.proven = prove_model(self.resolution, self.model)
        self.proven.raise_failure(self.resolution.path)
        count = len(self.proven.matched)
        return Check("proof", "passed", f"{count} tensors, each in its place")

    def weights(self) -> Check:
        """Whether its values can be read and made the model's own."""
        fill(self.resolution, self.model, self.proven)
        return Check("weights", "passed", "read and bound")

    def probe(self) -> Check:
        """Whether it computes what it computed when it was written."""
        model = cast(nn.Module, self.model)
        stored = precisions(model)
        if self.dtype is not None:
            convert(model, self.dtype)
        model.to(self.device)
        self.report = check_probe(self.model.eval(), self.resolution, stored)
        if self.report.wrong:
            return Check("probe", "failed", explain(self.report, self.resolution))
        self.resolution.notes += self.report.notes()
        compared: list[Part] = [
            part for part in self.report.compared if part not in self.report.expected
        ]
        if not compared:
            return Check("probe", "not checked", "the checkpoint has no probe of these parts")
        agree = ", ".join(NAMES[part] for part in compared)
        return Check("probe", "passed", f"as in {self.report.found_in}: {agree}")


def verify(
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    prefer: Prefer | None = None,
    strict: bool = False,
    overrides: Mapping[str, Any] | None = None,
    weights: Weights | None = None,
) -> Verification:
    """Load a checkpoint step by step and say how far it gets.

    Args:
        path: checkpoint file or folder.
        device: where its probe is run.
        dtype: floating-point type to run it in; unset: as in the file.
        prefer: which side wins where metadata and weights contradict each other.
        strict: whether assumed settings are a failure.
        overrides: settings by dotted name.
        weights: which copy to take where a file holds live and averaged weights.

    Raises:
        CheckpointError: there is no checkpoint.
        ConfigError: an override is unknown or wrong.
    """
    found = Verification(locate(path).checkpoint)
    # What is wrong with the checkpoint is the answer here, not an error.
    try:
        found.resolution = resolve(path, overrides, prefer=prefer, weights=weights)
    except CheckpointError as error:
        found.checks.append(Check("configuration", "failed", str(error)))
        return found
    steps = _Steps(found.resolution, device, dtype)
    questions: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("configuration", lambda: steps.configuration(strict=strict)),
        ("proof", steps.proof),
        ("weights", steps.weights),
        ("probe", steps.probe),
    )
    for name, question in questions:
        try:
            check = question()
        except PanoVLMError as error:
            check = Check(name, "failed", str(error))
        found.checks.append(check)
        if check.outcome == "failed":
            break
    found.report = steps.report
    return found
