"""Finding the settings that no shape shows by what the model computed when it was saved.

The likely values of each such setting are tried, one or two at a time, until a part of the model
gives its old result again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

from panovlm.checkpoint.fields import flatten, flatten_mapping
from panovlm.checkpoint.loading.load import assemble
from panovlm.checkpoint.names.averages import Weights
from panovlm.checkpoint.probe.candidates import Candidate, candidates, value_of
from panovlm.checkpoint.probe.compare import Difference
from panovlm.checkpoint.probe.reach import parts_reached
from panovlm.checkpoint.probe.record import PARTS, Part, find_probe
from panovlm.checkpoint.repair.metadata import Repair, add_metadata
from panovlm.checkpoint.repair.trial import Changes, Trial
from panovlm.checkpoint.resolution import Conflict, Resolution
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.settle.backbones import BACKBONES
from panovlm.checkpoint.settle.settling import Prefer, plain
from panovlm.config.legacy import translate
from panovlm.config.load import load_mapping
from panovlm.errors import CheckpointError

MOST_TRIALS = 2000
"""Runs of one part after which the search is given up."""
MAIN = ("output", "pictures")
"""Sketches that show what has no sketch of its own."""
# Whether the first view is a whole one decides what the projector does, so that views come first.
ORDER: tuple[Part, ...] = ("preprocessing", "prompt", "tower", "resampler", "projector", "language")

TEXTS = ("system_messages.default", "models.default_generation_prompt")

Outcome = Literal["agrees", "solved", "ambiguous", "unsolved", "other weights", "not compared"]


@dataclass
class Solution:
    """What was found out about one part.

    Attributes:
        part: the part.
        outcome: whether it gives its old result, or could be made to.
        changes: the changes that give it; several where the probe cannot tell them apart.
        confirmed: assumed fields whose other likely values give another result.
        tried: how many times it was run.
        detail: why it was not compared.
    """

    part: Part
    outcome: Outcome
    changes: list[Changes] = field(default_factory=list[Changes])
    confirmed: list[str] = field(default_factory=list[str])
    tried: int = 0
    detail: str = ""


@dataclass
class Solutions:
    """What was found out about a checkpoint.

    Attributes:
        resolution: its configuration as documents, weights and defaults tell it.
        origin: where its probe is.
        parts: one entry per part.
        given: settings that were stated as certain.
        prefer: which documents were believed.
    """

    resolution: Resolution
    origin: str
    parts: list[Solution]
    given: Changes
    prefer: Prefer | None

    @property
    def settled(self) -> dict[str, Any]:
        """Every field that is known now and was wrong or assumed, with its value."""
        values = flatten(self.resolution.config)
        found: dict[str, Any] = {}
        for solution in self.parts:
            found |= {name: value_of(values, name) for name in solution.confirmed}
            if solution.outcome == "solved":
                found |= solution.changes[0]
        return found

    @property
    def complete(self) -> bool:
        """Whether every part that could be compared gives its old result now."""
        return all(s.outcome in ("agrees", "solved", "not compared") for s in self.parts)

    def write(self) -> Repair:
        """Write what is settled into the document beside the checkpoint; weights are not touched.

        Raises:
            CheckpointError: the document cannot be written.
        """
        return add_metadata(
            self.resolution.path,
            overrides={**self.given, **self.settled},
            prefer=self.prefer,
            weights=self.resolution.weights,
        )


def solve(
    path: Path,
    *,
    prefer: Prefer | None = None,
    overrides: Mapping[str, Any] | None = None,
    weights: Weights | None = None,
) -> Solutions:
    """Look for the settings that make a checkpoint compute what it computed when it was saved.

    Nothing is written. Where two documents contradict each other and ``prefer`` does not settle
    it, both sides are tried.

    Args:
        path: checkpoint file or folder.
        prefer: which side wins where metadata and weights contradict each other.
        overrides: settings that are certain, by dotted name.
        weights: which copy to take where a file holds live and averaged weights.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or has no probe.
        ContradictionError: documents contradict the weights.
    """
    resolution = resolve(path, overrides, prefer=prefer, weights=weights)
    rivals = [c for c in resolution.conflicts if c.possible]
    if len(rivals) < len(resolution.conflicts):
        resolution.raise_conflicts()
    if rivals:
        prefer = "metadata"
        resolution = resolve(path, overrides, prefer=prefer, weights=weights)
    found = find_probe(resolution)
    if found is None:
        raise CheckpointError(
            f"{resolution.path} has no probe, so that nothing shows what its settings were; state "
            "those that you know with `panovlm add-metadata --checkpoint "
            f"{resolution.path} --set FIELD=VALUE`."
        )
    search = _Search(Trial(assemble(resolution, full=True), found.probe), resolution, rivals)
    parts = [search.solve(part) for part in ORDER]
    return Solutions(resolution, found.origin, parts, overrides or {}, prefer)


class _Search:
    """The search through the settings of one checkpoint, part after part."""

    def __init__(self, trial: Trial, resolution: Resolution, rivals: Sequence[Conflict]) -> None:
        self.trial = trial
        self.resolution = resolution
        self.stated = [*_rival_candidates(rivals), *_run_config(resolution)]
        self.fixed: dict[str, Any] = {}

    def solve(self, part: Part) -> Solution:
        """Find out about one part."""
        trial = self.trial
        trial.tried = 0
        compared = trial.compare(part, {})
        if compared.skipped:
            return Solution(part, "not compared", detail=compared.skipped)
        before = trial.differences(part, self.fixed)
        if before and not compared.same_weights:
            return Solution(part, "other weights", tried=trial.tried)
        pool = self._pool(part)
        solution = Solution(part, "agrees")
        if before != []:
            solution.changes = self._search(part, pool, before or compared.differences)
            outcomes: tuple[Outcome, ...] = ("unsolved", "solved", "ambiguous")
            solution.outcome = outcomes[min(len(solution.changes), 2)]
        if solution.outcome == "solved":
            self.fixed |= solution.changes[0]
        if solution.outcome in ("agrees", "solved"):
            solution.confirmed = self._confirmed(part, pool)
        solution.tried = trial.tried
        return solution

    def _pool(self, part: Part) -> list[Candidate]:
        """Return what may be tried, values that documents state first."""
        values = {**self.trial.values, **self.fixed}
        stated = [
            candidate
            for candidate in self.stated
            if any(part in parts_reached(name) for name in candidate.changes)
        ]
        usual = candidates(part, values, self.resolution.inferred.fields)
        given = {n for n, source in self.resolution.sources.items() if source.kind == "override"}
        mine = (c for c in (*stated, *usual) if not c.changes.keys() & (self.fixed.keys() | given))
        return list({str(candidate): candidate for candidate in mine}.values())

    def _search(
        self, part: Part, pool: Sequence[Candidate], before: Sequence[Difference]
    ) -> list[Changes]:
        """Return the changes that give the old result, those with the fewest fields."""
        alone = [c.changes for c in pool if self._fits(part, c.changes)]
        if alone:
            return alone
        beginnings = list(self._beginnings(part, pool, before))
        for size in (0, 1, 2):
            found = [
                changes
                for beginning in beginnings
                for changes in self._extended(beginning, pool, size)
                if self._fits(part, changes)
            ]
            if found:
                return found
        return []

    def _beginnings(
        self, part: Part, pool: Sequence[Candidate], before: Sequence[Difference]
    ) -> Iterator[Changes]:
        """Yield changes that mend the sketches which show one kind of setting only.

        Those are found apart from the others, however many settings are wrong.
        """
        options: list[list[Changes]] = []
        for name in {difference.sketch for difference in before} - set(MAIN):
            mending = [
                c.changes
                for c in pool
                if c.sketch == name and name not in self._differing(part, c.changes)
            ]
            options.append(mending or [{}])
        for chosen in product(*options):
            yield {name: value for changes in chosen for name, value in changes.items()}

    def _extended(
        self, beginning: Changes, pool: Sequence[Candidate], size: int
    ) -> Iterator[Changes]:
        """Yield ``beginning`` with so many candidates about other fields."""
        free = [c for c in pool if c.sketch in MAIN and not c.changes.keys() & beginning.keys()]
        for chosen in combinations(free, size):
            added = {name: value for c in chosen for name, value in c.changes.items()}
            if len(added) == sum(len(c.changes) for c in chosen):
                yield {**beginning, **added}

    def _confirmed(self, part: Part, pool: Sequence[Candidate]) -> list[str]:
        """Return the assumed fields whose other likely values give another result."""
        unknown = {*self.fixed, *self.trial.probe.assumed}
        assumed = [name for name in self.resolution.assumed if name not in unknown]
        mine = [name for name in assumed if part in parts_reached(name)]
        if part == "prompt":  # the very same token ids leave no room for another text
            return [name for name in mine if name in TEXTS]
        found: list[str] = []
        for name in mine:
            others = [c.changes for c in pool if name in c.changes]
            if others and not any(self._fits(part, changes) for changes in others):
                found.append(name)
        return found if self.trial.tried < MOST_TRIALS else []

    def _fits(self, part: Part, changes: Changes) -> bool:
        """Tell whether a part gives its old result with some changes."""
        return not self._differing(part, changes)

    def _differing(self, part: Part, changes: Changes) -> set[str]:
        """Return the sketches that some changes leave different."""
        if self.trial.tried >= MOST_TRIALS:
            return {"output"}
        found = self.trial.differences(part, {**self.fixed, **changes})
        return {"output"} if found is None else {difference.sketch for difference in found}


def _rival_candidates(rivals: Sequence[Conflict]) -> Iterator[Candidate]:
    """Yield what the other one of two documents states, as a whole and field by field."""
    stated = {c.field: c.observed for c in rivals if c.field != "fingerprint"}
    yield from _stated_candidates(stated)


def _run_config(resolution: Resolution) -> Iterator[Candidate]:
    """Yield what the run's ``config.yaml`` states otherwise."""
    path = resolution.location.config
    if path is None:
        return
    values = flatten(resolution.config)
    stated = {
        name: value
        for name, value in flatten_mapping(translate(load_mapping(path)[0]).mapping).items()
        if name in values and name not in BACKBONES and plain(values[name]) != plain(value)
    }
    yield from _stated_candidates(stated)


def _stated_candidates(stated: Changes) -> Iterator[Candidate]:
    for part in PARTS:
        mine = {name: value for name, value in stated.items() if part in parts_reached(name)}
        yield from (Candidate({name: value}) for name, value in mine.items())
        if len(mine) > 1:
            yield Candidate(mine)
