"""Describes a file of ``torch.save`` or Lightning: a zip archive holding a pickle and storages.

``<archive>/data.pkl`` describes the saved object; ``<archive>/data/<key>`` hold the bytes of its
storages, uncompressed. Only the table of contents and the pickle are read, and the pickle is
followed by :mod:`~panovlm.checkpoint.formats.inert`, which runs nothing. What the saved object
means is told by :mod:`~panovlm.checkpoint.formats.saved`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from panovlm.checkpoint.formats.header import Contents
from panovlm.checkpoint.formats.inert import unpickle
from panovlm.checkpoint.formats.saved import SavedObject
from panovlm.checkpoint.formats.source import Source
from panovlm.checkpoint.formats.ziparchive import Record, data_start, read_records
from panovlm.errors import CheckpointError

__all__ = ["data_start", "open_archive", "read"]

# A pickle of 32 MiB describes some 200,000 tensors. Larger ones are refused because a hostile one
# can make the reader take forty times its size.
MAX_PICKLE = 32 << 20
"""Longest description that is followed, in bytes."""


def read(source: Source) -> Contents:
    """Describe the torch archive ``source``.

    Raises:
        CheckpointError: the archive is truncated or damaged, a tensor's bytes are absent, the
            file was written on a big-endian machine, or its weights cannot be told apart.
    """
    return open_archive(source).contents()


def open_archive(source: Source) -> SavedObject:
    """Return the object that the torch archive ``source`` holds.

    Raises:
        CheckpointError: the archive is truncated or damaged, or was written on a big-endian
            machine.
    """
    records = read_records(source)
    folder = _archive_folder(source, records)
    _require_stored(source, records)
    pickled = records[f"{folder}/data.pkl"]
    if pickled.size > MAX_PICKLE:
        raise CheckpointError(
            f"{source.path}: the description {folder}/data.pkl has {pickled.size} bytes; more than "
            f"{MAX_PICKLE} are not read. Save the state dict alone, without the other entries."
        )
    if _record_bytes(source, records, f"{folder}/byteorder", b"little") != b"little":
        raise CheckpointError(
            f"{source.path} was written on a big-endian machine. Convert it there to safetensors, "
            "which is little-endian everywhere."
        )
    data = _record_bytes(source, records, f"{folder}/data.pkl", b"")
    saved = unpickle(data, f"{source.path} ({folder}/data.pkl)")
    start = f"{folder}/data/"
    storages = {n[len(start) :]: record for n, record in records.items() if n.startswith(start)}
    return SavedObject(source, saved, storages)


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
