"""Layer 1: what each document beside or inside a checkpoint claims about the model.

Every document is turned into dotted recipe fields here, whatever its age. Only values that it
states are claims; defaults are added later, where their origin can be told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from panovlm.checkpoint.fields import RESAMPLER, flatten, flatten_mapping
from panovlm.checkpoint.formats import Header
from panovlm.checkpoint.locate import Location
from panovlm.checkpoint.metadata import EMBEDDED, CheckpointMetadata, is_ours, parse, read_json
from panovlm.config.legacy import original_run_mapping, translate
from panovlm.config.load import load_mapping
from panovlm.config.schema import Layout
from panovlm.errors import CheckpointError


@dataclass(frozen=True)
class Claims:
    """What one document states.

    Attributes:
        origin: the document, for messages.
        values: dotted recipe field → plain value.
        assumed: fields that the document itself marks as assumed.
        document: the typed document, when it is one of this format.
    """

    origin: str
    values: Mapping[str, Any]
    assumed: frozenset[str] = frozenset()
    document: CheckpointMetadata | None = None


@dataclass
class Documents:
    """All claims about one checkpoint, strongest first, and notes for the reader."""

    claims: list[Claims] = field(default_factory=list[Claims])
    notes: list[str] = field(default_factory=list[str])


def read_documents(location: Location, header: Header, layout: Layout) -> Documents:
    """Read every document of a checkpoint in the order of trust.

    The sidecar comes first, then the copy inside the file, then the hyper-parameters of the
    original system, then the run's ``config.yaml``. A complete document of this format says
    everything, so ``config.yaml`` is not read when there is one.

    Raises:
        CheckpointError: a document cannot be read.
    """
    found = Documents()
    if location.sidecar is not None:
        raw, note = read_json(location.sidecar)
        found.notes += [note] if note else []
        _add(found, raw, str(location.sidecar.name))
    embedded = header.extras.get(EMBEDDED)
    if embedded is not None:
        _add(found, _embedded(embedded, location), f"metadata inside {location.checkpoint.name}")
    if isinstance(header.extras.get("hyper_parameters"), Mapping):
        found.claims.append(_hyper_parameters(header))
    if location.config is not None and not any(c.document for c in found.claims):
        _add_config(found, location, layout)
    return found


def _add(found: Documents, raw: Mapping[str, Any], origin: str) -> None:
    """Add a metadata document of either format."""
    if is_ours(raw):
        document = parse(raw, origin)
        found.claims.append(
            Claims(
                origin,
                flatten(document.recipe),
                assumed=frozenset(document.assumed),
                document=document,
            )
        )
    else:
        found.claims.append(Claims(origin, _original_metadata(raw)))


def _embedded(text: object, location: Location) -> dict[str, Any]:
    """Parse the copy inside the file."""
    try:
        document = json.loads(str(text))
    except ValueError as error:
        raise CheckpointError(
            f"the metadata inside {location.checkpoint} is not JSON ({error}); the file was "
            "damaged or edited. Write it anew with `panovlm add-metadata`."
        ) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"the metadata inside {location.checkpoint} is no JSON object.")
    return document


def _original_metadata(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the original system's ``checkpoint_metadata.json`` into dotted fields."""
    model = _section(raw, "model_config")
    training = _section(raw, "training_config")
    resampler = model.get("resampler_config")
    models = {
        key: model.get(key)
        for key in (
            "vision_name",
            "language_model_name",
            "resampler_type",
            "latent_dimension",
            "max_text_length",
            "vicreg_loss_weight",
            "overlap_ratio",
            "resampler_hidden_dim",
        )
    }
    models["resampler_config"] = dict(resampler) if isinstance(resampler, Mapping) else None
    image = {
        key: training.get(key)
        for key in (
            "crop_strategy",
            "fov_deg",
            "overlap_ratio",
            "use_vision_processor",
            "normalize",
        )
    }
    image["image_size"] = model.get("image_size")
    lora = {"rank": training.get("lora_rank"), "alpha": training.get("lora_alpha")}
    return _dotted({"models": models, "image_processing": image, "lora": lora})


def _hyper_parameters(header: Header) -> Claims:
    """Turn the hyper-parameters inside an original checkpoint into dotted fields.

    ``use_lora`` is left out: the original writes the setting of the run there, also into files
    whose weights carry no adapters.
    """
    hyper = _section(header.extras, "hyper_parameters")
    data = _section(header.extras, "datamodule_hyper_parameters")
    models = {
        key: hyper.get(key)
        for key in (
            "vision_name",
            "language_model_name",
            "resampler_type",
            "latent_dimension",
            "vicreg_loss_weight",
        )
    }
    models["overlap_ratio"] = hyper.get("model_overlap_ratio")
    models["max_text_length"] = data.get("max_text_length")
    image = {
        key: data.get(key)
        for key in (
            "crop_strategy",
            "image_size",
            "overlap_ratio",
            "fov_deg",
            "image_mean",
            "image_std",
            "use_vision_processor",
            "anyres_patch_size",
            "anyres_max_patches",
            "normalize",
        )
    }
    lora = {key: hyper.get(f"lora_{key}") for key in ("rank", "alpha", "dropout")}
    system = {"default": data.get("system_msg")}
    mapping = {
        "models": models,
        "image_processing": image,
        "lora": lora,
        "system_messages": system,
    }
    return Claims("hyper_parameters inside the file", _dotted(mapping))


def _add_config(found: Documents, location: Location, layout: Layout) -> None:
    """Add the run's ``config.yaml``."""
    assert location.config is not None
    raw, _ = load_mapping(location.config)
    read = original_run_mapping if layout == "original" else translate
    translated = read(raw)
    values = flatten_mapping(translated.mapping)
    values |= _stage_adapters(translated.mapping)
    values.pop("lora.use_lora", None)
    found.claims.append(Claims(location.config.name, _stated(values)))
    found.notes += [f"{location.config.name}: {note}" for note in translated.notes]


def _stage_adapters(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return adapter settings that a stage of ``config.yaml`` states for itself."""
    stages = _section(_section(mapping, "training"), "stage_configs")
    found: dict[str, Any] = {}
    for stage in stages.values():
        if isinstance(stage, Mapping) and isinstance(stage.get("lora"), Mapping):
            found |= {f"lora.{key}": value for key, value in stage["lora"].items()}
    return found


def _dotted(mapping: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Translate a nested mapping of original names into the dotted fields that it states."""
    stated = {name: _stated(values) for name, values in mapping.items()}
    values = flatten_mapping(translate(stated).mapping)
    if values.get("models.resampler_type") == "qformer":
        # The original accepted a number of heads and always used eight.
        values.pop(f"{RESAMPLER}.num_attention_heads", None)
    values.pop("lora.use_lora", None)
    return _stated(values)


def _stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is unset: ``null`` states nothing."""
    return {key: value for key, value in values.items() if value is not None}


def _section(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a sub-mapping, empty when it is absent or something else."""
    found = mapping.get(name)
    return found if isinstance(found, Mapping) else {}
