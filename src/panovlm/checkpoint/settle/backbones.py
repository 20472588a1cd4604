"""Deciding a backbone's configuration: stated whole, read from the files it names, or inferred."""

from __future__ import annotations

from typing import Any

from panovlm.checkpoint.resolution import Source
from panovlm.checkpoint.settle.backbone_files import (
    UNNAMED,
    named_config,
    named_processor,
    processed_size,
    resized,
    vision_part,
)
from panovlm.checkpoint.settle.settling import OVERRIDE, Settling, plain, source_of
from panovlm.checkpoint.settle.shapes import Observed
from panovlm.errors import CheckpointError

VISION, LANGUAGE = "models.vision_config", "models.language_config"
BACKBONES = {VISION: "models.vision_name", LANGUAGE: "models.language_model_name"}
"""Field of each backbone's configuration, and field of its name."""
IMAGE_SIZE = "image_processing.image_size"
PROCESSOR = "image_processing.vision_processor"


def settle_backbone(settling: Settling, name: str) -> None:
    """Decide the configuration of one backbone.

    Raises:
        CheckpointError: its family is unknown, and nobody states a configuration or a name.
    """
    claim = settling.claim(name)
    stated = settling.claim(BACKBONES[name])
    if claim is not None:
        source = source_of(claim, name)
        # What a caller gives is the backbone's own configuration, as a name would.
        own = source.kind == "override"
        _set_stated(settling, name, claim.values[name], source, own=own)
        if stated is None and claim.values[name]:
            label = f"{UNNAMED}{settling.values[name].get('model_type')}"
            settling.set(BACKBONES[name], label, Source("default", "nothing names it"))
        for full in sorted({*claim.assumed, *claim.inferred}):
            if full.startswith(f"{name}."):
                settling.sources[full] = source_of(claim, full)
        if claim.among_weights:
            _tell_apart(settling, name, source)
        settling.assumed += sorted(f for f in claim.assumed if f.startswith(f"{name}."))
    elif stated is not None:
        _settle_named(settling, name, str(stated.values[BACKBONES[name]]))
    elif name in settling.inferred.absent:
        settling.set(name, None, Source("default", "no weight of it, and no name"))
    elif name in settling.inferred.unrecognised:
        raise CheckpointError(settling.inferred.unrecognised[name])
    else:
        _settle_inferred(settling, name)
    _override_single_fields(settling, name)


def _tell_apart(settling: Settling, name: str, source: Source) -> None:
    """Say which fields of a configuration that the weights keep are seen in their shapes as well.

    Of the others those are named that would have to be assumed without it.
    """
    prefix, config = f"{name}.", settling.values[name] or {}
    inferred = settling.inferred
    for full in (*inferred.fields, *inferred.assumed):
        if full.startswith(prefix) and full.removeprefix(prefix) in config:
            seen = inferred.fields.get(full)
            settling.sources[full] = Source("weights", seen.evidence) if seen else source


def settle_image_size(settling: Settling) -> None:
    """Take the tower's own image size where none is stated.

    The original asked the tower's image processor first. (DINOv2 was trained on pictures of 518
    pixels, and its processor gives 224.)
    """
    if settling.values.get(IMAGE_SIZE) is not None:
        return
    processor = settling.values.get(PROCESSOR) if settling.keys.layout == "original" else None
    given = None if processor is None else processed_size(processor)
    if given is not None:
        source = settling.sources[PROCESSOR]
        settling.set(IMAGE_SIZE, given, Source(source.kind, f"the processor's ({source.detail})"))
        return
    tower = settling.values.get(VISION) or {}
    observed = settling.inferred.fields.get(f"{VISION}.image_size")
    if tower.get("image_size"):
        guessed = f"{VISION}.image_size" in settling.assumed
        detail = f"the tower's own ({settling.sources[VISION].detail})"
        source = Source("weights", detail)
        if guessed:  # of rotary positions, where no table shows it
            source = Source("default", "usual value of this family of towers")
        settling.set(IMAGE_SIZE, tower["image_size"], source, assumed=guessed)
    elif observed:
        detail = f"the tower's own ({observed.evidence})"
        settling.set(IMAGE_SIZE, observed.value, Source("weights", detail))


def _settle_named(settling: Settling, name: str, label: str) -> None:
    """Read a named backbone's configuration from this machine."""
    raw = named_config(label)
    if raw is None:
        source = Source("metadata", f"named {label!r}, not on this machine")
        settling.set(name, None, source)
        return
    if name == VISION:
        processor = named_processor(label)
        if settling.values.get(PROCESSOR) is None and processor is not None:
            settling.set(PROCESSOR, processor, Source("metadata", f"processor of {label}"))
    _set_stated(settling, name, raw, Source("metadata", f"config.json of {label}"), own=True)


def _set_stated(
    settling: Settling, name: str, stated: dict[str, Any], source: Source, *, own: bool
) -> None:
    """Take a stated configuration after comparing it with the weights, key by key.

    With ``own`` it is that of the backbone from before training, which may have changed the number
    of tokens.
    """
    config = vision_part(stated) if name == VISION else dict(stated)
    rows = settling.inferred.fields.get(f"{LANGUAGE}.vocab_size")
    if own and name == LANGUAGE and rows is not None:
        config = resized(config, rows.value)
    observations = {
        full.removeprefix(f"{name}."): observed
        for full, observed in settling.inferred.fields.items()
        if full.startswith(f"{name}.")
    }
    for key, observed in observations.items():
        if key in config and not _agrees(key, config[key], observations):
            full = f"{name}.{key}"
            config[key] = settling.contradict(full, config[key], source.detail, observed)
    settling.set(name, config, source)


def _override_single_fields(settling: Settling, name: str) -> None:
    """Lay single fields that the caller states (``models.vision_config.hidden_act``) over it.

    Raises:
        CheckpointError: there is no configuration to lay them over.
    """
    stated = next((claim for claim in settling.claims if claim.origin == OVERRIDE), None)
    fields = [full for full in (stated.values if stated else {}) if full.startswith(f"{name}.")]
    config = settling.values[name]
    for full in fields:
        assert stated is not None
        if config is None:
            raise CheckpointError(
                f"override {full}: the configuration itself is not on this machine "
                f"({settling.sources[name].detail}); give it whole as {name}."
            )
        value, observed = stated.values[full], settling.inferred.fields.get(full)
        if observed is not None and plain(value) != plain(observed.value):
            value = settling.contradict(full, value, OVERRIDE, observed)
        config[full.removeprefix(f"{name}.")] = value
        settling.sources[full] = Source("override", OVERRIDE)
        if full in settling.assumed:
            settling.assumed.remove(full)


def _agrees(key: str, claimed: Any, observations: dict[str, Observed]) -> bool:
    """Tell whether a stated field can be true; images of one grid of patches agree."""
    observed, patch = observations[key], observations.get("patch_size")
    if key != "image_size" or patch is None:
        return bool(plain(claimed) == plain(observed.value))
    sides = claimed if isinstance(claimed, list | tuple) else [claimed]
    return all(side // patch.value == observed.value // patch.value for side in sides)


def _settle_inferred(settling: Settling, name: str) -> None:
    """Put a backbone's configuration together from observed and assumed fields."""
    inferred, prefix = settling.inferred, f"{name}."
    kind = f"{name}.model_type"
    observed = inferred.fields.get(kind)
    family = observed.value if observed else inferred.assumed[kind]
    settling.set(BACKBONES[name], f"{UNNAMED}{family}", Source("weights", "names of the tensors"))
    config: dict[str, Any] = {}
    for full, seen in inferred.fields.items():
        if full.startswith(prefix):
            config[full.removeprefix(prefix)] = seen.value
            settling.sources[full] = Source("weights", seen.evidence)
    for full, value in inferred.assumed.items():
        if full.startswith(prefix):
            config[full.removeprefix(prefix)] = value
            settling.sources[full] = Source("default", "usual value of this family")
            settling.assumed.append(full)
    settling.set(name, config, Source("weights", "shapes of the tensors"))
    if name in inferred.candidates:
        settling.notes.append(inferred.candidates[name])
