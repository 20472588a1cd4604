"""Writes a checkpoint in another format, and proves that the result is the same model.

The result describes itself: document, tokenizer and the backbones' configurations travel. It takes
its name only after it was opened again and every tensor was found equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from panovlm.atomic import atomic_folder, atomic_write
from panovlm.checkpoint.documents.document import document
from panovlm.checkpoint.documents.metadata import CheckpointMetadata, Conversion, fingerprint
from panovlm.checkpoint.documents.tokenizer_digests import tokenizer_digests
from panovlm.checkpoint.find.locate import own_sidecar
from panovlm.checkpoint.loading.load import (
    assemble,
    compare_probe,
    load_checkpoint,
    tied_names,
)
from panovlm.checkpoint.names.averages import Weights
from panovlm.checkpoint.probe.measure import precisions, take_probe
from panovlm.checkpoint.probe.record import find_probe
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.export import Export, carried_files
from panovlm.checkpoint.saving.weight_files import Stored
from panovlm.checkpoint.settle.settling import Prefer
from panovlm.errors import CheckpointError, ConfigError, PanoVLMError
from panovlm.models.language.adapters import strip_lora_name
from panovlm.models.language.quantized import quantized
from panovlm.models.model import PanoramaVLM

Target = Literal["safetensors", "sharded", "huggingface", "lightning"]
SUFFIX: Mapping[str, str] = {"safetensors": ".safetensors", "lightning": ".ckpt"}
"""Ending of the formats that are one file; the others are folders."""
SHARD_SIZE = 5_000_000_000
LANGUAGE = "language_model."


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        tensors: how many were written and compared.
        nbytes: their size.
    """

    path: Path
    document: CheckpointMetadata
    tensors: int
    nbytes: int


def convert(
    source: Path,
    target: Path,
    *,
    to: Target,
    merge_lora: bool = False,
    dtype: torch.dtype | None = None,
    max_shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    prefer: Prefer | None = None,
    strict: bool = False,
    overrides: Mapping[str, Any] | None = None,
    weights: Weights | None = None,
) -> Converted:
    """Write a checkpoint in another format.

    The result is complete: what the source leaves to adapters in another file or to the models
    that it was trained from is in it.

    Args:
        source: checkpoint file or folder.
        target: file (``safetensors``: ``.safetensors``, ``lightning``: ``.ckpt``) or folder.
        to: the format. A ``huggingface`` folder is read by ``from_pretrained`` as well.
        merge_lora: add the adapters into the weights, computed in float32. Those of a quantised
            language model are then what it computes with, and the result is not quantised.
        dtype: floating-point type of the weights; unset: each as it is.
        max_shard_size: bytes of one shard, for the two folders.
        overwrite: replace what is there.
        prefer: as for :meth:`PanoramaVLM.from_checkpoint`.
        strict: likewise.
        overrides: likewise.
        weights: likewise.

    Raises:
        CheckpointError: the source does not load, the target is there, cannot be written, or does
            not come out equal; then nothing is left of it.
        ConfigError: the target's name does not suit the format, or nothing can be merged.
    """
    _check_target(target, to, overwrite=overwrite)
    model = load_checkpoint(
        source,
        device=torch.device("cpu"),
        prefer=prefer,
        strict=strict,
        overrides=overrides,
        weights=weights,
    )
    loaded = model
    if model.is_quantized and not merge_lora:
        model = _in_full(model, dtype)
    stored = _stored(model, merge=merge_lora, dtype=dtype)
    if to == "huggingface":
        _require_one_type(model, stored)
    if to != "lightning":
        stored = _without_tied(model, stored)
    known = _document(model, stored, loaded, merge=merge_lora, dtype=dtype)
    export = Export(model, stored, known)
    if to in SUFFIX:
        with atomic_write(target) as file, _judging(Path(file.name), target):
            (export.safetensors if to == "safetensors" else export.lightning)(file)
            file.flush()
            _prove(Path(file.name), export)
    else:
        with atomic_folder(target) as folder, _judging(folder, target):
            (export.huggingface if to == "huggingface" else export.sharded)(folder, max_shard_size)
            _prove(folder, export)
    return Converted(target, known, len(stored), sum(one.nbytes for one in stored.values()))


def _check_target(target: Path, to: Target, *, overwrite: bool) -> None:
    suffix = SUFFIX.get(to)
    if suffix and target.suffix != suffix:
        raise ConfigError(f"{target}: the format {to} is one file; give a name with {suffix}.")
    if not suffix and target.is_file():
        raise ConfigError(f"{target} is a file, but the format {to} is a folder.")
    if suffix and target.is_dir():
        raise ConfigError(f"{target} is a folder, but the format {to} is one file.")
    there = target.is_file() or (target.is_dir() and any(target.iterdir()))
    if there and not overwrite:
        raise CheckpointError(f"{target} is there already; replace it with --overwrite.")
    own = own_sidecar(target)
    if suffix and own.is_file():
        raise CheckpointError(
            f"{own} describes another file of that name; remove it, or choose another name."
        )


def _in_full(model: PanoramaVLM, dtype: torch.dtype | None) -> PanoramaVLM:
    """Return the same model with the weights that its language model was quantised from.

    Raises:
        ConfigError: they shall be rounded to another type, of which other bits would be made.
    """
    if dtype is not None:
        kind = model.recipe.models.language_quantization
        raise ConfigError(
            f"the language model is quantised ({kind}), and weights of another type would be "
            "quantised to other values. Leave out --dtype, or add the adapters into the weights "
            "with --merge-lora, after which it is not quantised."
        )
    assert model.resolution is not None
    return assemble(model.resolution, full=True)


def _stored(model: PanoramaVLM, *, merge: bool, dtype: torch.dtype | None) -> dict[str, Stored]:
    """Return every tensor of the state dict with the type that it is to be stored in."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    types = {name: tensor.dtype for name, tensor in _state(model).items()}
    rounded = {f"{LANGUAGE}{n}.weight": la.stored for n, la in quantized(model.language_model)}
    types |= rounded
    parameters |= rounded.keys()
    if merge:
        types |= {_plain_name(name): kind for name, kind in types.items()}
        _merge(model)
        parameters |= {_plain_name(name) for name in parameters}
    stored: dict[str, Stored] = {}
    for name, tensor in _state(model).items():
        rounds = dtype is not None and name in parameters and tensor.is_floating_point()
        stored[name] = Stored(tensor, dtype if dtype is not None and rounds else types[name])
    return stored


def _state(model: PanoramaVLM) -> dict[str, Tensor]:
    return cast("dict[str, Tensor]", dict(model.state_dict()))


def _plain_name(name: str) -> str:
    """Return the name that a tensor has once the adapters are merged."""
    if not name.startswith(LANGUAGE):
        return name
    return LANGUAGE + strip_lora_name(name.removeprefix(LANGUAGE)).name


def _merge(model: PanoramaVLM) -> None:
    """Merge the adapters. They are added in float32 and rounded once, when they are stored."""
    if not model.recipe.lora.use_lora:
        raise ConfigError("the checkpoint has no adapters to merge; leave out --merge-lora.")
    for module in model.language_model.modules():
        if isinstance(module, LoraLayer):
            module.float()
    model.merge_adapters()


def _without_tied(model: PanoramaVLM, weights: Mapping[str, Stored]) -> dict[str, Stored]:
    """Leave out the second names of tied tensors: safetensors has no way to say that they are."""
    ties = tied_names(model)
    kept: dict[str, Stored] = {}
    for name, stored in weights.items():
        if ties.get(name) not in kept:
            kept[name] = stored
    return kept


def _require_one_type(model: PanoramaVLM, weights: Mapping[str, Stored]) -> None:
    """Refuse weights of several types: from_pretrained would make them one, unasked."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    types = {str(s.dtype) for n, s in weights.items() if n in parameters}
    if len(types) > 1:
        names = ", ".join(sorted(name.removeprefix("torch.") for name in types))
        raise ConfigError(
            f"the weights are of several types ({names}), and from_pretrained makes them one. "
            "Say which with --dtype, or convert to sharded, which keeps them."
        )


def _document(
    model: PanoramaVLM,
    weights: Mapping[str, Stored],
    loaded: PanoramaVLM,
    *,
    merge: bool,
    dtype: torch.dtype | None,
) -> CheckpointMetadata:
    """Return the document of the result; ``loaded`` is the model as it computes."""
    assert model.resolution is not None
    before = document(model.resolution)
    files = carried_files(model)
    done = Conversion(
        source=before.fingerprint,
        merged_lora=model.recipe.lora if merge else None,
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
    )
    changed = done.merged_lora is not None or done.dtype is not None
    return before.model_copy(
        update={
            "fingerprint": fingerprint({n: tuple(s.tensor.shape) for n, s in weights.items()}),
            "amends": "",
            "amends_weights": "",
            "references": {},
            "recipe": model.config.typed_recipe().model_dump(mode="json"),
            "tokenizer": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            "conversions": (*before.conversions, done) if changed else before.conversions,
            "probe": _probed(loaded, before, done.dtype),
        }
    )


def _probed(
    model: PanoramaVLM, before: CheckpointMetadata, dtype: str | None
) -> dict[str, Any] | None:
    """Return the probe of the result: the source's, unless the caller changed settings."""
    assert model.resolution is not None
    found = find_probe(model.resolution)
    if found is not None and found.own and not model.resolution.changed:
        probe = found.probe
    else:
        probe = take_probe(model, assumed=before.assumed)
    if probe is None:
        return None
    stored = precisions(model)
    new = stored if dtype is None else dict.fromkeys(stored, dtype)
    return probe.rounded(stored).rounded(new).model_dump(mode="json")


@contextmanager
def _judging(written: Path, target: Path) -> Generator[None]:
    """Report what is wrong with a file that has no name yet under the name that it would get."""
    try:
        yield
    except PanoVLMError as error:
        told = str(error).replace(written.name, target.name)
        raise CheckpointError(
            f"{target} was not written, since it would not open there as the same model: {told}"
        ) from error


def _prove(path: Path, export: Export) -> None:
    """Open what was written as any reader would, and compare it with what was meant.

    Raises:
        CheckpointError: it does not load, or something differs.
    """
    resolution = resolve(path)
    resolution.raise_conflicts()
    again = assemble(resolution, full=True)
    state = _state(again)
    for name, stored in export.weights.items():
        _require(equal_tensors(state.get(name), stored.value()), f"tensor {name}")
    _require(state.keys() == _state(export.model).keys(), "the names of the tensors")
    _require(again.recipe == export.model.recipe, "the settings")
    _require(tokenizer_digests(resolution) == export.document.tokenizer, "the tokenizer")
    again.quantize()
    compare_probe(resolution, again, precisions(again))


def equal_tensors(read: Tensor | None, meant: Tensor | None) -> bool:
    """Compare types, shapes and bytes; nothing equals only nothing."""
    if read is None or meant is None:
        return read is meant
    if read.dtype != meant.dtype or read.shape != meant.shape:
        return False
    return torch.equal(_bytes(read), _bytes(meant))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise CheckpointError(f"{what} came back different from what was written.")
