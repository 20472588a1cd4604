"""Describes a file of ``torch.save`` from before version 1.6, when it wrote no zip archive.

Five pickles follow each other: a magic number, the version of the format, facts about the machine,
the saved object, and the keys of its storages. After them the storages come in the order of the
keys, each its number of elements (eight bytes) and then the elements. Newer versions write the
same with ``_use_new_zipfile_serialization=False``. The pickles are followed by
:mod:`~panovlm.checkpoint.formats.inert`, which runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from panovlm.checkpoint.formats.header import ITEMSIZE, Contents
from panovlm.checkpoint.formats.inert import unpickle_first
from panovlm.checkpoint.formats.names import Storage
from panovlm.checkpoint.formats.saved import SavedObject
from panovlm.checkpoint.formats.source import Source
from panovlm.checkpoint.formats.torchzip import MAX_PICKLE
from panovlm.checkpoint.formats.ziparchive import Record
from panovlm.errors import CheckpointError

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_PICKLES = 5
_FIRST_LOOK = 1 << 18


def is_legacy(head: bytes) -> bool:
    """Tell whether a file starts with the pickled magic number, whatever the protocol."""
    return _MAGIC.to_bytes(10, "little") in head[:24]


def read(source: Source) -> Contents:
    """Describe the file ``source``.

    Raises:
        CheckpointError: the file is truncated or damaged, was written on a big-endian machine, or
            its weights cannot be told apart.
    """
    (magic, version, system, saved, keys), end, storages = _pickles(source)
    if magic != _MAGIC or version != _VERSION:
        told = version if type(version) is int else "none"
        raise _damaged(source, f"its version is {told}; {_VERSION} was expected")
    if type(system) is not dict or system.get("little_endian") is not True:
        raise CheckpointError(
            f"{source.path} was written on a big-endian machine. Convert it there to safetensors, "
            "which is little-endian everywhere."
        )
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise _damaged(source, "its storages are not named by texts")
    return SavedObject(source, saved, dict(_records(source, keys, end, storages))).contents()


def data_start(source: Source, position: int) -> int:
    """Return ``position``: a placement of this format gives the bytes themselves."""
    return position


def _pickles(source: Source) -> tuple[list[Any], int, Mapping[str, Storage]]:
    """Follow the pickles: their values, where the last one ends, and the storages they name."""
    # How long they are shows only when they end.
    length = _FIRST_LOOK
    while True:
        try:
            return _follow(source.read(0, min(length, source.size)), str(source.path))
        except CheckpointError:
            if length >= min(source.size, MAX_PICKLE):
                raise
        length = min(8 * length, MAX_PICKLE)


def _follow(data: bytes, origin: str) -> tuple[list[Any], int, Mapping[str, Storage]]:
    values: list[Any] = []
    end, storages = 0, {}
    for _ in range(_PICKLES):
        pickled = unpickle_first(data, end, origin)
        values.append(pickled.value)
        end, storages = pickled.end, {**storages, **pickled.storages}
    return values, end, storages


def _records(
    source: Source, keys: list[str], position: int, storages: Mapping[str, Storage]
) -> Iterator[tuple[str, Record]]:
    """Walk over the storages, whose lengths must be those that the pickle tells."""
    for key in keys:
        storage = storages.get(key)
        if storage is None:
            raise CheckpointError(
                f"{source.path}: nothing describes its storage {key!r}, or it holds a kind of "
                "number that is not supported (quantised?). Where you trust the file, open it with "
                "torch and save plain tensors: torch.save(STATE_DICT, NEW)."
            )
        stored = int.from_bytes(source.read(position, 8), "little", signed=True)
        if stored != storage.length or stored < 0:
            raise _damaged(
                source,
                f"storage {key!r} has {stored} elements at byte {position}; {storage.length} were "
                "expected",
            )
        size = storage.length * ITEMSIZE[storage.dtype]
        position += 8
        if position + size > source.size:
            raise CheckpointError(
                f"{source.path} is truncated: storage {key!r} ends at byte {position + size}, and "
                f"the file has {source.size}. Copy it again or take the checkpoint before it."
            )
        yield key, Record(position, size, packed=size, crc=0, stored=True)
        position += size
    if position != source.size:
        raise _damaged(source, f"{source.size - position} bytes follow its last storage")


def _damaged(source: Source, what: str) -> CheckpointError:
    return CheckpointError(
        f"{source.path} is damaged: {what}. Copy it again or take the checkpoint before it."
    )
