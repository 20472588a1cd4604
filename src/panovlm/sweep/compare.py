"""From the outcomes of the cells to rows that compare every choice with the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from panovlm.evaluation.metrics import wilson
from panovlm.sweep.cells import BASE, Choice, Sweep, named
from panovlm.sweep.statistics import (
    Doubles,
    Estimate,
    Interval,
    paired_difference,
    right,
    training_variance,
    with_training,
)
from panovlm.sweep.store import Outcome, Result

Verdict = Literal["better", "worse", "within noise"]


@dataclass(frozen=True)
class Difference:
    """How much more a choice answers right than the base, in shares.

    Attributes:
        value: the difference.
        panoramas: 95 % interval over the choice of test panoramas.
        training: the same with the luck of training; None where only one training is known.
        verdict: whether the wider interval that there is leaves out zero.
    """

    value: float
    panoramas: Interval
    training: Interval | None
    verdict: Verdict


@dataclass(frozen=True)
class Row:
    """One choice.

    Attributes:
        choice: factors and values; empty: the base.
        name: the choice in words.
        is_base: whether its settings are those of the base.
        seeds: trainings that have a result.
        missing: trainings that have none yet.
        failures: messages of the trainings that failed, by seed.
        accuracy: mean share of right answers over the trainings, with its Wilson interval.
        groups: the same by group and label, without interval, with the number of questions.
        difference: to the base; None for the base, and where there is nothing to compare.
        vision_tokens: per panorama.
        time: processor time of a training by that of one of the base.
    """

    choice: Choice
    name: str
    is_base: bool
    seeds: tuple[int, ...]
    missing: tuple[int, ...]
    failures: dict[int, str]
    accuracy: float | None = None
    interval: Interval | None = None
    groups: dict[str, dict[str, tuple[float, int]]] | None = None
    difference: Difference | None = None
    views: int | None = None
    vision_tokens: int | None = None
    parameters: int | None = None
    train_seconds: float | None = None
    time: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        failures = {str(seed): message for seed, message in self.failures.items()}
        return {**asdict(self), "choice": dict(self.choice), "failures": failures}


@dataclass(frozen=True)
class Comparison:
    """All rows of a sweep, the base's first.

    Attributes:
        mode: of the sweep.
        rows: one per choice.
        questions: number of questions; 0 while the base has no result.
        panoramas: number of panoramas that they are about.
        most_frequent: share of the most frequent right answer.
        base_accuracies: of the base's trainings.
        train_seconds: mean duration of a training of the base.
    """

    mode: str
    rows: list[Row]
    questions: int = 0
    panoramas: int = 0
    most_frequent: float = 0.0
    base_accuracies: tuple[float, ...] = ()
    train_seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "rows": [row.as_json() for row in self.rows]}


def compare(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> Comparison:
    """Compare what there is of a sweep; it need not be complete."""
    base = _results(sweep.digests[BASE], outcomes)
    base_digests = set(sweep.digests[BASE].values())
    rows = [
        _row(choice, digests, outcomes, base, is_base=base_digests >= set(digests.values()))
        for choice, digests in sweep.digests.items()
    ]
    if not base:
        return Comparison(sweep.mode, rows)
    first = next(iter(base.values()))
    return Comparison(
        mode=sweep.mode,
        rows=rows,
        questions=len(first.correct),
        panoramas=len(set(first.panoramas)),
        most_frequent=first.most_frequent,
        base_accuracies=tuple(result.accuracy for result in base.values()),
        train_seconds=fmean(result.train_seconds for result in base.values()),
    )


def _results(digests: Mapping[int, str], outcomes: Mapping[str, Outcome]) -> dict[int, Result]:
    """Return the results that there are, by seed."""
    found = {
        seed: outcomes[digest].result for seed, digest in digests.items() if digest in outcomes
    }
    return {seed: result for seed, result in found.items() if result is not None}


def _row(
    choice: Choice,
    digests: Mapping[int, str],
    outcomes: Mapping[str, Outcome],
    base: Mapping[int, Result],
    *,
    is_base: bool,
) -> Row:
    results = base if is_base else _results(digests, outcomes)
    failures = {
        seed: outcomes[digest].message or ""
        for seed, digest in digests.items()
        if digest in outcomes and outcomes[digest].status == "failed"
    }
    missing = tuple(seed for seed, digest in digests.items() if digest not in outcomes)
    name = named(choice)
    if not results:
        return Row(choice, name, is_base, (), missing, failures)
    found = list(results.values())
    accuracy, count = fmean(result.accuracy for result in found), len(found[0].correct)
    cost = fmean(result.train_cpu_seconds for result in found)
    base_cost = fmean(r.train_cpu_seconds for r in base.values()) if base else 0.0
    return Row(
        choice=choice,
        name=name,
        is_base=is_base,
        seeds=tuple(results),
        missing=missing,
        failures=failures,
        accuracy=accuracy,
        interval=wilson(round(accuracy * count), count),
        groups=_groups(found),
        difference=None if is_base else _difference(found, list(base.values())),
        views=found[0].views,
        vision_tokens=found[0].vision_tokens,
        parameters=found[0].parameters,
        train_seconds=fmean(result.train_seconds for result in found),
        time=cost / base_cost if base_cost else None,
    )


def _groups(results: Sequence[Result]) -> dict[str, dict[str, tuple[float, int]]]:
    """Return the mean accuracy of every group's labels, with the number of questions."""
    return {
        group: {
            label: (fmean(r.groups[group][label]["value"] for r in results), measured["scored"])
            for label, measured in labels.items()
            if measured["value"] is not None
        }
        for group, labels in results[0].groups.items()
    }


def _difference(cell: Sequence[Result], base: Sequence[Result]) -> Difference | None:
    """Compare trainings with those of the base; None where their questions are others."""
    if len({result.questions for result in (*cell, *base)}) != 1 or not base:
        return None
    estimate = paired_difference(_right(cell), _right(base), cell[0].panoramas)
    if estimate is None:
        return None
    variance = training_variance([result.accuracy for result in base])
    whole: Estimate | None = None
    if variance is not None:
        whole = with_training(estimate, variance, (len(cell), len(base), len(base)))
    decisive = (whole or estimate).interval()
    return Difference(
        value=estimate.value,
        panoramas=estimate.interval(),
        training=whole.interval() if whole else None,
        verdict=_verdict(decisive),
    )


def _right(results: Sequence[Result]) -> Doubles:
    return right([result.correct for result in results])


def _verdict(interval: Interval) -> Verdict:
    low, high = interval
    return "better" if low > 0 else "worse" if high < 0 else "within noise"
