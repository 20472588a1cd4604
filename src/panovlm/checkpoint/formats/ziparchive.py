"""Reads the table of contents of a zip archive, as ``torch.save`` writes it.

Only the end of the file is read: the end record, its 64-bit form and the central directory
(PKWARE APPNOTE, sections 4.3.12 to 4.3.16), so the cost follows the number of records and not
their size. :mod:`zipfile` reads the same table but several times slower, and accepts
contradictions (two records of one name, records beyond the end) that here mean a damaged or
forged checkpoint.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from panovlm.checkpoint.formats.source import Source
from panovlm.errors import CheckpointError

MAGIC = b"PK\x03\x04"

_MAX_DIRECTORY = 128 << 20
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s4xHH4x3L3H4x4xL")
_LOCAL = struct.Struct("<4s2xH18xHH")
_IN_64 = 0xFFFFFFFF


class Record(NamedTuple):
    """One file of the archive.

    Attributes:
        position: where its local header starts.
        size: its length in bytes.
        packed: its length in the archive, shorter where it is compressed.
        crc: CRC-32 of its bytes; 0 where the writer left it out.
        stored: whether its bytes lie there as they are, neither compressed nor encrypted.
    """

    position: int
    size: int
    packed: int
    crc: int
    stored: bool


class _Directory(NamedTuple):
    position: int
    size: int
    entries: int


def read_records(source: Source) -> dict[str, Record]:
    """Return the records of the archive by name.

    Raises:
        CheckpointError: the archive is truncated or damaged.
    """
    directory = _find_directory(source)
    data = source.read(directory.position, directory.size)
    try:
        records = _parse(source, directory, data)
    except (struct.error, UnicodeDecodeError) as error:
        raise _damaged(source, f"its table of contents is unreadable ({error})") from error
    if len(records) != directory.entries:
        raise _damaged(
            source, f"it lists {len(records)} different records, not {directory.entries} as it says"
        )
    _check_apart(source, records)
    return records


def data_start(source: Source, position: int) -> int:
    """Return where the bytes of the record begin whose local header is at ``position``.

    Raises:
        CheckpointError: there is no local header.
    """
    magic, flags, name_length, extra_length = _LOCAL.unpack(source.read(position, _LOCAL.size))
    if magic != MAGIC or flags & 1:
        raise _damaged(source, f"no record starts at byte {position}")
    return position + _LOCAL.size + name_length + extra_length


def _find_directory(source: Source) -> _Directory:
    """Locate the central directory through the end record, in its 64-bit form where present."""
    # torch writes no archive comment, so the first, short look is enough for its files.
    for length in (1024, _END.size + 0xFFFF + 1024):
        start = max(0, source.size - length)
        tail = source.read(start, source.size - start)
        at = tail.rfind(b"PK\x05\x06")
        if at >= 0 and len(tail) - at >= _END.size:
            return _read_end(source, tail, start, at)
    raise CheckpointError(
        f"{source.path} is truncated: it is a torch zip archive, but its table of contents, which "
        f"is written last, is missing after the {source.size} bytes that are there. The save or "
        "the copy did not finish; copy it again or take the checkpoint before it."
    )


def _read_end(source: Source, tail: bytes, start: int, at: int) -> _Directory:
    _, _, _, _, entries, size, position, _ = _END.unpack_from(tail, at)
    found = _Directory(position, size, entries)
    end = start + at
    if at >= _LOCATOR_64.size:
        magic, _, position_64, _ = _LOCATOR_64.unpack_from(tail, at - _LOCATOR_64.size)
        if magic == b"PK\x06\x07":
            fields = _END_64.unpack(source.read(position_64, _END_64.size))
            if fields[0] != b"PK\x06\x06":
                raise _damaged(source, "the 64-bit end record is not where the locator points")
            found = _Directory(position=fields[9], size=fields[8], entries=fields[7])
            end = position_64
    if found.position + found.size != end or found.size > _MAX_DIRECTORY:
        raise _damaged(
            source,
            f"its table of contents should be {found.size} bytes at byte {found.position} and "
            f"end at byte {end}, so bytes are missing or added in between",
        )
    return found


def _parse(source: Source, directory: _Directory, data: bytes) -> dict[str, Record]:
    records: dict[str, Record] = {}
    at, unpack, limit = 0, _ENTRY.unpack_from, directory.position
    while at < len(data):
        magic, flags, method, crc, packed, size, name_len, extra_len, note_len, position = unpack(
            data, at
        )
        names_at = at + _ENTRY.size
        extras_at = names_at + name_len
        at = extras_at + extra_len + note_len
        if magic != b"PK\x01\x02" or at > len(data):
            raise _damaged(source, "its table of contents is cut or overwritten")
        name = str(data[names_at:extras_at], "utf-8")
        if _IN_64 in (packed, size, position):
            extra = data[extras_at : extras_at + extra_len]
            size, packed, position = _wide(extra, size, packed, position)
        stored = not method and not flags & 1
        if (stored and packed != size) or position + _LOCAL.size + packed > limit:
            raise _damaged(source, f"record {name!r} ({size} bytes) does not fit into the file")
        records[name] = Record(position, size, packed, crc, stored)
    return records


def _check_apart(source: Source, records: dict[str, Record]) -> None:
    """Refuse records that share bytes: a few could stand for any number of tensors."""
    end, before = 0, ""
    for name, record in sorted(records.items(), key=lambda item: item[1].position):
        if record.position < end:
            raise _damaged(source, f"its records {before!r} and {name!r} share bytes")
        end, before = record.position + _LOCAL.size + record.packed, name


def _wide(extra: bytes, size: int, packed: int, position: int) -> tuple[int, int, int]:
    """Replace the fields that need 64 bits by those of the zip64 extra field."""
    at = 0
    while at < len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            fields = [next(values, f) if f == _IN_64 else f for f in (size, packed, position)]
            return fields[0], fields[1], fields[2]
        at += 4 + length
    return size, packed, position


def _damaged(source: Source, what: str) -> CheckpointError:
    return CheckpointError(
        f"{source.path} is damaged: {what}. Copy it again or take the checkpoint before it."
    )
