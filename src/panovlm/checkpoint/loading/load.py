"""From a resolved checkpoint to the model: build without weights, prove, map the file, bind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from panovlm.checkpoint.documents.adapter_config import read_adapter_config
from panovlm.checkpoint.find.tokenizer import find_tokenizer
from panovlm.checkpoint.loading.borrow import borrow
from panovlm.checkpoint.loading.plan import Proof, prove
from panovlm.checkpoint.loading.stored import stored_tensors
from panovlm.checkpoint.names.averages import Weights
from panovlm.checkpoint.names.keymap import MARKERS
from panovlm.checkpoint.probe.check import check_probe
from panovlm.checkpoint.probe.measure import precisions
from panovlm.checkpoint.probe.record import PRECISIONS, Part
from panovlm.checkpoint.resolution import Resolution
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.settle.backbone_files import processed_size, resized
from panovlm.checkpoint.settle.backbones import IMAGE_SIZE
from panovlm.checkpoint.settle.settling import Prefer
from panovlm.config.schema import Recipe
from panovlm.errors import CheckpointError, ContradictionError, PanoVLMError
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.empty import without_weights
from panovlm.models.language.backbone import language_config
from panovlm.models.language.lora import adapter_effect
from panovlm.models.language.quantized import require_library
from panovlm.models.model import PanoramaVLM
from panovlm.models.sizes import possible_sizes
from panovlm.models.vision.pretrained import tower_config, tower_processor

UNTIE = "--set models.language_config.tie_word_embeddings=false"


def load_checkpoint(
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    prefer: Prefer | None = None,
    strict: bool = False,
    overrides: Mapping[str, Any] | None = None,
    weights: Weights | None = None,
    probe: bool = True,
) -> PanoramaVLM:
    """Load a checkpoint; see :meth:`panovlm.models.model.PanoramaVLM.from_checkpoint`."""
    resolution = resolve(path, overrides, prefer=prefer, weights=weights)
    resolution.raise_conflicts()
    if strict:
        resolution.raise_assumed()
    model = assemble(resolution)
    stored = precisions(model)
    # In float32 the probe sees more, and processors are slow in half precision; an accelerator is
    # fast in any, but its memory may not hold the model before it is converted.
    early = probe and device.type == "cpu"
    if early:
        compare_probe(resolution, model, stored)
    if dtype is not None:
        convert(model, dtype)
    if device.type != "cpu":
        cast(nn.Module, model).to(device)
    if probe and not early:
        compare_probe(resolution, model, stored)
    return model


def assemble(resolution: Resolution, *, full: bool = False) -> PanoramaVLM:
    """Build the model of a resolved checkpoint, prove it, and give it its weights and tokenizer.

    Args:
        resolution: the checkpoint.
        full: leave the language model in full precision, whatever the recipe says: to write its
            weights, or to try other settings.

    Returns:
        The model in evaluation mode, on the CPU, its weights in the types of the file.
    """
    model = build_empty(complete(resolution))
    proof = prove_model(resolution, model)
    proof.raise_failure(resolution.path)
    fill(resolution, model, proof, full=full)
    return model.eval()


def fill(resolution: Resolution, model: PanoramaVLM, proof: Proof, *, full: bool = False) -> None:
    """Give a proven model its weights, its tokenizer (if one can be had) and its resolution.

    Raises:
        CheckpointError: the weights are not complete, adapters are damaged, or the tokenizer is.
        ContradictionError: the weights contradict each other or what was recorded of them.
        MissingDependencyError: the language model is quantised, and bitsandbytes is missing.
    """
    quantization = resolution.config.models.language_quantization
    if quantization != "none" and not full:
        require_library(quantization)
    bind(resolution, model, proof, borrow(resolution, proof))
    if not full:
        model.quantize()
    check_adapters(resolution, model)
    model.resolution = resolution
    model.unsettled = tuple(resolution.assumed)
    if resolution.record is not None:
        model.config.vision_token_id = resolution.record.vision_token_id
    tokenizer = find_tokenizer(resolution)
    if tokenizer is not None:
        model.attach_tokenizer(tokenizer)


def compare_probe(resolution: Resolution, model: PanoramaVLM, stored: Mapping[Part, str]) -> None:
    """Stop if a model computes something else than when its checkpoint was written.

    Raises:
        CheckpointError: a part differs that no setting of the caller reaches.
    """
    report = check_probe(model, resolution, stored)
    report.raise_failure(resolution)
    resolution.notes += report.notes()


def complete(resolution: Resolution) -> Recipe:
    """Return the recipe with both backbones' configurations.

    A backbone that is only named, and whose ``config.json`` was not found on this machine, is asked
    for by name; a hub is reached only then.

    Raises:
        CheckpointError: its configuration cannot be had.
    """
    models, image = resolution.config.models, resolution.config.image_processing
    found: dict[str, Any] = {}
    seen: dict[str, Any] = {}
    if models.vision_config is None:
        named = _ask(tower_config, models.vision_name, "vision", resolution)
        found["vision_config"] = named.to_dict()
        if image.vision_processor is None:
            seen["vision_processor"] = _ask(
                tower_processor, models.vision_name, "vision", resolution
            )
    if models.language_config is None:
        named = _ask(language_config, models.language_model_name, "language", resolution)
        rows = resolution.inferred.fields.get("models.language_config.vocab_size")
        own = named.to_dict()
        found["language_config"] = own if rows is None else resized(own, rows.value)
    if seen and resolution.keys.layout == "original":
        given = processed_size(seen["vision_processor"] or {})
        unstated = resolution.sources[IMAGE_SIZE].kind == "weights"
        seen |= {"image_size": given} if given is not None and unstated else {}
    if found:
        update = {
            "models": {**models.model_dump(), **found},
            "image_processing": {**image.model_dump(), **seen},
        }
        resolution.config = resolution.config.model_copy(update=update)
    return resolution.config


def _ask(read: Any, name: str, part: str, resolution: Resolution) -> Any:
    """Read a named backbone's configuration, or say what is missing and how to mend it."""
    field = f"{part}_config"
    label = "vision_name" if part == "vision" else "language_model_name"
    try:
        return read(name)
    except PanoVLMError as error:
        raise CheckpointError(
            f"{resolution.path} names its {part} backbone {name!r} but does not carry its "
            f"configuration, and it cannot be read: {error} Shapes alone cannot tell its number "
            f"of heads. Give its folder with --set models.{label}=FOLDER, or the configuration "
            f"itself with --set models.{field}=JSON."
        ) from error


def build_empty(recipe: Recipe) -> PanoramaVLM:
    """Build a model whose parameters take no memory and whose buffers are real."""
    with possible_sizes(), without_weights():
        return PanoramaVLM(PanoramaVLMConfig(recipe))


def tied_names(model: PanoramaVLM) -> dict[str, str]:
    """Return the names of the state dict that share another name's tensor."""
    inner = cast(Any, model.language_model)
    prefix = "language_model."
    if hasattr(inner, "get_base_model"):
        inner, prefix = inner.get_base_model(), prefix + "base_model.model."
    ties: dict[str, str] = inner.get_expanded_tied_weights_keys(all_submodels=True)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found: dict[str, str] = {}
    for target, source in ties.items():
        one, other = (_wrapped(prefix + name, names) for name in (target, source))
        # Either of the two may be the stored one.
        found[one], found[other] = other, one
    return found


def _wrapped(name: str, names: set[str]) -> str:
    """Return the name of a weight whose layer may carry adapters."""
    if name in names:
        return name
    layer, _, leaf = name.rpartition(".")
    return f"{layer}.base_layer.{leaf}"


def prove_model(resolution: Resolution, model: PanoramaVLM) -> Proof:
    """Compare every key and shape of the file with a model built without weights."""
    tensors, dropped = resolution.header.tensors, set(resolution.inferred.dropped)
    stored = {name: shape for name, shape in resolution.shapes.items() if name not in dropped}
    stored |= {name: tensors[name].shape for name in resolution.keys.unknown}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in MARKERS}
    built = {name: tuple(tensor.shape) for name, tensor in state.items()}
    files = {name: file for name, file in resolution.keys.files.items() if name in state}
    mistyped = {
        name: tensors[file].dtype
        for name, file in files.items()
        if state[name].is_floating_point() and tensors[file].dtype not in PRECISIONS
    }
    return prove(stored, built, tied_names(model), resolution.borrowed.keys(), mistyped)


def bind(
    resolution: Resolution, model: PanoramaVLM, proof: Proof, borrowed: Mapping[str, Tensor]
) -> None:
    """Map the files and make their tensors the model's own, without a second copy.

    Args:
        resolution: which tensor goes where.
        model: without weights; it gets them.
        proof: that they fit. Settings among the weights are no part of it: the model writes its
            own.
        borrowed: tensors of the model that no file holds.

    Raises:
        ContradictionError: two names of one tensor hold different values.
        CheckpointError: a parameter would be left without value.
    """
    tensors = stored_tensors(resolution)
    _check_aliases(resolution, tensors)
    state = {**borrowed, **{n: resolution.keys.take(n, tensors) for n in proof.matched}}
    for name, source in proof.ties.items():
        if source not in state:
            continue  # the other direction of this tie fills it
        if name not in state and _trained_alone(resolution, source):
            raise ContradictionError(
                f"{resolution.path}: {source} was trained with the adapters, and PEFT trains a "
                f"copy, so that {name} is no longer tied to it as the language model's "
                f"configuration says. Say {UNTIE}."
            )
        if name in state and not _same(state[name], state[source]):
            raise ContradictionError(
                f"{resolution.path}: the language model's configuration ties {name} to {source}, "
                f"but the file holds different values. If they were trained apart, say {UNTIE}."
            )
        state[name] = state[source]
    model.load_state_dict(state, assign=True, strict=True)
    if proof.ties:
        cast(Any, _plain(model.language_model)).tie_weights()
    empty = [n for n, p in (*model.named_parameters(), *model.named_buffers()) if p.is_meta]
    if empty:
        raise CheckpointError(
            f"{resolution.path}: {len(empty)} tensor(s) were left without value, first {empty[0]}."
        )


def _trained_alone(resolution: Resolution, name: str) -> bool:
    """Tell whether adapters bring a tensor that was trained apart from what it was tied to."""
    part = resolution.adapters
    if part is None or resolution.keys.files.get(name) not in part.trained:
        return False
    return not read_adapter_config(part.path.parent).get("ensure_weight_tying")


def check_adapters(resolution: Resolution, model: PanoramaVLM) -> None:
    """See that adapters change what the language model computes, or say that they do not.

    Raises:
        CheckpointError: they were trained and have no effect, or none that can be computed.
    """
    if not resolution.config.lora.use_lora:
        return
    effect = adapter_effect(model.language_model)
    if effect is None:
        resolution.notes.append(
            "the adapters have no effect: they are freshly initialised (every lora_B is zero)"
        )
    elif not 0 < effect < math.inf:
        raise CheckpointError(
            f"{resolution.path}: some of the adapters change nothing that can be computed (the "
            f"largest change of a weight is {effect}), although lora_B is not zero. The file is "
            "damaged; take the checkpoint before it, or leave them out of a copy."
        )


def convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the weights a floating-point type; computed buffers keep theirs.

    ``module.to(dtype)`` would round the frequencies of rotary positions as well, and far positions
    would be off by a good part of a turn.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _plain(language_model: nn.Module) -> nn.Module:
    """Return the language model without its adapters' wrapper."""
    wrapped = cast(Any, language_model)
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else language_model


def _check_aliases(resolution: Resolution, tensors: Mapping[str, Tensor]) -> None:
    """Compare the values of tensors that the file holds under two names."""
    for name, stored in resolution.keys.aliases.items():
        first = tensors[resolution.keys.files[name]]
        for alias in stored:
            if not _same(first, tensors[alias]):
                raise ContradictionError(
                    f"{resolution.path}: {resolution.keys.files[name]} and {alias} are two names "
                    "of one tensor but hold different values; the file mixes two states."
                )


def _same(one: Tensor, other: Tensor) -> bool:
    """Compare two tensors, without reading them when they are one."""
    shared = one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    return (shared and one.shape == other.shape) or torch.equal(one, other)
