"""What a reader knows about a checkpoint file before it has read any tensor.

A reader yields a :class:`Contents`: the public :class:`Header` (names, shapes, dtypes, embedded
metadata) and, for each tensor, the :class:`Placement` of its bytes in the file. No torch is
needed here: dtypes are names, as torch spells them without ``torch.``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

if TYPE_CHECKING:
    from panovlm.checkpoint.formats.source import FileState

ATTACHMENTS = "panovlm_tokenizer"
"""Entry that holds the tokenizer's files as uint8 tensors: a dict of that name in a torch file,
tensors named ``panovlm_tokenizer/<file>`` in a safetensors file."""

RECORD = "recipe_bytes"
"""Name of the buffer in which a model keeps its settings among its weights."""
MAX_RECORD = 1 << 20
"""Longest such buffer that is read, in bytes."""

_RECORD_CODES: Mapping[str, str] = {"uint8": "B", "float16": "e", "bfloat16": "f", "float32": "f"}
"""Types in which such a buffer is read, and their codes in :mod:`struct`: who converts a whole
state dict converts it too, and each of these holds every byte exactly."""
_MAX_RECORDS = 8  # a file holds one for each copy of its weights
_MAX_RANK = 64
_MAX_SIZE = 1 << 63

ITEMSIZE: Mapping[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
}
"""Bytes per element of every dtype that can be read."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor, such as ``TensorInfo((768, 3, 16, 16), "bfloat16")``."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Header:
    """Everything that a checkpoint file says without its tensors' values.

    Attributes:
        path: the file or folder that was read.
        container: ``"torch"`` (file of ``torch.save`` or Lightning), ``"safetensors"``,
            ``"sharded"`` (an index and the files it names), ``"dcp"`` (folder of torch's
            distributed checkpoints) or ``"deepspeed"`` (folder of DeepSpeed).
        tensors: the weights, in file order. Tied weights are listed under each of their names.
        extras: what else the file holds, as plain Python: dict, list, tuple, str, int, float,
            bool and None. A tensor is shown by its :class:`TensorInfo`; an object of any other
            class by the text ``"<module.Class>"``.
        attachments: embedded files (the tokenizer), by relative name; see ``read_attachments``.
        skipped: top-level entries that belong to a training run and are not in ``extras``:
            optimizer states, schedulers, callbacks, loops.
        entry: the part of the file that holds these weights; empty where it has but one.
        averaged: whether that part holds a running average of the weights.
        records: bytes of the small tensors in which models keep their settings, by name (their
            last part is :data:`RECORD`).
        contents: where everything lies, if that is one file.
    """

    path: Path
    container: str
    tensors: Mapping[str, TensorInfo]
    extras: Mapping[str, Any]
    attachments: Mapping[str, TensorInfo] = field(default_factory=dict[str, TensorInfo])
    skipped: tuple[str, ...] = ()
    entry: str = ""
    averaged: bool = False
    records: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    contents: Contents | None = field(default=None, repr=False, compare=False)


class Placement(NamedTuple):
    """Where the bytes of one tensor lie. Tensors of equal ``record`` share their memory.

    Attributes:
        info: shape and dtype.
        stride: elements from one entry to the next, per axis.
        offset: first element, counted from the start of the storage.
        record: position in the file of what holds the storage; the reader's ``data_start`` turns
            it into the position of the storage's first byte.
        nbytes: length of the storage.
    """

    info: TensorInfo
    stride: tuple[int, ...]
    offset: int
    record: int
    nbytes: int


@dataclass(frozen=True)
class Contents:
    """A header together with the place of every tensor in the file.

    ``average`` describes the running average of the weights that the file holds besides.
    ``state`` tells the file from any other, and from itself after a change.
    """

    header: Header
    tensors: Mapping[str, Placement]
    attachments: Mapping[str, Placement]
    average: Contents | None = None
    state: FileState | None = None


def contents(
    path: Path,
    container: str,
    *,
    tensors: Mapping[str, Placement],
    attachments: Mapping[str, Placement],
    extras: Mapping[str, Any],
    skipped: tuple[str, ...] = (),
    entry: str = "",
) -> Contents:
    """Assemble a :class:`Contents`, taking the header's shapes from the placements."""
    header = Header(
        path=path,
        container=container,
        tensors={name: placed.info for name, placed in tensors.items()},
        extras=extras,
        attachments={name: placed.info for name, placed in attachments.items()},
        skipped=skipped,
        entry=entry,
    )
    return Contents(header, tensors, attachments)


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the row-major strides of ``shape``, in elements."""
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def is_shape(value: Any) -> TypeGuard[tuple[int, ...]]:
    """Tell whether ``value`` is a shape that a tensor can have, as a tuple."""
    if type(value) is not tuple or len(value) > _MAX_RANK:
        return False
    places = 1
    for length in value:
        if type(length) is not int or not 0 <= length < _MAX_SIZE:
            return False
        places *= length or 1
    return places < _MAX_SIZE


def record_names(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return the tensors that can be read as records: few, and a row of a few bytes each."""
    found = [
        name
        for name, info in tensors.items()
        if name.rpartition(".")[2] == RECORD
        and info.dtype in _RECORD_CODES
        and len(info.shape) == 1
        and info.shape[0] <= MAX_RECORD
    ]
    return found[:_MAX_RECORDS]


def record_bytes(data: bytes, dtype: str) -> bytes:
    """Return the bytes of a record, of whatever type its tensor is.

    Nothing is returned where a number is no byte; a record is never empty.
    """
    if dtype == "bfloat16":  # the upper half of a float32
        data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
    numbers = [number for (number,) in struct.iter_unpack(f"<{_RECORD_CODES[dtype]}", data)]
    whole = all(0 <= number < 256 and number == int(number) for number in numbers)
    return bytes(map(int, numbers)) if whole else b""


def attachment_fault(name: str, placed: Placement) -> str:
    """Say why an attachment cannot be used, or return an empty text.

    An attachment may later be written below a folder under its name, so a name that could lead
    out of that folder is refused here, at the border.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(c in name for c in "\\:\0"):
        return "its name is no relative file name"
    dense = placed.stride == (1,) or placed.info.shape == (0,)
    if placed.info.dtype != "uint8" or len(placed.info.shape) != 1 or not dense:
        return (
            f"it is {placed.info.dtype} {list(placed.info.shape)}; bytes are kept as a "
            "one-dimensional uint8 tensor"
        )
    return ""
