"""Describes an object that ``torch.save`` wrote, whatever the container that holds its bytes.

Which part of the saved object holds the weights has exactly one answer, or is an error:

1. the entry ``state_dict``, if it maps names to tensors (Lightning and most others);
2. else the only top-level entry that maps names to tensors (``model``, ``module``, ...), or the
   saved object itself if it maps names to tensors and has no such entry.

Entries that belong to a training run (optimizer states, ...) are no candidates. An entry that holds
a running average of the weights is described apart, as ``Contents.average``. Values of the state
dict that are no tensors stay in ``extras`` under the name of that entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

from panovlm.checkpoint.formats.header import (
    ATTACHMENTS,
    ITEMSIZE,
    Contents,
    Placement,
    TensorInfo,
    attachment_fault,
    contents,
    is_shape,
)
from panovlm.checkpoint.formats.names import Foreign, Global, StoredTensor
from panovlm.checkpoint.formats.source import Source
from panovlm.checkpoint.formats.ziparchive import Record
from panovlm.checkpoint.names.averages import COUNTERS, entry_is_averaged
from panovlm.errors import CheckpointError

TRAINING = (
    "optimizer_states",
    "lr_schedulers",
    "callbacks",
    "loops",
    "averaging_state",
    "optimizer",
    "optimizer_state_dict",
)
"""Entries that belong to a training run."""
_MAX_VALUES = 1_000_000
_MAX_DEPTH = 100
_MAX_SIZE = 1 << 63
_TENSOR_MAKERS = ("torch._utils._rebuild", "torch._tensor._rebuild", "torch.Tensor")
_PLAIN = (str, int, float, bool, type(None))


class Companions(NamedTuple):
    """What a saved object holds beside weights; the fields are those of ``Header``."""

    extras: Mapping[str, Any]
    attachments: Mapping[str, Placement]
    skipped: tuple[str, ...]


class SavedObject:
    """An object that torch saved, and the storages of its tensors.

    Args:
        source: the file, or the part of one, that the records lie in.
        value: the object, as inert values.
        storages: where the bytes of each storage lie, by its key.
    """

    def __init__(self, source: Source, value: Any, storages: Mapping[str, Record]) -> None:
        self.source = source
        self.value = value
        self.storages = storages
        self.values = 0

    def entries(self) -> dict[Any, Any]:
        """Return the mapping that the object is.

        Raises:
            CheckpointError: it is something else.
        """
        entries = mapping_of(self.value)
        if entries is None:
            raise CheckpointError(
                f"{self.source.path} holds {_kind(self.value)}; a mapping of names to tensors was "
                "expected. Save the state dict: torch.save(model.state_dict(), PATH)."
            )
        return entries

    def contents(self) -> Contents:
        """Describe a checkpoint that is this object, checking every tensor against the file.

        Raises:
            CheckpointError: the object is no checkpoint, or a tensor's bytes are absent.
        """
        entries = self.entries()
        averages = self.averages(entries)
        if not averages:
            return self.reading(entries, *self.weights(entries))
        average = self.reading(entries, *self.weights(averages))
        average = replace(average, header=replace(average.header, averaged=True))
        live = {name: value for name, value in entries.items() if name not in averages}
        if not any(_holds_tensors(m) for m in map(mapping_of, (live, *live.values())) if m):
            return average
        return replace(self.reading(live, *self.weights(live)), average=average)

    def averages(self, entries: Mapping[Any, Any]) -> dict[Any, dict[Any, Any]]:
        """Return the entries that hold a running average of the weights."""
        return {
            name: mapping
            for name, value in entries.items()
            if entry_is_averaged(str(name), entries)
            and (mapping := mapping_of(value)) is not None
            and _holds_tensors({n: v for n, v in mapping.items() if n not in COUNTERS})
        }

    def reading(self, entries: dict[Any, Any], place: str, weights: dict[Any, Any]) -> Contents:
        """Describe the object, taking ``weights`` (the entry ``place``) for its weights."""
        rest: dict[Any, Any] = {n: v for n, v in weights.items() if type(v) is not StoredTensor}
        inside = weights is not entries
        if inside:
            rest = {place: rest} if rest else {}
            rest |= {n: v for n, v in entries.items() if n != place}
        companions = self.companions(rest)
        return contents(
            self.source.path,
            "torch",
            tensors={
                self.tensor_name(name): self.place(name, value)
                for name, value in weights.items()
                if type(value) is StoredTensor
            },
            attachments=companions.attachments,
            extras=companions.extras,
            skipped=companions.skipped,
            entry=place,
        )

    def companions(self, entries: Mapping[Any, Any]) -> Companions:
        """Describe the entries that are not the weights.

        Raises:
            CheckpointError: an embedded file cannot be used, or its bytes are absent.
        """
        skipped = tuple(name for name in TRAINING if name in entries)
        left_out = {*skipped, ATTACHMENTS}
        return Companions(
            extras={
                self.plain_key(name): self.plain(value, str(name))
                for name, value in entries.items()
                if name not in left_out
            },
            attachments=self.attachments(entries.get(ATTACHMENTS, {})),
            skipped=skipped,
        )

    def weights(self, entries: dict[Any, Any]) -> tuple[str, dict[Any, Any]]:
        """Return the name and the value of the mapping that holds the weights."""
        mappings = {
            name: mapping
            for name, value in entries.items()
            if name not in (*TRAINING, ATTACHMENTS) and (mapping := mapping_of(value)) is not None
        }
        found = {name: mapping for name, mapping in mappings.items() if _holds_tensors(mapping)}
        if "state_dict" in found:
            found = {"state_dict": found["state_dict"]}
        elif _holds_tensors(entries):
            found = {**found, "the file's top level": entries}
        if len(found) == 1:
            name, mapping = next(iter(found.items()))
            self.refuse_undescribed(mapping)
            return str(name), mapping
        if found:
            raise CheckpointError(
                f"{self.source.path}: {len(found)} parts could be the weights: "
                f"{', '.join(map(repr, found))}. Save the one that is meant under 'state_dict'."
            )
        self.refuse_undescribed(entries)
        for mapping in mappings.values():
            self.refuse_undescribed(mapping)
        raise CheckpointError(
            f"{self.source.path} holds no weights: no entry maps names to tensors. Its entries "
            f"are {', '.join(map(repr, list(entries)[:12])) or 'none'}. Was it saved with the "
            "weights left out?"
        )

    def refuse_undescribed(self, mapping: dict[Any, Any]) -> None:
        """Stop at a tensor of a kind that is not read, rather than leave it out."""
        for name, value in mapping.items():
            if type(value) is Foreign and value.name.startswith(_TENSOR_MAKERS):
                raise CheckpointError(
                    f"{self.source.path}: {name!r} is stored by {value.name}, which is no dense "
                    "tensor with data (sparse, quantised, nested, on the meta device, or lazily "
                    "conjugated). Make it one before saving: .to_dense(), .dequantize(), "
                    ".resolve_conj()."
                )

    def attachments(self, value: Any) -> dict[str, Placement]:
        """Place the embedded files of the entry that holds them."""
        entries = mapping_of(value)
        if entries is None or any(type(value) is not StoredTensor for value in entries.values()):
            raise CheckpointError(
                f"{self.source.path}: the entry {ATTACHMENTS!r} does not map file names to uint8 "
                "tensors. Save the checkpoint again."
            )
        placed = {self.tensor_name(n): self.place(n, value) for n, value in entries.items()}
        for name, placement in placed.items():
            if fault := attachment_fault(name, placement):
                raise CheckpointError(f"{self.source.path}: attachment {name!r}: {fault}.")
        return placed

    def tensor_name(self, name: Any) -> str:
        """Return a tensor's name, which must be a text."""
        if type(name) is not str:
            raise CheckpointError(
                f"{self.source.path}: the tensor {name!r} is named by {_kind(name)}, not by a text."
            )
        return name

    def place(self, name: Any, tensor: StoredTensor) -> Placement:
        """Check a tensor against the record that should hold its bytes."""
        storage, offset, shape, stride, dtype = tensor
        itemsize = ITEMSIZE.get(dtype)
        elements = _extent(shape, stride, offset)
        if itemsize is None or elements is None or storage.length < 0:
            raise CheckpointError(
                f"{self.source.path}: tensor {name!r} has a dtype ({dtype}), shape or stride that "
                "is not supported, or the file is damaged."
            )
        nbytes = storage.length * ITEMSIZE[storage.dtype]
        record = self.storages.get(storage.key)
        if record is None or record.size < nbytes:
            there = "absent" if record is None else f"{record.size} bytes long"
            raise CheckpointError(
                f"{self.source.path}: tensor {name!r} is truncated: its storage {storage.key!r} is "
                f"{there}, and {nbytes} bytes were expected. Copy the file again or take the "
                "checkpoint before it."
            )
        if elements * itemsize > nbytes:
            raise CheckpointError(
                f"{self.source.path}: tensor {name!r} is damaged: {dtype} {list(shape)} reaches "
                f"byte {elements * itemsize} of a storage of {nbytes}."
            )
        return Placement(TensorInfo(shape, dtype), stride, offset, record.position, nbytes)

    def plain_key(self, key: Any) -> Any:
        """Convert a key of a mapping to plain Python."""
        if type(key) in (Foreign, Global):
            return f"<{key.name}>"
        return key

    def plain(self, value: Any, place: str, depth: int = 0) -> Any:
        """Convert inert values to plain Python; see ``Header.extras``."""
        self.values += 1
        if self.values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise CheckpointError(
                f"{self.source.path}: the entry {place!r} holds more than {_MAX_VALUES} values or "
                f"is nested deeper than {_MAX_DEPTH}. Save the checkpoint without it."
            )
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is Foreign:
            if value.items is None:
                return f"<{value.name}>"
            value = value.items
            kind = type(value)
        if kind is dict:
            items = value.items()
            return {self.plain_key(k): self.plain(v, place, depth + 1) for k, v in items}
        if kind is list:
            return [self.plain(item, place, depth + 1) for item in value]
        if kind is tuple:
            return tuple(self.plain(item, place, depth + 1) for item in value)
        if kind is StoredTensor:
            return self.place(place, value).info
        if kind is Global and value.name.startswith("torch.") and value.name[6:] in ITEMSIZE:
            return value.name
        return f"<{value.name}>" if kind is Global else "<torch.UntypedStorage>"


def mapping_of(value: Any) -> dict[Any, Any] | None:
    """Return the dict that ``value`` is, or is a foreign subclass of."""
    if type(value) is Foreign:
        value = value.items
    return value if type(value) is dict else None


def _holds_tensors(mapping: dict[Any, Any]) -> bool:
    return any(type(value) is StoredTensor for value in mapping.values())


def _extent(shape: Any, stride: Any, offset: Any) -> int | None:
    """Return how many elements a view needs its storage to have, or None if it is malformed."""
    if not is_shape(shape) or type(stride) is not tuple or type(offset) is not int:
        return None
    if len(shape) != len(stride) or not 0 <= offset < _MAX_SIZE:
        return None
    last = offset
    for length, step in zip(shape, stride, strict=True):
        if type(step) is not int or not 0 <= step < _MAX_SIZE:
            return None
        last += (length - 1) * step
    return last + 1 if prod(shape) else 0


def _kind(value: Any) -> str:
    if type(value) in (Foreign, Global):
        return f"an object of {value.name}"
    return {StoredTensor: "a single tensor"}.get(type(value), f"a {type(value).__name__}")
