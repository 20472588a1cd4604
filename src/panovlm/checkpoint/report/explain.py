"""Where the value of one field came from, and what else was considered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from panovlm.checkpoint.documents.metadata import EMBEDDED
from panovlm.checkpoint.documents.recipe_record import ORIGIN
from panovlm.checkpoint.fields import RESAMPLER, FieldMap, bears, defaults, flatten
from panovlm.checkpoint.resolution import Resolution, Source, SourceKind
from panovlm.checkpoint.settle.backbone_files import named_config, vision_part
from panovlm.checkpoint.settle.backbones import BACKBONES, VISION
from panovlm.checkpoint.settle.settling import kind_of, plain
from panovlm.config.legacy import ORIGINAL_DEFAULTS
from panovlm.models.resamplers.recipe import Observability

WEIGHTS = "weights"
HEADS = ("num_attention_heads", "num_key_value_heads")
"""Fields of a backbone's configuration that its width must be divisible by."""
KINDS: Mapping[Observability, str] = {
    "observable": "shapes of the weights show it",
    "constrained": "shapes allow only some values, and do not tell which",
    "unobservable": "it leaves no trace in any shape",
}


@dataclass(frozen=True)
class Candidate:
    """What one source says about the field.

    Attributes:
        origin: the document, ``weights`` or ``default``.
        says: the value, or ``None`` where it says nothing (or says that it is unset).
        outcome: what became of it.
        evidence: what the value was read off.
    """

    origin: str
    says: Any
    outcome: str
    evidence: str = ""


@dataclass(frozen=True)
class Explanation:
    """One field of a resolved checkpoint.

    Attributes:
        source: where the value came from.
        assumed: whether nobody knows it.
        observability: whether shapes tell it.
        bearing: whether it decides what this loaded model computes.
        candidates: every source that was asked, strongest first.
        absent: sources that this checkpoint does not have or that were not asked, with the reason.
        conflicts: contradictions about the field that nothing has settled.
    """

    checkpoint: str
    field: str
    value: Any
    source: str
    assumed: bool
    observability: Observability
    bearing: bool
    candidates: tuple[Candidate, ...]
    absent: tuple[str, ...]
    conflicts: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the explanation as plain data."""
        return {**asdict(self), "command": self.command}

    @property
    def command(self) -> str:
        """What settles the field for good."""
        return f"panovlm add-metadata --checkpoint {self.checkpoint} --set {self.field}=VALUE"


def explain(resolution: Resolution, name: str) -> Explanation:
    """Explain one field.

    Args:
        resolution: the checkpoint.
        name: dotted field, or its last part; also a single field of a backbone's configuration.

    Raises:
        ConfigError: there is no such field, or several end so.
    """
    values = field_values(resolution)
    name = FieldMap(values).full_name(name)
    return Explanation(
        checkpoint=str(resolution.path),
        field=name,
        value=values[name],
        source=str(field_source(resolution, name)),
        assumed=name in resolution.assumed,
        observability=observability(resolution, name),
        bearing=bears(name, flatten(resolution.config)),
        candidates=tuple(_candidates(resolution, name, values[name])),
        absent=tuple(_absent(resolution)),
        conflicts=tuple(str(c) for c in resolution.conflicts if c.field == name),
    )


def observability(resolution: Resolution, name: str) -> Observability:
    """Tell whether shapes show a field of this checkpoint."""
    section, _, key = name.rpartition(".")
    if section == RESAMPLER:
        return resolution.inferred.resampler.observability.get(key, "unobservable")
    if name in resolution.inferred.fields:
        return "observable"
    return "constrained" if section in BACKBONES and key in HEADS else "unobservable"


def as_text(explanation: Explanation) -> str:
    """Return an explanation for a terminal."""
    return "\n".join(_lines(explanation))


def _lines(found: Explanation) -> Iterator[str]:
    mark = "  (ASSUMED: nobody knows it)" if found.assumed else ""
    yield f"{found.field} = {found.value!r}{mark}"
    yield f"from: {found.source}"
    yield f"{found.observability}: {KINDS[found.observability]}"
    if not found.bearing:
        yield "it does not change what this model computes once it is loaded"
    yield ""
    yield "considered, strongest first:"
    table = [
        (c.origin, "-" if c.says is None else repr(c.says), c.outcome, c.evidence)
        for c in found.candidates
    ]
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    for row in table:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        yield f"  {'  '.join((*cells, row[3]))}".rstrip()
    for reason in found.absent:
        yield f"  {reason}"
    for conflict in found.conflicts:
        yield f"CONFLICT {conflict}"
    yield ""
    if found.observability == "observable":
        yield "the weights decide it: another value is accepted only if it gives the same shapes"
    yield f"to set it: {found.command}"


def field_values(resolution: Resolution) -> dict[str, Any]:
    """Return every field with its value, those of backbones' configurations one by one."""
    values = flatten(resolution.config)
    for section in BACKBONES:
        config = values[section]
        values |= {f"{section}.{key}": value for key, value in (config or {}).items()}
    return values


def field_source(resolution: Resolution, name: str) -> Source:
    """Return a field's source; a backbone's field may have that of its whole configuration."""
    if name in dict(resolution.sources):
        return resolution.sources[name]
    return resolution.sources[name.rpartition(".")[0]]


def _candidates(resolution: Resolution, name: str, value: Any) -> list[Candidate]:
    """Return what every source says about a field, strongest first, and what became of it."""
    source = field_source(resolution, name)
    disputed = any(conflict.field == name for conflict in resolution.conflicts)
    found: list[Candidate] = []
    taken = False
    for asked in _asked(resolution, name):
        says_something = asked.says is not None or (asked.stated and value is None)
        if says_something and not taken and asked.decided(source):
            taken = True
            outcome = "contradicts the weights" if disputed else "taken"
            outcome += "; it marks the value as assumed itself" if asked.assumed else ""
        elif asked.says is None:
            outcome = "leaves it unset" if asked.stated else "says nothing"
        elif plain(asked.says) == plain(value):
            outcome = "agrees"
        elif all(_same_shapes(resolution, name, one) for one in (asked.says, value)):
            outcome = "agrees: the shapes are the same"
        else:
            outcome = "not taken: weaker" if taken else "not taken: contradicts the weights"
        found.append(Candidate(asked.origin, asked.says, outcome, asked.evidence))
    if not taken:  # put together from several, or really unset
        before_default = len(found) - 1
        found.insert(before_default, Candidate(str(source), value, "taken"))
    return found


@dataclass(frozen=True)
class _Asked:
    """What one source says about a field."""

    kind: SourceKind
    origin: str
    says: Any
    evidence: str = ""
    stated: bool = False
    assumed: bool = False

    def decided(self, source: Source) -> bool:
        """Tell whether the field's value came from here."""
        if self.kind != source.kind:
            return False
        if self.origin == WEIGHTS:
            return not source.detail.startswith(ORIGIN)
        return self.kind == "default" or source.detail.startswith(self.origin)


def _asked(resolution: Resolution, name: str) -> Iterator[_Asked]:
    """Yield what every source says, strongest first."""
    section, _, key = name.rpartition(".")
    for claim in resolution.claims:
        says = claim.values.get(name)
        if name not in claim.values and section in BACKBONES:
            says = (claim.values.get(section) or {}).get(key)
        yield _Asked(
            kind_of(claim),
            claim.origin,
            says,
            evidence=claim.inferred.get(name, ""),
            stated=name in claim.values,
            assumed=name in claim.assumed,
        )
    if section in BACKBONES and _is_named(resolution, section):
        label = str(resolution.value(BACKBONES[section]))
        config = named_config(label)
        if config is not None:
            part = vision_part(config) if section == VISION else config
            yield _Asked("metadata", f"config.json of {label}", part.get(key))
    seen = resolution.inferred.fields.get(name)
    if seen is not None:
        yield _Asked("weights", WEIGHTS, seen.value, seen.evidence)
    else:
        yield _Asked("weights", WEIGHTS, None)
    yield _default(resolution, name)


def _is_named(resolution: Resolution, section: str) -> bool:
    """Tell whether a document names the backbone without stating its configuration."""
    claims = resolution.claims
    stated = any(claim.values.get(section) is not None for claim in claims)
    return not stated and any(BACKBONES[section] in claim.values for claim in claims)


def _default(resolution: Resolution, name: str) -> _Asked:
    if name in resolution.inferred.assumed:
        guess = resolution.inferred.assumed[name]
        return _Asked("default", "default", guess, "usual value of this family")
    original = resolution.keys.layout == "original"
    known = defaults(resolution.config.models.resampler_type)
    known |= {n: v for n, v in ORIGINAL_DEFAULTS.items() if original and n in known}
    whose = f"default of {'the original system' if original else 'PanoVLM'}"
    stated = name in known
    return _Asked("default", "default", known.get(name), whose if stated else "", stated=stated)


def _same_shapes(resolution: Resolution, name: str, says: Any) -> bool:
    """Tell whether a value of a resampler's field is possible for these weights."""
    section, _, key = name.rpartition(".")
    inferred = resolution.inferred
    if section != RESAMPLER or key not in inferred.seen:
        return False
    return inferred.resampler.agrees(key, says, inferred.seen)


def _absent(resolution: Resolution) -> Iterator[str]:
    """Yield the sources that were not asked, with the reason."""
    location, extras = resolution.location, resolution.header.extras
    asked = {claim.origin for claim in resolution.claims}
    missing: list[str] = []
    if location.sidecar is None:
        missing.append("checkpoint_metadata.json")
    elif location.sidecar.name not in asked:
        yield f"{location.sidecar.name}: left out"
    if EMBEDDED not in extras:
        missing.append("metadata inside the file")
    elif f"metadata inside {location.checkpoint.name}" not in asked:
        yield "metadata inside the file: corrected by the document beside it"
    if "hyper_parameters" not in extras:
        missing.append("hyper_parameters")
    for path, label in ((location.model_config, "config.json"), (location.config, "config.yaml")):
        if path is None:
            missing.append(label)
        elif path.name not in asked:
            yield f"{path.name}: not read, because the metadata says everything"
    if missing:
        yield f"not there: {', '.join(missing)}"
