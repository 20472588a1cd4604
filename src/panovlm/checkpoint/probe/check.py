"""Whether a loaded model computes what it computed when its checkpoint was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

from transformers import PreTrainedTokenizerBase

from panovlm.checkpoint.fields import bears, flatten
from panovlm.checkpoint.probe.candidates import candidates, value_of
from panovlm.checkpoint.probe.compare import (
    EXACT,
    PICTURES,
    Difference,
    compare,
    same_weights,
    sketch_differences,
)
from panovlm.checkpoint.probe.measure import measure_part, measure_prompt, measure_views
from panovlm.checkpoint.probe.reach import parts_changed
from panovlm.checkpoint.probe.record import PARTS, FoundProbe, Part, Probe, find_probe
from panovlm.checkpoint.resolution import Resolution
from panovlm.config.schema import Recipe
from panovlm.errors import CheckpointError
from panovlm.models.model import PanoramaVLM

SHOWN = 10
NAMES: Mapping[Part, str] = {
    "tower": "vision tower",
    "resampler": "resampler",
    "projector": "projector",
    "language": "language model",
    "preprocessing": "image preprocessing",
    "prompt": "prompt",
}


@dataclass(frozen=True)
class Comparison:
    """One part against its probe.

    Attributes:
        differences: what is not as it was.
        same_weights: whether its weights are those that were probed.
        skipped: why it could not be compared, if so.
    """

    differences: list[Difference]
    same_weights: bool = True
    skipped: str = ""


@dataclass
class ProbeReport:
    """What came of comparing a model with its probe.

    Attributes:
        found: the probe; ``None``: the checkpoint has none.
        differences: what is not as it was, by part.
        other_weights: differing parts whose weights are not those that were probed.
        expected: differing parts that the caller's own settings reach.
        skipped: parts that were not compared, and why.
    """

    found: FoundProbe | None
    differences: dict[Part, list[Difference]] = field(default_factory=dict[Part, list[Difference]])
    other_weights: list[Part] = field(default_factory=list[Part])
    expected: list[Part] = field(default_factory=list[Part])
    skipped: dict[Part, str] = field(default_factory=dict[Part, str])

    @property
    def wrong(self) -> list[Part]:
        """The parts that differ without being expected to."""
        return [part for part in PARTS if part in self.differences and part not in self.expected]

    @property
    def found_in(self) -> str | None:
        """Where the probe is."""
        return self.found.origin if self.found else None

    @property
    def compared(self) -> list[Part]:
        """The parts that were compared."""
        return [part for part in PARTS if self.found and part not in self.skipped]

    def notes(self) -> list[str]:
        """Return remarks for the reader."""
        told = [f"probe: {NAMES[part]} not compared, {why}" for part, why in self.skipped.items()]
        told += [
            f"probe: the {NAMES[part]} computes something else than when the checkpoint was "
            "written, as settings that you gave make it"
            for part in self.expected
        ]
        return told

    def raise_failure(self, resolution: Resolution) -> None:
        """Stop if a part differs.

        Raises:
            CheckpointError: the first part that differs, the likely settings, and the ways out.
        """
        if self.wrong:
            raise CheckpointError(explain(self, resolution))


def check_probe(
    model: PanoramaVLM, resolution: Resolution, stored: Mapping[Part, str]
) -> ProbeReport:
    """Compare a loaded model with the probe of its checkpoint.

    Args:
        model: the model, as it will be used.
        resolution: what it was built from.
        stored: number types of the weights in the file, see
            :func:`~panovlm.checkpoint.probe.measure.precisions`.

    Raises:
        CheckpointError: the probe is damaged.
        ConfigError: the views cannot be cut, or the chat template refuses a conversation.
    """
    found = find_probe(resolution)
    report = ProbeReport(found)
    if found is None:
        return report
    for part in PARTS:
        compared = compare_part(model, part, found.probe, stored)
        if compared.skipped:
            report.skipped[part] = compared.skipped
        elif compared.differences and not compared.same_weights and _may_differ(found, resolution):
            report.skipped[part] = f"{found.origin} is of other weights"
        elif compared.differences:
            report.differences[part] = compared.differences
            if not compared.same_weights:
                report.other_weights.append(part)
    excused = parts_changed(resolution.changed, model.recipe.models)
    report.expected = [part for part in report.differences if part in excused]
    return report


def _may_differ(found: FoundProbe, resolution: Resolution) -> bool:
    """Tell whether the settings are known to be those of the weights, whatever was probed.

    A document beside the file may be shared by the checkpoints of one run, and an average is of
    the run of its live weights. If nothing inside the file describes it, the document may as well
    have come from another run.
    """
    ema = resolution.weights == "ema"
    return not found.own and (ema or resolution.embedded is not None)


def compare_part(
    model: PanoramaVLM,
    part: Part,
    probe: Probe,
    stored: Mapping[Part, str],
    recipe: Recipe | None = None,
) -> Comparison:
    """Compare one part with its probe.

    Args:
        model: the model.
        part: the part.
        probe: what it computed when it was saved.
        stored: as for :func:`check_probe`.
        recipe: other settings of preprocessing and prompt than the model's own.
    """
    recipe = recipe or model.recipe
    if part == "preprocessing":
        return _compare_views(recipe, probe)
    if part == "prompt":
        return _compare_prompt(recipe, probe, model.tokenizer)
    recorded = probe.parts.get(part)
    if recorded is None:
        return Comparison([], skipped="the probe says nothing of it")
    measured = measure_part(model, part, probe.inputs)
    return Comparison(
        compare(part, recorded, measured, stored=stored[part]),
        same_weights(recorded, measured, stored=stored[part]),
    )


def _compare_views(recipe: Recipe, probe: Probe) -> Comparison:
    measured = measure_views(recipe.image_processing)
    allowed = {"pictures": PICTURES}
    return Comparison(
        sketch_differences("preprocessing", probe.views, measured, allowed, otherwise=EXACT)
    )


def _compare_prompt(
    recipe: Recipe, probe: Probe, tokenizer: PreTrainedTokenizerBase | None
) -> Comparison:
    if not probe.prompt or tokenizer is None:
        when = "saved" if not probe.prompt else "loaded"
        return Comparison([], skipped=f"the model was {when} without tokenizer")
    measured = measure_prompt(recipe, tokenizer)
    return Comparison(
        [
            Difference("prompt", name, inf, 0.0)
            for name, digest in probe.prompt.items()
            if measured.get(name) != digest
        ]
    )


def explain(report: ProbeReport, resolution: Resolution) -> str:
    """Say which part differs first, why that may be, and what can be done."""
    assert report.found is not None
    part, *others = report.wrong
    path, origin = resolution.path, report.found.origin
    lines = [
        f"{path}: the {NAMES[part]} does not compute what it computed when the checkpoint was "
        f"written ({origin}: {', '.join(map(str, report.differences[part]))})."
    ]
    if part in report.other_weights and not report.found.own:
        lines.append(
            f"The weights of the {NAMES[part]} are not those that were probed, and nothing inside "
            "the file describes it: the document beside it may be of another run, with other "
            "settings. Put the document of this checkpoint there, or remove it and run "
            "`panovlm add-metadata`; if it is the right one, --no-probe (probe=False) loads the "
            "checkpoint with its settings."
        )
    elif part in report.other_weights:
        lines.append(
            f"The weights of the {NAMES[part]} are not those that were probed: the file was "
            "damaged, edited or rounded after it was written. Take another copy of it; "
            "--no-probe (probe=False) loads it as it is."
        )
    else:
        fields = list(likely_fields(part, report, resolution))
        lines.append(
            "Its weights are those of then, as far as the probe tells (four values of each); if "
            "the file is undamaged, a setting must be another one."
        )
        if fields:
            lines.append("Likely ones, which no shape shows:")
            lines += [f"  {line}" for line in fields]
        lines.append(
            f"`panovlm repair {path} --solve` looks for the value that gives the old result; "
            "--set FIELD=VALUE states one; --no-probe (probe=False) loads the model as it is."
        )
    if others:
        lines.append(f"Also different: {', '.join(NAMES[other] for other in others)}.")
    return "\n".join(lines)


def likely_fields(part: Part, report: ProbeReport, resolution: Resolution) -> Iterator[str]:
    """Yield the settings that may be wrong where a part differs, with value and source.

    A setting that has a sketch of its own is none of them where that sketch is as it was, and comes
    first where it is not.
    """
    values = flatten(resolution.config)
    differing = {difference.sketch for difference in report.differences[part]}
    cleared = _sketches(part, report) - differing
    suspects = {
        name: candidate.sketch
        for candidate in candidates(part, values, resolution.inferred.fields)
        for name in candidate.changes
        if candidate.sketch not in cleared and bears(name, values)
    }
    if part == "prompt":
        suspects |= dict.fromkeys(("models.tokenizer_name", "models.language_model_name"), "")
    special = differing - {"output"}
    first = sorted(
        suspects,
        key=lambda name: (suspects[name] not in special, name not in resolution.assumed),
    )
    for name in first[:SHOWN]:
        section = ".".join(name.split(".")[:2])
        source = resolution.sources.get(name) or resolution.sources.get(section)
        yield f"{name} = {value_of(values, name)!r} ({source})"
    if len(first) > SHOWN:
        yield f"and {len(first) - SHOWN} more"


def _sketches(part: Part, report: ProbeReport) -> set[str]:
    """Return the sketches that a probe has of a part."""
    assert report.found is not None
    probe = report.found.probe
    if part == "preprocessing":
        return set(probe.views)
    return set(probe.parts[part].sketches) if part in probe.parts else set()
