"""Describes a ``.safetensors`` file: eight bytes of length, a JSON header, the tensors' bytes.

The checks are those of the format's reference implementation: the tensors cover the rest of the
file exactly, without holes or overlaps, and each is as long as its shape and dtype say.
"""

from __future__ import annotations

from math import prod
from typing import Any

from panovlm.checkpoint.formats.header import (
    ATTACHMENTS,
    ITEMSIZE,
    Contents,
    Placement,
    TensorInfo,
    attachment_fault,
    contents,
    contiguous_stride,
    is_shape,
)
from panovlm.checkpoint.formats.jsontext import parse_object
from panovlm.checkpoint.formats.source import Source
from panovlm.errors import CheckpointError

MAX_HEADER = 100_000_000
"""Longest header in bytes; the reference implementation's limit."""

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


def read(source: Source) -> Contents:
    """Describe the safetensors file ``source``.

    Raises:
        CheckpointError: the file is truncated or damaged, or uses a dtype that is not supported.
    """
    length = int.from_bytes(source.read(0, 8), "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{source.path} is damaged: it declares a header of {length} bytes; at most "
            f"{MAX_HEADER} are allowed. Copy it again or take the checkpoint before it."
        )
    origin = f"{source.path} (safetensors header)"
    entries = parse_object(source.read(8, length), origin)
    extras = entries.pop("__metadata__", {})
    if not isinstance(extras, dict) or any(not isinstance(v, str) for v in extras.values()):
        raise CheckpointError(f"{origin} is damaged: __metadata__ does not map texts to texts.")
    placed = {name: _place(name, entry, 8 + length, origin) for name, entry in entries.items()}
    _check_cover(source, placed, 8 + length)
    start = f"{ATTACHMENTS}/"
    attachments = {n[len(start) :]: p for n, p in placed.items() if n.startswith(start)}
    for name, placement in attachments.items():
        if fault := attachment_fault(name, placement):
            raise CheckpointError(f"{source.path}: attachment {name!r}: {fault}.")
    tensors = {n: p for n, p in placed.items() if not n.startswith(start)}
    return contents(
        source.path, "safetensors", tensors=tensors, attachments=attachments, extras=extras
    )


def data_start(source: Source, position: int) -> int:
    """Return ``position``: a placement of this format gives the bytes themselves."""
    return position


def _place(name: str, entry: Any, data_start: int, origin: str) -> Placement:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{origin} is damaged: {name!r} lacks dtype, shape or data_offsets.")
    dtype = _DTYPES.get(str(entry["dtype"]))
    if dtype is None:
        raise CheckpointError(
            f"{origin}: tensor {name!r} has the dtype {entry['dtype']!r}, which is not supported. "
            f"Supported are {', '.join(_DTYPES)}."
        )
    if not _whole(entry["shape"]) or not _whole(entry["data_offsets"]):
        raise CheckpointError(f"{origin} is damaged: {name!r} has sizes that are no numbers.")
    shape, offsets = tuple(entry["shape"]), entry["data_offsets"]
    expected = prod(shape) * ITEMSIZE[dtype]
    if len(offsets) != 2 or offsets[1] - offsets[0] != expected:
        raise CheckpointError(
            f"{origin} is damaged: {name!r} is {dtype} {list(shape)}, {expected} bytes, but its "
            f"data_offsets are {offsets}."
        )
    if not is_shape(shape):
        raise CheckpointError(f"{origin} is damaged: {name!r} has a shape that no tensor can have.")
    return Placement(
        TensorInfo(shape, dtype), contiguous_stride(shape), 0, data_start + offsets[0], expected
    )


def _check_cover(source: Source, placed: dict[str, Placement], start: int) -> None:
    """Check that the tensors follow each other without gap from ``start`` to the file's end."""
    position, before = start, "the header"
    for name, placement in sorted(placed.items(), key=lambda item: item[1].record + item[1].nbytes):
        if placement.record != position:
            raise CheckpointError(
                f"{source.path} is damaged: tensor {name!r} starts at byte {placement.record}, but "
                f"{before} ends at byte {position}."
            )
        position, before = position + placement.nbytes, f"{name!r}"
    if position > source.size:
        raise CheckpointError(
            f"{source.path} is truncated: its header describes {position} bytes and the file has "
            f"{source.size}. Copy it again or take the checkpoint before it."
        )
    if position < source.size:
        raise CheckpointError(
            f"{source.path} is damaged: {source.size - position} bytes follow the last tensor."
        )


def _whole(values: Any) -> bool:
    """Tell whether ``values`` is a list of sizes: whole numbers of at most 63 bits."""
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 1 << 63 for value in values
    )
