"""From a checkpoint to its whole configuration, with the source of every field.

Order: explicit overrides, metadata, weights, defaults. No tensor data is read and no torch is
needed. A contradiction between a claim and the weights is reported with both sides; a field that
neither tells is listed as assumed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from panovlm.checkpoint.documents.metadata import fingerprints
from panovlm.checkpoint.documents.recipe_record import LABELS, read_record
from panovlm.checkpoint.documents.sources import Claims, DocumentReader
from panovlm.checkpoint.fields import RESAMPLER, FieldMap, bears, nest
from panovlm.checkpoint.find.adapters import find_adapters
from panovlm.checkpoint.find.locate import Location, locate
from panovlm.checkpoint.find.shells import refuse_shells
from panovlm.checkpoint.formats import Header, read_header
from panovlm.checkpoint.loading.references import BACKBONES as ELSEWHERE
from panovlm.checkpoint.loading.references import borrowed, own_document, quantized_from
from panovlm.checkpoint.names.averages import Weights
from panovlm.checkpoint.names.keys import map_keys
from panovlm.checkpoint.resolution import FINGERPRINT, Conflict, Resolution, Source
from panovlm.checkpoint.settle.backbone_files import UNNAMED
from panovlm.checkpoint.settle.backbones import (
    BACKBONES,
    LANGUAGE,
)
from panovlm.checkpoint.settle.fields import settle
from panovlm.checkpoint.settle.infer import Inferred, infer
from panovlm.checkpoint.settle.settling import (
    OVERRIDE,
    Prefer,
    Settling,
    inside_first,
    plain,
    preferred,
    stated_otherwise,
)
from panovlm.checkpoint.settle.shapes import Shapes
from panovlm.config.lines import dotted
from panovlm.config.model_recipe import Recipe
from panovlm.config.problems import ValidationError
from panovlm.config.recipe_overrides import apply_recipe_overrides
from panovlm.errors import CheckpointError, ConfigError

__all__ = ["Conflict", "Prefer", "Resolution", "Source", "resolve"]


def resolve(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    prefer: Prefer | None = None,
    weights: Weights | None = None,
) -> Resolution:
    """Resolve the configuration of a checkpoint without reading tensor data.

    Only where adapters in a folder of their own stand beside weights without adapters, some of
    these are compared with the language model that was adapted.

    Args:
        path: checkpoint file or folder.
        overrides: settings by dotted name (a last part is enough where it is unambiguous), also
            single fields of a backbone's configuration (``models.vision_config.hidden_act``).
        prefer: which side wins where metadata and weights contradict each other. A document of
            other weights is left out with ``"weights"`` and believed with ``"metadata"``; of two
            documents the one inside the file wins with ``"weights"``, the one beside it with
            ``"metadata"``. A mapping says it for single fields by their dotted names
            (``"fingerprint"``: whether a document of other weights counts).
        weights: which copy is meant where a file holds the live weights and their running average.

    Returns:
        The resolution; contradictions are listed in ``.conflicts``, not raised.

    Raises:
        CheckpointError: the file cannot be opened or is no PanoVLM checkpoint.
        ContradictionError: the tensors themselves do not fit together.
        ConfigError: an override is unknown or wrong.
    """
    location = locate(Path(path))
    header = _read(location, weights)
    refuse_shells(location.checkpoint, header.tensors)
    own = {name: info.shape for name, info in header.tensors.items()}
    file = str(location.checkpoint)
    keys = map_keys(own, weights=weights, averaged=header.averaged, file=file)
    actual = fingerprints(keys.shapes(own))
    document = own_document(location, header, actual)
    stated = _given(overrides, "lora", "use_lora")
    record = read_record(header, keys)
    if stated is None and document is not None:
        stated = document.recipe.lora.use_lora
    elif stated is None and record is not None and record.recipe.lora.use_lora:
        stated = True
    part, notes = find_adapters(
        location,
        keys,
        weights=weights,
        stated=stated,
        base=_given(overrides, "models", "language_model_name"),
    )
    if part is not None:
        header = replace(header, tensors={**header.tensors, **part.tensors})
        shapes = {name: info.shape for name, info in header.tensors.items()}
        keys = map_keys(
            shapes,
            weights=weights,
            averaged=header.averaged,
            joined=part.places,
            replacing=part.trained,
            file=file,
        )
    shapes = keys.shapes({name: info.shape for name, info in header.tensors.items()})
    recorded = document.references if document is not None else quantized_from(record, shapes)
    elsewhere = {ELSEWHERE[prefix].config for prefix in recorded}
    brought = {n for n, stored in keys.files.items() if part and stored in part.trained}
    inferred = _inferred(shapes, elsewhere, brought, file)
    believed = preferred(prefer, FINGERPRINT) != "weights"
    documents = DocumentReader(
        location,
        header,
        keys.layout,
        resampler_type=inferred.resampler.name,
        accept=lambda document: believed or document.fingerprint in actual,
        joined=part is not None,
        borrows=LANGUAGE in inferred.absent,
        record=record,
    ).read()
    claims: Sequence[Claims] = documents.claims
    if prefer == "weights":
        claims = inside_first(claims, documents.embedded)
    if overrides:
        claims = [Claims(OVERRIDE, _stated(overrides, inferred.resampler.name)), *claims]
    settling = Settling(keys, inferred, claims, prefer, documents.embedded)
    settle(settling)
    _check_preferences(settling)
    found_elsewhere = borrowed(settling, recorded, is_split=location.is_split, path=file)
    if settling.preferred(FINGERPRINT) is None:
        settling.conflicts += _other_weights(claims, actual, location.checkpoint.name)
    carried = bool(header.attachments) or location.tokenizer is not None
    return Resolution(
        location=location,
        header=header,
        keys=keys,
        inferred=inferred,
        config=_validated(settling.values, location),
        sources=FieldMap(settling.sources),
        conflicts=settling.conflicts,
        assumed=_bearing(settling, carries_tokenizer=carried),
        claims=claims,
        notes=[
            *location.passed_over,
            *keys.notes,
            *notes,
            *documents.notes,
            *inferred.notes,
            *settling.notes,
            *_differences(settling),
        ],
        metadata=next((claim.document for claim in claims if claim.document), None),
        embedded=documents.embedded,
        weights=weights,
        adapters=part,
        borrowed=found_elsewhere,
        fingerprint=actual[0],
        changed=stated_otherwise(documents.claims, claims[0].values) if overrides else [],
        record=record,
    )


def _check_preferences(settling: Settling) -> None:
    """Refuse a preference for a field that there is not.

    Raises:
        ConfigError: it is unknown, or not written in full.
    """
    if not isinstance(settling.prefer, Mapping):
        return
    known = FieldMap({**settling.inferred.fields, **settling.sources, FINGERPRINT: None})
    for name in settling.prefer:
        full = known.full_name(name)
        if full != name:
            raise ConfigError(f"a preference needs the full name of its field: {full}, not {name}.")


def _read(location: Location, weights: Weights | None) -> Header:
    """Describe the checkpoint file; of a damaged one, say what else the folder has.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return read_header(location.checkpoint, weights)
    except CheckpointError as error:
        others = location.others()
        if not others:
            raise
        raise CheckpointError(
            f"{error}\nIt was taken because {location.why}, and no other is put in its place by "
            f"itself; the folder also holds {', '.join(others)}. Name one to take that."
        ) from error


def _inferred(
    shapes: Shapes, elsewhere: Collection[str], brought: Collection[str], file: str
) -> Inferred:
    """Read off the shapes what they tell; what is wrong with them is wrong with a file.

    Raises:
        CheckpointError: as :func:`infer`, the file named.
    """
    try:
        return infer(shapes, elsewhere, brought)
    except CheckpointError as error:
        raise type(error)(f"{file}: {error}") from error


def _given(overrides: Mapping[str, Any] | None, section: str, field: str) -> Any:
    """Return what the caller states about a field, by its full or short name or in its block."""
    stated = overrides or {}
    block = stated.get(section)
    block = block if isinstance(block, Mapping) else {}
    return stated.get(f"{section}.{field}", stated.get(field, block.get(field)))


def _stated(overrides: Mapping[str, Any], resampler_type: str) -> dict[str, Any]:
    """Return what the caller states by dotted name, single fields of backbones included."""
    beginnings = tuple(f"{name}." for name in BACKBONES)
    single = {name: value for name, value in overrides.items() if name.startswith(beginnings)}
    others = {name: value for name, value in overrides.items() if name not in single}
    return apply_recipe_overrides(others, resampler_type) | single


def _other_weights(claims: Sequence[Claims], actual: Sequence[str], file: str) -> list[Conflict]:
    """Return the documents that were written for other weights."""
    return [
        Conflict(
            FINGERPRINT,
            claim.document.fingerprint,
            f"{claim.origin} was written for other weights",
            actual[0],
            file,
            possible=True,
        )
        for claim in claims
        if claim.document is not None and claim.document.fingerprint not in actual
    ]


def _bearing(settling: Settling, *, carries_tokenizer: bool) -> list[str]:
    """Return the assumed fields that decide what the model computes."""
    observability = settling.inferred.resampler.observability
    # What shapes would show and these do not has no bearing on these weights.
    idle = {f"{RESAMPLER}.{key}" for key, how in observability.items() if how == "observable"}
    named = not str(settling.values[BACKBONES[LANGUAGE]]).startswith(UNNAMED)
    if carries_tokenizer or named:
        idle.add("models.tokenizer_name")  # where none is stated, it is the language model's own
    bearing = (name for name in settling.assumed if bears(name, settling.values))
    return sorted({name for name in bearing if name not in idle})


def _differences(settling: Settling) -> list[str]:
    """Return notes about fields of which a weaker document says otherwise than the one taken."""
    notes: list[str] = []
    for name, taken in settling.values.items():
        source = settling.sources[name]
        if source.kind != "metadata" or not bears(name, settling.values):
            continue
        for claim in settling.claims:
            if claim.among_weights and name in BACKBONES:
                continue  # what matters was compared
            other = claim.values.get(name)
            if other is None or claim.document is not None:
                continue
            notes += (
                f"{full}: {one!r} ({source.detail}); {claim.origin} says {another!r}"
                for full, one, another in _compared(name, taken, other)
                if plain(one) != plain(another)
            )
    return notes


def _compared(name: str, taken: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield a field with what two documents say of it, a backbone's configuration by its keys."""
    if name not in BACKBONES or not isinstance(taken, Mapping) or not isinstance(other, Mapping):
        yield name, taken, other
        return
    one, another = cast("Mapping[str, Any]", taken), cast("Mapping[str, Any]", other)
    for key in sorted((one.keys() & another.keys()) - LABELS):
        yield f"{name}.{key}", one[key], another[key]


def _validated(values: Mapping[str, Any], location: Location) -> Recipe:
    """Type the resolved fields."""
    nested = nest(values)
    try:
        return Recipe.model_validate(nested)
    except ValidationError as error:
        where, what = dotted(error.problems[0].path), error.problems[0].what
        raise CheckpointError(
            f"{location.checkpoint}: the resolved setting {where} cannot be used: {what}. Mend the "
            f"metadata, or override it with --set {where}=VALUE."
        ) from error
