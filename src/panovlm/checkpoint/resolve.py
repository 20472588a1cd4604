"""From a checkpoint to its whole configuration, with the source of every field.

Order: explicit overrides, metadata, weights, defaults. No tensor data is read and no torch is
needed. A contradiction between a claim and the weights is reported with both sides; a field that
neither tells is listed as assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from panovlm.checkpoint.backbones import named_config, named_processor, vision_part
from panovlm.checkpoint.fields import (
    RESAMPLER,
    TRAINING_ONLY,
    FieldMap,
    defaults,
    nest,
)
from panovlm.checkpoint.formats import Header, read_header
from panovlm.checkpoint.infer import Inferred, infer
from panovlm.checkpoint.keys import KeyMap, map_keys
from panovlm.checkpoint.locate import Location, locate
from panovlm.checkpoint.metadata import CheckpointMetadata, fingerprint
from panovlm.checkpoint.shapes import Observed
from panovlm.checkpoint.sources import Claims, read_documents
from panovlm.config.legacy import ORIGINAL_DEFAULTS
from panovlm.config.load import apply_recipe_overrides
from panovlm.config.schema import Recipe
from panovlm.errors import CheckpointError, ContradictionError
from panovlm.models.resamplers import recipe as resampler_recipe

SourceKind = Literal["override", "metadata", "weights", "default"]
Prefer = Literal["weights", "metadata"]

BACKBONES = {"models.vision_config": "vision_name", "models.language_config": "language_model_name"}
RESIZED = frozenset({"vocab_size"})
"""Fields of a named backbone's configuration that training may have changed."""


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

    def __str__(self) -> str:
        return (
            f"{self.field}: {self.claimed!r} ({self.claimed_by}) against {self.observed!r} "
            f"({self.observed_in})"
        )


@dataclass
class Resolution:
    """The resolved configuration of one checkpoint.

    Attributes:
        config: the whole recipe.
        sources: field (dotted, or its last part) → :class:`Source`.
        conflicts: contradictions that nothing has settled; such a checkpoint does not load.
        assumed: fields that decide outputs and that neither metadata nor weights tell.
        notes: remarks for the reader.
        metadata: the typed document of the checkpoint, if it has one of this format.
    """

    location: Location
    header: Header
    keys: KeyMap
    inferred: Inferred
    config: Recipe
    sources: FieldMap[Source]
    conflicts: list[Conflict]
    assumed: list[str]
    notes: list[str] = field(default_factory=list[str])
    metadata: CheckpointMetadata | None = None

    @property
    def path(self) -> Path:
        """The checkpoint file."""
        return self.location.checkpoint

    def raise_conflicts(self) -> None:
        """Stop if a contradiction is left.

        Raises:
            ContradictionError: both sides of each, and both ways out.
        """
        if self.conflicts:
            lines = "\n".join(f"  {conflict}" for conflict in self.conflicts)
            raise ContradictionError(
                f"{self.path}: metadata and weights contradict each other:\n{lines}\n"
                "No model can be both. Take the weights' side with --prefer weights "
                '(prefer="weights"), or mend the metadata for good with '
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
                f"loading does not assume them:\n{lines}\n"
                "Settle them with --set FIELD=VALUE, or for good with "
                f"`panovlm add-metadata --checkpoint {self.path} --set FIELD=VALUE`."
            )

    def value(self, name: str) -> Any:
        """Return the value of a field by dotted name (or its last part)."""
        place: Any = self.config
        for part in self.sources.full_name(name).split("."):
            place = place[part] if isinstance(place, Mapping) else getattr(place, part)
        return place


def resolve(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    prefer: Prefer | None = None,
) -> Resolution:
    """Resolve the configuration of a checkpoint without reading tensor data.

    Args:
        path: checkpoint file or folder.
        overrides: settings by dotted name (a last part is enough where it is unambiguous).
        prefer: which side wins where metadata and weights contradict each other.

    Returns:
        The resolution; contradictions are listed in ``.conflicts``, not raised.

    Raises:
        CheckpointError: the file cannot be opened or is no PanoVLM checkpoint.
        ContradictionError: the tensors themselves do not fit together.
        ConfigError: an override is unknown or wrong.
    """
    location = locate(Path(path))
    header = read_header(location.checkpoint)
    shapes = {name: info.shape for name, info in header.tensors.items()}
    keys = map_keys(shapes)
    inferred = infer(keys.shapes(shapes))
    documents = read_documents(location, header, keys.layout)
    claims = documents.claims
    if overrides:
        resampler_type = inferred.resampler.name
        claims = [
            Claims("override", apply_recipe_overrides(overrides, resampler_type)),
            *claims,
        ]
    resolver = _Resolver(keys, inferred, claims, prefer)
    resolver.run()
    config = _validated(resolver.values, location)
    metadata = next((c.document for c in claims if c.document), None)
    resolution = Resolution(
        location=location,
        header=header,
        keys=keys,
        inferred=inferred,
        config=config,
        sources=FieldMap(resolver.sources),
        conflicts=resolver.conflicts,
        assumed=resolver.assumed,
        notes=[*documents.notes, *inferred.notes, *resolver.notes],
        metadata=metadata,
    )
    _check_fingerprint(resolution, claims, shapes)
    _check_adapters(resolution)
    return resolution


class _Resolver:
    """Settles every field once, in the order of trust."""

    def __init__(
        self, keys: KeyMap, inferred: Inferred, claims: list[Claims], prefer: Prefer | None
    ) -> None:
        self.keys = keys
        self.inferred = inferred
        self.claims = claims
        self.prefer = prefer
        self.values: dict[str, Any] = {}
        self.sources: dict[str, Source] = {}
        self.conflicts: list[Conflict] = []
        self.assumed: list[str] = []
        self.notes: list[str] = []

    def run(self) -> None:
        """Settle the type of the resampler, then every field that this type has."""
        self._settle("models.resampler_type", "mlp")
        self._compare_documents()
        known = defaults(str(self.values["models.resampler_type"]))
        if self.keys.layout == "original":
            known |= {k: v for k, v in ORIGINAL_DEFAULTS.items() if k in known}
        known["models.layout"] = self.keys.layout
        for name, default in known.items():
            if name not in BACKBONES and name != "models.resampler_type":
                self._settle(name, default)
        for name, label in BACKBONES.items():
            self._settle_backbone(name, f"models.{label}")
        self._settle_image_size()

    def _settle(self, name: str, default: Any) -> None:
        """Give one field its value and source."""
        claim = self._claim(name)
        observed = self.inferred.fields.get(name)
        if claim is not None:
            value = claim.values[name]
            if observed is not None and not self._agrees(name, value, observed):
                self._contradiction(name, value, claim.origin, observed)
                return
            self._set(name, value, Source(_kind(claim), claim.origin))
            if name in claim.assumed:
                self._assume(name)
        elif observed is not None:
            self._set(name, observed.value, Source("weights", observed.evidence))
        else:
            kind = "the original system" if self.keys.layout == "original" else "PanoVLM"
            self._set(name, default, Source("default", f"default of {kind}"))
            if name != "models.layout":
                self._assume(name)

    def _claim(self, name: str) -> Claims | None:
        """Return the strongest document that states a field.

        "Unset" states nothing about a field that the weights show.
        """
        unset_counts = name not in self.inferred.fields
        for claim in self.claims:
            if name in claim.values and (unset_counts or claim.values[name] is not None):
                return claim
        return None

    def _set(self, name: str, value: Any, source: Source) -> None:
        self.values[name] = value
        self.sources[name] = source

    def _assume(self, name: str) -> None:
        """List a field as assumed if it decides what the model computes."""
        section = name.split(".")[0]
        idle = section == "lora" and not self.inferred.fields["lora.use_lora"].value
        if name not in TRAINING_ONLY and section != "generation" and not idle:
            self.assumed.append(name)

    def _agrees(self, name: str, claimed: Any, observed: Observed) -> bool:
        """Tell whether a claim can be true of these weights."""
        if name.startswith(RESAMPLER + "."):
            key = name.removeprefix(RESAMPLER + ".")
            return self.inferred.resampler.agrees(key, claimed, self.inferred.seen)
        if name == "models.resampler_type" and isinstance(claimed, str):
            return resampler_recipe(claimed).name == observed.value
        if name == "lora.target_modules":
            return sorted(claimed) == sorted(observed.value)
        return bool(_plain(claimed) == _plain(observed.value))

    def _contradiction(self, name: str, value: Any, origin: str, observed: Observed) -> None:
        """Record a contradiction, or settle it on the weights' side."""
        if self.prefer == "weights":
            self._set(name, observed.value, Source("weights", observed.evidence))
            self.notes.append(f"{name}: {origin} says {value!r}; the weights were preferred")
            return
        self._set(name, value, Source("metadata", origin))
        evidence = f"weights: {observed.evidence}"
        self.conflicts.append(Conflict(name, value, origin, observed.value, evidence))

    def _compare_documents(self) -> None:
        """Find fields that two documents of this format state differently."""
        own = [claim for claim in self.claims if claim.document is not None]
        if len(own) < 2 or self.prefer == "metadata":
            return
        first, second = own[0], own[1]
        for name, value in first.values.items():
            other = second.values.get(name)
            overridden = self._claim(name) not in (first, second)
            observed = self.inferred.fields.get(name)
            if _plain(other) != _plain(value) and not overridden and observed is None:
                conflict = Conflict(name, value, first.origin, other, second.origin)
                self.conflicts.append(conflict)

    def _settle_backbone(self, name: str, label: str) -> None:
        """Give a backbone its configuration: stated, read from the named files, or inferred."""
        claim = self._claim(name)
        if claim is not None:
            config, source = dict(claim.values[name]), Source(_kind(claim), claim.origin)
            self._set(name, self._checked(name, config, source, frozenset()), source)
            return
        stated = self._claim(label)
        if stated is not None:
            self._settle_named(name, str(stated.values[label]))
            return
        if name in self.inferred.unrecognised:
            raise CheckpointError(self.inferred.unrecognised[name])
        kind = f"{name}.model_type"
        observed = self.inferred.fields.get(kind)
        family = observed.value if observed else self.inferred.assumed[kind]
        self._set(label, f"unnamed-{family}", Source("weights", "names of the tensors"))
        self.assumed = [field for field in self.assumed if field != label]
        self._set_inferred(name)

    def _settle_named(self, name: str, label: str) -> None:
        """Read a named backbone's configuration from this machine."""
        raw = named_config(label)
        if raw is None:
            self.values[name] = None
            self.sources[name] = Source("metadata", f"named {label!r}, not on this machine")
            return
        source = Source("metadata", f"config.json of {label}")
        config = vision_part(raw) if name == "models.vision_config" else raw
        if name == "models.vision_config":
            self._settle_processor(label)
        self._set(name, self._checked(name, config, source, RESIZED), source)

    def _settle_processor(self, label: str) -> None:
        """Take the named tower's image processor where none is stated."""
        field_name = "image_processing.vision_processor"
        processor = named_processor(label)
        if self.values.get(field_name) is None and processor is not None:
            self._set(field_name, processor, Source("metadata", f"processor of {label}"))
            self.assumed = [name for name in self.assumed if name != field_name]

    def _checked(
        self, name: str, config: dict[str, Any], source: Source, free: frozenset[str]
    ) -> dict[str, Any]:
        """Compare a backbone's configuration with the weights, key by key."""
        prefix = name + "."
        for full, observed in self.inferred.fields.items():
            key = full.removeprefix(prefix)
            if not full.startswith(prefix) or key not in config:
                continue
            if key in free:
                config[key] = observed.value
            elif not self._backbone_agrees(full, config[key], observed):
                if self.prefer == "weights":
                    self.notes.append(
                        f"{full}: {source.detail} says {config[key]!r}; the weights were preferred"
                    )
                    config[key] = observed.value
                else:
                    evidence = f"weights: {observed.evidence}"
                    self.conflicts.append(
                        Conflict(full, config[key], source.detail, observed.value, evidence)
                    )
        for key in free:
            if prefix + key in self.inferred.fields:
                config[key] = self.inferred.fields[prefix + key].value
        return config

    def _backbone_agrees(self, full: str, claimed: Any, observed: Observed) -> bool:
        """Tell whether a stated backbone field can be true; images of one grid of patches agree."""
        section, _, key = full.rpartition(".")
        patch = self.inferred.fields.get(f"{section}.patch_size")
        if key != "image_size" or patch is None:
            return bool(_plain(claimed) == _plain(observed.value))
        sides = claimed if isinstance(claimed, list | tuple) else [claimed]
        return all(side // patch.value == observed.value // patch.value for side in sides)

    def _set_inferred(self, name: str) -> None:
        """Put a backbone's configuration together from observed and assumed fields."""
        prefix = name + "."
        config: dict[str, Any] = {}
        for full, observed in self.inferred.fields.items():
            if full.startswith(prefix):
                config[full.removeprefix(prefix)] = observed.value
                self.sources[full] = Source("weights", observed.evidence)
        for full, value in self.inferred.assumed.items():
            if full.startswith(prefix):
                config[full.removeprefix(prefix)] = value
                self.sources[full] = Source("default", "usual value of this family")
                self.assumed.append(full)
        self._set(name, config, Source("weights", "shapes of the tensors"))

    def _settle_image_size(self) -> None:
        """Take the tower's own image size where none is stated."""
        name = "image_processing.image_size"
        tower = self.values.get("models.vision_config") or {}
        size = tower.get("image_size")
        observed = self.inferred.fields.get("models.vision_config.image_size")
        if self.values.get(name) is None and (size or observed):
            pixels = size or (observed.value if observed else None)
            detail = f"the tower's image size ({observed.evidence})" if observed else "the tower's"
            self._set(name, pixels, Source("weights", detail))
            self.assumed = [other for other in self.assumed if other != name]


def _kind(claim: Claims) -> SourceKind:
    return "override" if claim.origin == "override" else "metadata"


def _plain(value: Any) -> Any:
    """Return a value in the form in which two sources can be compared."""
    if isinstance(value, tuple | list):
        items = [_plain(item) for item in value]
        return items[0] if len(items) == 2 and items[0] == items[1] else items
    return value


def _validated(values: Mapping[str, Any], location: Location) -> Recipe:
    """Type the resolved fields."""
    nested = nest(values)
    try:
        return Recipe.model_validate(nested)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(
            f"{location.checkpoint}: the resolved setting {where} cannot be used: "
            f"{problem['msg']} (got {problem.get('input')!r}). Mend the metadata, or override it "
            f"with --set {where}=VALUE."
        ) from error


def _check_fingerprint(
    resolution: Resolution, claims: list[Claims], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Find a document that was written for other weights."""
    names = {name: shapes[stored] for name, stored in resolution.keys.files.items()}
    actual = fingerprint(names)
    for claim in claims:
        if claim.document is not None and claim.document.fingerprint != actual:
            resolution.conflicts.append(
                Conflict(
                    "fingerprint",
                    claim.document.fingerprint,
                    f"{claim.origin} was written for other weights",
                    actual,
                    resolution.path.name,
                )
            )


def _check_adapters(resolution: Resolution) -> None:
    """Refuse to guess whether adapters in their own folder belong to weights without adapters."""
    adapters = resolution.location.adapters
    stated = resolution.sources["lora.use_lora"].kind == "override"
    if adapters is None or resolution.config.lora.use_lora or stated:
        return
    raise CheckpointError(
        f"{resolution.path} holds no adapters, but {adapters} stands beside it. If they are merged "
        "into the weights or shall not be used, say so with --set lora.use_lora=false."
    )
