r"""WebDataset shards: tar files of pictures, each beside the JSON of its conversation.

Members whose names agree up to the first dot of the last part belong together and follow one
another, as WebDataset has it: ``0001.jpg`` and ``0001.json`` are one row. The JSON is an object as
in a table of conversations (:mod:`~panovlm.data.conversations`) or with the columns of a CSV table;
the picture it is about is the member, whatever file it names.

A shard is not unpacked: its headers are read once, and each picture from its place in the file when
it is needed. So any order costs the same, and a run that is continued reads nothing twice.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from panovlm.data.conversations import parsed
from panovlm.data.objects import object_row
from panovlm.data.rows import Row, Rows
from panovlm.data.windows import file_window
from panovlm.errors import DataError

PICTURES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
"""Endings of members that are pictures."""

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Endings of shards that would have to be unpacked from their beginning for every picture."""


@dataclass(frozen=True)
class Member:
    """A file inside a tar file."""

    shard: Path
    name: str
    offset: int
    """Bytes before its content."""
    size: int

    def open(self) -> BinaryIO:
        """Open it for reading and seeking."""
        return file_window(self.shard, self.offset, self.size)

    def __str__(self) -> str:
        """Return its place, such as ``train-000000.tar/0001.jpg``."""
        return f"{self.shard}/{self.name}"


def shard_rows(file: Path) -> Rows:
    """Read the rows of a shard, without its pictures.

    Yields:
        Rows, and errors in place of those that cannot be used.

    Raises:
        DataError: it is no tar file, is packed or damaged, or holds members that are no files or
            lead out of it.
    """
    members = _members(file)
    if not members:
        raise DataError(f"{file} has no members; expected pictures and JSON")
    told: set[str] = set()
    with file.open("rb") as stream:
        for key, group in groupby(members, key=lambda member: _key(member.name)):
            row = _row(stream, f"{file}/{key}", list(group))
            if key in told:
                row = DataError(
                    f"{file}/{key}: its members stand in two places; members of one row must "
                    "follow one another, and no two rows may have one name"
                )
            told.add(key)
            yield row


def _row(stream: BinaryIO, source: str, group: Sequence[Member]) -> Row | DataError:
    names = ", ".join(member.name for member in group)
    pictures = [member for member in group if _ending(member.name) in PICTURES]
    texts = [member for member in group if _ending(member.name) == "json"]
    if len(pictures) != 1 or len(texts) != 1:
        return DataError(
            f"{source}: expected one picture ({', '.join(PICTURES)}) and one .json, found {names}"
        )
    stream.seek(texts[0].offset)
    content = stream.read(texts[0].size)
    try:
        value = parsed(source, content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return DataError(f"{texts[0]}: no UTF-8 text ({error})")
    return value if isinstance(value, DataError) else object_row(source, value, pictures[0])


def _members(file: Path) -> list[Member]:
    """Return the files in a tar file, in their order."""
    if file.name.lower().endswith(PACKED):
        raise DataError(
            f"{file} is compressed, so that no picture in it can be read alone; unpack it to a "
            ".tar (pictures are compressed themselves)"
        )
    if not file.is_file():
        raise DataError(f"table {file} does not exist")
    try:
        with tarfile.open(file, "r:") as archive:
            found = [_member(file, info) for info in archive if not info.isdir()]
            end = archive.offset
    except (tarfile.TarError, OSError, UnicodeError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a tar file: {error}") from error
    _check_end(file, end)
    return found


def _member(file: Path, info: tarfile.TarInfo) -> Member:
    if not info.isreg() or info.issparse():
        raise DataError(
            f"{file}: member {info.name!r} is no plain file (a link, a device or a sparse file); "
            "write the shard anew with plain files"
        )
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{file}: member {info.name!r} leads out of the shard; rename it")
    return Member(file, info.name, info.offset_data, info.size)


def _check_end(file: Path, end: int) -> None:
    """Refuse a file that does not end as tar files do: Python's reader stops without a word.

    Args:
        file: the tar file.
        end: where the reader stopped.
    """
    with file.open("rb") as stream:
        stream.seek(end)
        blocks = [stream.read(tarfile.BLOCKSIZE)]
        while block := stream.read(1 << 20):
            blocks.append(block)
            if any(block):
                break
    if any(blocks[-1]) or len(blocks[0]) < tarfile.BLOCKSIZE:
        cut = len(blocks) == 1
        raise DataError(
            f"{file} is cut off or damaged at byte {end}: a tar file ends with empty blocks"
            if cut
            else f"{file} goes on behind the end of the archive at byte {end}; it is damaged, or "
            "several shards were joined: name them one by one"
        )


def _key(name: str) -> str:
    """Return what members of one row have in common."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _ending(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()
