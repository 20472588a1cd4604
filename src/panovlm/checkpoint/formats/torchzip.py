"""Describes a file of ``torch.save`` or Lightning: a zip archive holding a pickle and storages.

``<archive>/data.pkl`` describes the saved object; ``<archive>/data/<key>`` hold the bytes of its
storages, uncompressed. Only the table of contents and the pickle are read, and the pickle is
followed by :mod:`~panovlm.checkpoint.formats.inert`, which runs nothing.

Which part of the saved object holds the weights has exactly one answer, or is an error:

1. the entry ``state_dict``, if it maps names to tensors (Lightning and most others);
2. else the only top-level entry that maps names to tensors (``model``, ``module``, ...), or the
   saved object itself if it maps names to tensors and has no such entry.

Entries that belong to a training run (optimizer states, ...) are no candidates. Values of the
state dict that are no tensors stay in ``extras`` under the name of that entry.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from panovlm.checkpoint.formats.header import (
    ATTACHMENTS,
    ITEMSIZE,
    Contents,
    Placement,
    TensorInfo,
    attachment_fault,
    contents,
)
from panovlm.checkpoint.formats.inert import unpickle
from panovlm.checkpoint.formats.names import Foreign, Global, StoredTensor
from panovlm.checkpoint.formats.source import Source
from panovlm.checkpoint.formats.ziparchive import Record, data_start, read_records
from panovlm.errors import CheckpointError

__all__ = ["data_start", "read"]

_TRAINING = (
    "optimizer_states",
    "lr_schedulers",
    "callbacks",
    "loops",
    "optimizer",
    "optimizer_state_dict",
)
# A pickle of 32 MiB describes some 200,000 tensors. Larger ones are refused because a hostile one
# can make the reader take forty times its size.
_MAX_PICKLE = 32 << 20
_MAX_VALUES = 1_000_000
_MAX_DEPTH = 100
_MAX_RANK = 64
_MAX_SIZE = 1 << 63
_TENSOR_MAKERS = ("torch._utils._rebuild", "torch._tensor._rebuild", "torch.Tensor")
_PLAIN = (str, int, float, bool, type(None))


def read(source: Source) -> Contents:
    """Describe the torch archive ``source``.

    Raises:
        CheckpointError: the archive is truncated or damaged, a tensor's bytes are absent, the
            file was written on a big-endian machine, or its weights cannot be told apart.
    """
    records = read_records(source)
    folder = _archive_folder(source, records)
    _require_stored(source, records)
    pickled = records[f"{folder}/data.pkl"]
    if pickled.size > _MAX_PICKLE:
        raise CheckpointError(
            f"{source.path}: the description {folder}/data.pkl has {pickled.size} bytes; more than "
            f"{_MAX_PICKLE} are not read. Save the state dict alone, without the other entries."
        )
    if _record_bytes(source, records, f"{folder}/byteorder", b"little") != b"little":
        raise CheckpointError(
            f"{source.path} was written on a big-endian machine. Convert it there to safetensors, "
            "which is little-endian everywhere."
        )
    data = _record_bytes(source, records, f"{folder}/data.pkl", b"")
    saved = unpickle(data, f"{source.path} ({folder}/data.pkl)")
    return _Describer(source, records, folder).describe(saved)


def _archive_folder(source: Source, records: Mapping[str, Record]) -> str:
    folders = [n[: -len("/data.pkl")] for n in records if n.endswith("/data.pkl")]
    folders = [folder for folder in folders if "/" not in folder]
    if len(folders) == 1:
        if f"{folders[0]}/constants.pkl" in records:
            raise CheckpointError(
                f"{source.path} is a TorchScript program, not a checkpoint. Where you trust it, "
                "save its weights: torch.save(torch.jit.load(OLD).state_dict(), NEW)."
            )
        return folders[0]
    if folders:
        raise CheckpointError(f"{source.path} holds several archives: {', '.join(folders)}.")
    raise CheckpointError(
        f"{source.path} is a zip archive, but none of torch.save: it has no record "
        f"<archive>/data.pkl. It holds {', '.join(map(repr, list(records)[:5])) or 'nothing'}."
    )


def _require_stored(source: Source, records: Mapping[str, Record]) -> None:
    packed = next((name for name, record in records.items() if not record.stored), None)
    if packed is not None:
        raise CheckpointError(
            f"{source.path}: record {packed!r} is compressed or encrypted; torch stores records as "
            "they are. Unpack the archive and zip it again without compression (zip -0 -r)."
        )


def _record_bytes(
    source: Source, records: Mapping[str, Record], name: str, default: bytes
) -> bytes:
    """Read a small record whole, and check it where the writer kept a checksum."""
    record = records.get(name)
    if record is None:
        return default
    data = source.read(data_start(source, record.position), record.size)
    if record.crc and zlib.crc32(data) != record.crc:
        raise CheckpointError(
            f"{source.path} is damaged: the checksum of {name} does not match. Copy it again or "
            "take the checkpoint before it."
        )
    return data


class _Describer:
    """Turns the saved object into :class:`Contents`, checking every tensor against the archive."""

    def __init__(self, source: Source, records: Mapping[str, Record], folder: str) -> None:
        self.source = source
        self.records = records
        self.folder = folder
        self.values = 0

    def describe(self, saved: Any) -> Contents:
        entries = _mapping(saved)
        if entries is None:
            raise CheckpointError(
                f"{self.source.path} holds {_kind(saved)}; a mapping of names to tensors was "
                "expected. Save the state dict: torch.save(model.state_dict(), PATH)."
            )
        place, weights = self.weights(entries)
        inside = weights is not entries
        rest: dict[Any, Any] = {n: v for n, v in weights.items() if type(v) is not StoredTensor}
        if inside:
            rest = {place: rest} if rest else {}
            rest |= {n: v for n, v in entries.items() if n != place}
        attached = _mapping(rest.pop(ATTACHMENTS, {}))
        skipped = tuple(name for name in _TRAINING if name in rest)
        return contents(
            self.source.path,
            "torch",
            tensors={
                self.tensor_name(name): self.place(name, value)
                for name, value in weights.items()
                if type(value) is StoredTensor
            },
            attachments=self.attachments(attached),
            extras={
                self.plain_key(name): self.plain(value, str(name))
                for name, value in rest.items()
                if name not in skipped
            },
            skipped=skipped,
        )

    def weights(self, entries: dict[Any, Any]) -> tuple[str, dict[Any, Any]]:
        """Return the name and the value of the mapping that holds the weights."""
        mappings = {
            name: mapping
            for name, value in entries.items()
            if name not in (*_TRAINING, ATTACHMENTS) and (mapping := _mapping(value)) is not None
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

    def attachments(self, entries: dict[Any, Any] | None) -> dict[str, Placement]:
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
        record_name = f"{self.folder}/data/{storage.key}"
        record = self.records.get(record_name)
        if record is None or record.size < nbytes:
            there = "absent" if record is None else f"{record.size} bytes long"
            raise CheckpointError(
                f"{self.source.path}: tensor {name!r} is truncated: its record {record_name} is "
                f"{there}, and {nbytes} bytes "
                "were expected. Copy the file again or take the checkpoint before it."
            )
        if elements * itemsize > nbytes:
            raise CheckpointError(
                f"{self.source.path}: tensor {name!r} is damaged: {dtype} {list(shape)} reaches "
                f"byte {elements * itemsize} of a storage of {nbytes}."
            )
        return Placement(TensorInfo(shape, dtype), stride, offset, record.position, nbytes)

    def plain_key(self, key: Any) -> Any:
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


def _mapping(value: Any) -> dict[Any, Any] | None:
    """Return the dict that ``value`` is, or is a foreign subclass of."""
    if type(value) is Foreign:
        value = value.items
    return value if type(value) is dict else None


def _holds_tensors(mapping: dict[Any, Any]) -> bool:
    return any(type(value) is StoredTensor for value in mapping.values())


def _extent(shape: Any, stride: Any, offset: Any) -> int | None:
    """Return how many elements a view needs its storage to have, or None if it is malformed."""
    if type(shape) is not tuple or type(stride) is not tuple or type(offset) is not int:
        return None
    if len(shape) != len(stride) or len(shape) > _MAX_RANK or not 0 <= offset < _MAX_SIZE:
        return None
    last, empty = offset, False
    for length, step in zip(shape, stride, strict=True):
        if type(length) is not int or type(step) is not int:
            return None
        if not 0 <= length < _MAX_SIZE or not 0 <= step < _MAX_SIZE:
            return None
        empty |= length == 0
        last += (length - 1) * step
    return 0 if empty else last + 1


def _kind(value: Any) -> str:
    if type(value) in (Foreign, Global):
        return f"an object of {value.name}"
    return {StoredTensor: "a single tensor"}.get(type(value), f"a {type(value).__name__}")
