"""Opens checkpoint files of every supported container.

``read_header`` tells names, shapes, dtypes and embedded metadata from a few hundred kilobytes,
whatever the size of the file, without torch and without running anything that the file contains.
``load_tensors`` maps the weights into memory. ``read_attachments`` returns the embedded files.

The container is told by the file's first bytes, never by its suffix. Supported are archives of
``torch.save`` and Lightning (:mod:`.torchzip`), safetensors files (:mod:`.safetensors`), and
indexes of shards in either format (:mod:`.sharded`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from panovlm.checkpoint.formats import legacytorch, safetensors, sharded, torchzip, ziparchive
from panovlm.checkpoint.formats.header import ATTACHMENTS, Contents, Header, TensorInfo
from panovlm.checkpoint.formats.lookalike import describe_file
from panovlm.checkpoint.formats.source import Source
from panovlm.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ATTACHMENTS",
    "Header",
    "TensorInfo",
    "load_tensors",
    "read_attachments",
    "read_header",
]

_MAX_ATTACHMENTS = 512 << 20


class _Reader(Protocol):
    """What the module of a container offers."""

    def read(self, source: Source) -> Contents:
        """Describe the file."""
        ...

    def data_start(self, source: Source, position: int) -> int:
        """Return the first byte of the storage whose record is at ``position``."""
        ...


def read_header(path: str | Path) -> Header:
    """Describe a checkpoint without reading its tensors.

    Args:
        path: a checkpoint file, or the ``*.index.json`` of a sharded one.

    Returns:
        Names, shapes, dtypes and everything else that the file says about itself.

    Raises:
        CheckpointError: the path holds no checkpoint (the message says what it holds instead),
            or one that is truncated, damaged or ambiguous.
    """
    path = Path(path)
    with Source(path) as source:
        if not _is_index(source):
            return _reader(source).read(source).header
        index = sharded.read_index(source)
    return sharded.merge_headers(index, [_read_shard(shard) for shard in index.shards])


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Map the weights of a checkpoint into memory.

    Pages are read from the disk when they are touched, and writing to a tensor never changes the
    file. The file must not be overwritten in place while its tensors live; replacing it by
    renaming, as :mod:`panovlm.checkpoint.atomic` does, is safe.

    Args:
        path: as for :func:`read_header`.

    Returns:
        CPU tensors without gradient, under the names of ``read_header(path).tensors``. Tied
        weights share their memory.

    Raises:
        CheckpointError: as :func:`read_header`.
    """
    from panovlm.checkpoint.formats.binding import bind

    tensors: dict[str, Tensor] = {}
    for file in _files(Path(path)):
        with Source(file) as source:
            reader = _reader(source)
            tensors |= bind(source, reader.read(source).tensors, reader.data_start)
    return tensors


def read_attachments(path: str | Path) -> dict[str, bytes]:
    """Return the files embedded in a checkpoint (the tokenizer), by relative name.

    No torch is needed. The result is empty for a checkpoint without attachments.

    Args:
        path: as for :func:`read_header`.

    Raises:
        CheckpointError: as :func:`read_header`, or the files exceed 512 MiB together.
    """
    files: dict[str, bytes] = {}
    total = 0
    for file in _files(Path(path)):
        with Source(file) as source:
            reader = _reader(source)
            for name, placed in reader.read(source).attachments.items():
                length = placed.info.shape[0]
                total += length
                if total > _MAX_ATTACHMENTS:
                    raise CheckpointError(
                        f"{file}: the attachments exceed {_MAX_ATTACHMENTS} bytes."
                    )
                start = reader.data_start(source, placed.record) + placed.offset
                files[name] = source.read(start, length)
    return files


def _files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold tensors: ``path``, or the shards that it lists, checked."""
    with Source(path) as source:
        if not _is_index(source):
            return (path,)
        index = sharded.read_index(source)
    sharded.merge_headers(index, [_read_shard(shard) for shard in index.shards])
    return index.shards


def _read_shard(path: Path) -> Header:
    with Source(path) as source:
        return _reader(source).read(source).header


def _is_index(source: Source) -> bool:
    head = source.read(0, min(512, source.size))
    return not _is_safetensors(head) and head.lstrip()[:1] == b"{"


def _is_safetensors(head: bytes) -> bool:
    # The first tensor's name opens the JSON header; a JSON text has other bytes before.
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and (length <= safetensors.MAX_HEADER or head[:1] != b"{")


def _reader(source: Source) -> _Reader:
    """Choose the reader by the file's first bytes."""
    head = source.read(0, min(512, source.size))
    if head.startswith(ziparchive.MAGIC):
        return torchzip
    if _is_safetensors(head):
        return safetensors
    if legacytorch.is_legacy(head):
        return legacytorch
    raise CheckpointError(f"{source.path} is {describe_file(head)}")
