"""Weights that a checkpoint leaves to a named model: fetching them, and their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from panovlm.checkpoint.documents.metadata import Prefix, Reference
from panovlm.checkpoint.find.adapters import Part
from panovlm.checkpoint.formats import load_tensors
from panovlm.checkpoint.loading.plan import Proof
from panovlm.checkpoint.loading.references import BACKBONES
from panovlm.checkpoint.names.keys import LANGUAGE_MODEL
from panovlm.checkpoint.resolution import Resolution
from panovlm.checkpoint.settle.infer import is_token_table
from panovlm.errors import CheckpointError, ConfigError, ContradictionError, PanoVLMError
from panovlm.models.language.adapters import strip_lora_name
from panovlm.models.language.backbone import load_language_model
from panovlm.models.language.quantized import quantized
from panovlm.models.model import PanoramaVLM
from panovlm.models.vision.pretrained import load_tower

READERS: Mapping[Prefix, Callable[[str], PreTrainedModel]] = {
    "vision_backbone.encoder.": load_tower,
    "language_model.": load_language_model,
}
"""How training reads each backbone; the same road gives the same values and types."""


def borrow(resolution: Resolution, proof: Proof) -> dict[str, Tensor]:
    """Return the weights that the checkpoint leaves to named models, by the model's names.

    Raises:
        CheckpointError: a named model cannot be read, or lacks a tensor of this shape.
        ContradictionError: its values are not those that were recorded.
    """
    found: dict[str, Tensor] = {}
    for prefix, source in resolution.borrowed.items():
        wanted = {name: s for name, s in proof.borrowed.items() if name.startswith(prefix)}
        try:
            state = READERS[prefix](source.name).state_dict()
        except PanoVLMError as error:
            raise CheckpointError(
                f"{resolution.path} leaves the weights of {BACKBONES[prefix].what} to "
                f"{source.name!r} ({source.why}), which cannot be read: {error}"
            ) from error
        taken = {name: state.get(own_name(prefix, name)) for name in wanted}
        complete = {n: t for n, t in taken.items() if t is not None and t.shape == wanted[n]}
        faults = [f"{n} {list(wanted[n])}" for n in wanted if n not in complete]
        if faults:
            raise CheckpointError(
                f"{resolution.path} leaves the weights of {BACKBONES[prefix].what} to "
                f"{source.name!r} ({source.why}), which lacks {len(faults)} of them or has them in "
                f"another shape: {', '.join(faults[:5])}. Name the model that it was trained "
                f"with: --set {BACKBONES[prefix].name}=NAME."
            )
        if not source.digest and prefix == LANGUAGE_MODEL:
            if resolution.adapters is not None:
                _check_embeddings(resolution.adapters, source.name, state)
            elif resolution.config.models.language_quantization != "none":
                _check_frozen(resolution, source.name, state)
        if source.digest and digest(prefix, complete) != source.digest:
            raise ContradictionError(
                f"{resolution.path} was trained with other weights of {BACKBONES[prefix].what} "
                f"than {source.name!r} has now: the recorded digest of {len(complete)} tensor(s) "
                "differs. Give the folder or the revision that it was trained with: "
                f"--set {BACKBONES[prefix].name}=FOLDER."
            )
        found |= complete
        resolution.notes.append(_note(prefix, source.name, len(complete), bool(source.digest)))
    return found


def _check_embeddings(part: Part, base: str, state: Mapping[str, Tensor]) -> None:
    """Compare the token embeddings that adapters bring along with those of their base.

    PEFT saves them when training has added tokens; the rows of the old tokens are still the base's
    unless they were trained.

    Raises:
        ContradictionError: they are those of another model.
    """
    stored = load_tensors(part.path)
    kept = (own for name, own in part.names.items() if name not in part.trained)
    for name in filter(is_token_table, kept):
        table, own = stored[name], state.get(strip_lora_name(name).name)
        rows = 0 if own is None else min(len(table), len(own))
        if own is not None and not torch.equal(table[:rows], own[:rows].to(table.dtype)):
            raise ContradictionError(
                f"{part.path} was made for another language model than {base!r}: the first {rows} "
                f"rows of {name} are not those of that model. Name the right one: "
                "--set models.language_model_name=NAME."
            )


def _check_frozen(resolution: Resolution, base: str, state: Mapping[str, Tensor]) -> None:
    """Compare what a state dict of a quantised model has of its base with that; all is frozen.

    Raises:
        ContradictionError: it is of another model.
    """
    stored = load_tensors(resolution.path, resolution.weights)
    for name, file in resolution.keys.files.items():
        own = state.get(own_name(LANGUAGE_MODEL, name)) if name.startswith(LANGUAGE_MODEL) else None
        if own is None:
            continue
        rows = min(len(own), len(stored[file]))  # the tokenizer may have grown since
        if not torch.equal(stored[file][:rows], own[:rows].to(stored[file].dtype)):
            raise ContradictionError(
                f"{resolution.path} was quantised from another language model than {base!r}, whose "
                f"{own_name(LANGUAGE_MODEL, name)} is another one. Name the right one: --set "
                "models.language_model_name=NAME."
            )


def _note(prefix: Prefix, name: str, count: int, checked: bool) -> str:
    what = BACKBONES[prefix].what
    how = "their digest is the recorded one" if checked else "no digest was recorded"
    return f"{count} tensor(s) of {what} are those of {name!r}; {how}"


@dataclass(frozen=True)
class LeftOut:
    """What a checkpoint does not hold, because a named model has it.

    Attributes:
        references: the models, by the beginning of the names of a backbone's tensors.
        names: the tensors, by the model's names.
    """

    references: Mapping[Prefix, Reference] = field(default_factory=dict[Prefix, Reference])
    names: frozenset[str] = frozenset()


NOTHING = LeftOut()


def find_left_out(model: PanoramaVLM) -> LeftOut:
    """Find what a checkpoint of this model can leave to the models that its backbones came from.

    These are the frozen tensors of a backbone that equal those of the model of its name; what
    training has changed, or resized, is not among them. The weights that a quantised language model
    was made from are in no state dict, so that they must be those of the model of its name.

    Raises:
        ConfigError: no backbone is frozen, a name has no weights to refer to, or the language model
            was quantised from other weights than those of its name.
    """
    models = model.recipe.models
    names: dict[Prefix, str] = {
        "vision_backbone.encoder.": models.vision_name,
        "language_model.": models.language_model_name,
    }
    frozen = {n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    found: dict[Prefix, Reference] = {}
    covered: set[str] = set()
    for prefix, name in names.items():
        own = {n: t for n, t in model.state_dict().items() if n.startswith(prefix) and n in frozen}
        if not own:
            continue
        try:
            state = READERS[prefix](name).state_dict()
        except PanoVLMError as error:
            raise ConfigError(
                f"{BACKBONES[prefix].what} cannot be left to {name!r}, as is done with frozen "
                f"weights where training.save is 'trainable': {error} Set training.save to 'all'."
            ) from error
        equal = {n: t for n, t in own.items() if _same(t, state.get(own_name(prefix, n)))}
        covered |= equal.keys()
        if prefix == LANGUAGE_MODEL:
            equal |= _rounded_from(model, name, state)
        if equal:
            found[prefix] = Reference(name=name, digest=digest(prefix, equal))
    if not found:
        raise ConfigError(
            "training.save is 'trainable', but no frozen tensor of the backbones is the one of the "
            "model that it names, so that nothing can be left out. Set training.save to 'all'."
        )
    return LeftOut(found, frozenset(covered))


def _rounded_from(model: PanoramaVLM, name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a named model that the quantised layers were made from.

    Raises:
        ConfigError: they were made from others.
    """
    layers = {f"{LANGUAGE_MODEL}{n}.weight": la for n, la in quantized(model.language_model)}
    found = {n: state.get(own_name(LANGUAGE_MODEL, n)) for n in layers}
    same = {n: t for n, t in found.items() if t is not None and layers[n].is_rounded_from(t)}
    others = sorted(layers.keys() - same.keys())
    if others:
        raise ConfigError(
            f"the language model was quantised from other weights than those of {name!r} "
            f"({len(others)} of {len(layers)}, first {others[0]}), so that no checkpoint could "
            "refer to them. Write them as a model of their own (`panovlm convert CHECKPOINT "
            "FOLDER --to backbones`) and name that, or set models.language_quantization to none."
        )
    return same


def put_back(
    model: PanoramaVLM,
    state: dict[str, Tensor],
    recorded: Mapping[Prefix, Reference],
    left_out: LeftOut,
) -> None:
    """Complete a checkpoint's tensors with those of a model that starts from the same backbones.

    Args:
        model: it has the backbones' weights.
        state: tensors of a checkpoint of it, by the model's names; completed in place.
        recorded: what the checkpoint leaves out.
        left_out: what one of the model as it is now would leave out.

    Raises:
        ContradictionError: the model has other values than those that were recorded.
    """
    own = model.state_dict()
    for prefix, reference in recorded.items():
        absent = {n: t for n, t in own.items() if n.startswith(prefix) and n not in state}
        now = left_out.references.get(prefix)
        if now is None or now.digest != reference.digest or not left_out.names >= absent.keys():
            raise ContradictionError(
                f"the checkpoint leaves {BACKBONES[prefix].what} to {reference.name!r}, whose "
                "weights were others when it was written; put that model back."
            )
        state |= absent


def own_name(prefix: str, name: str) -> str:
    """Return the name that a tensor has in its backbone, without adapters around it."""
    return strip_lora_name(name.removeprefix(prefix)).name


def digest(prefix: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of names, types, shapes and values; the order does not matter."""
    total = hashlib.sha256()
    for name, tensor in _in_order((own_name(prefix, n), t) for n, t in tensors.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total.update(values.numpy().data)
    return total.hexdigest()[:32]


def _in_order(tensors: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    return sorted(tensors, key=lambda item: item[0])


def _same(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.cpu(), other)
