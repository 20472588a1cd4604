"""Backbones whose weights a checkpoint leaves out because they are those of a named model.

A frozen backbone may be kept by its name and a digest of its values instead of a copy. Split
checkpoints (adapters beside what else was trained) leave it out too, without a digest. No torch is
needed here; :mod:`panovlm.checkpoint.loading.borrow` fetches the weights.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from panovlm.checkpoint.documents.metadata import (
    EMBEDDED,
    CheckpointMetadata,
    Prefix,
    Reference,
    is_ours,
    parse,
    read_json,
)
from panovlm.checkpoint.documents.recipe_record import RecipeRecord
from panovlm.checkpoint.find.locate import Location
from panovlm.checkpoint.formats import Header
from panovlm.checkpoint.resolution import Borrowed
from panovlm.checkpoint.settle.infer import Inferred, is_token_table
from panovlm.checkpoint.settle.settling import Settling, kind_of
from panovlm.errors import CheckpointError
from panovlm.models.language.adapters import ADAPTER_PARTS, strip_lora_name


class Backbone(NamedTuple):
    """Where a backbone stands in the model, and in the recipe."""

    what: str
    config: str
    name: str


BACKBONES: Mapping[Prefix, Backbone] = {
    "vision_backbone.encoder.": Backbone(
        "the vision tower", "models.vision_config", "models.vision_name"
    ),
    "language_model.": Backbone(
        "the language model", "models.language_config", "models.language_model_name"
    ),
}
"""The backbones by the beginning of their tensors' names."""


def own_document(
    location: Location, header: Header, fingerprints: Collection[str]
) -> CheckpointMetadata | None:
    """Return the document that was written for these very weights, if there is one.

    It is needed before the weights are interpreted; every document is read in full later.

    Args:
        location: the checkpoint and its companions.
        header: what the file says about itself.
        fingerprints: of its names and shapes, in every form.
    """
    for raw, origin in _documents(location, header):
        if is_ours(raw):
            document = parse(raw, origin)
            if document.fingerprint in fingerprints:
                return document
    return None


def _documents(location: Location, header: Header) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the raw documents that are whole; what is wrong with others is told later."""
    if location.sidecar is not None:
        raw, cut_off = read_json(location.sidecar)
        if cut_off is None:
            yield raw, str(location.sidecar)
    try:
        inside = json.loads(str(header.extras.get(EMBEDDED, "{}")))
    except ValueError:
        return
    if isinstance(inside, Mapping):
        yield inside, f"the metadata inside {header.path}"


def quantized_from(
    record: RecipeRecord | None, shapes: Mapping[str, Sequence[int]]
) -> dict[Prefix, Reference]:
    """Return where the weights are that a state dict of a quantised model does not have.

    It has the other frozen tensors, and a recipe that names the model; no document comes with it.

    Args:
        record: the recipe among the weights.
        shapes: every tensor by its name today.
    """
    if record is None or record.recipe.models.language_quantization == "none":
        return {}
    prefix: Prefix = "language_model."
    mine = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
    linears = (
        name
        for name, shape in mine.items()
        if len(shape) == 2
        and not is_token_table(name)
        and strip_lora_name(name).part not in ADAPTER_PARTS
    )
    if any(linears):
        return {}
    return {prefix: Reference(name=record.recipe.models.language_model_name, digest="")}


def borrowed(
    settling: Settling, recorded: Mapping[Prefix, Reference], *, is_split: bool, path: str
) -> dict[Prefix, Borrowed]:
    """Return the backbones to be taken from elsewhere, by prefix.

    A backbone without any weight in the file is taken from the model that its name tells, where
    something says that it was frozen: the checkpoint's document, adapters without what they adapt,
    the way in which the checkpoint is split, or the caller by naming it.

    Raises:
        CheckpointError: nothing says where its weights are.
    """
    found: dict[Prefix, Borrowed] = {}
    for prefix, backbone in BACKBONES.items():
        name = str(settling.values[backbone.name])
        claim = settling.claim(backbone.name)
        if prefix in recorded:
            digest = recorded[prefix].digest
            why = "recorded in the metadata" if digest else "its Linear layers were quantised"
            found[prefix] = Borrowed(name, digest, why)
        elif backbone.config in settling.inferred.absent:
            why = _why(settling.inferred, backbone, is_split=is_split)
            if claim is not None and kind_of(claim) == "override":
                why = "named by the caller"
            if claim is None or not why:
                raise CheckpointError(_incomplete(path, backbone, name if claim else ""))
            found[prefix] = Borrowed(name, "", why)
    return found


def _why(inferred: Inferred, backbone: Backbone, *, is_split: bool) -> str:
    """Return what says that a backbone was left out on purpose; empty: nothing does."""
    if backbone.config == "models.language_config" and inferred.fields["lora.use_lora"].value:
        return "adapters are stored without what they adapt"
    return "only what was trained is stored" if is_split else ""


def _incomplete(path: str, backbone: Backbone, named: str) -> str:
    hint = f" (it is named {named!r})" if named else ""
    return (
        f"{path} holds no weight of {backbone.what}{hint}. If it was frozen while this was "
        f"trained, say which model it is, by folder or hub id: --set {backbone.name}=NAME. "
        "Otherwise the checkpoint is incomplete."
    )
