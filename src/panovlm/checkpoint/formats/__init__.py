"""Opens checkpoint files of every supported container.

``read_header`` tells names, shapes, dtypes and embedded metadata from a few hundred kilobytes,
whatever the size of the file, without torch and without running anything that the file contains.
``load_tensors`` maps the weights into memory. ``read_attachments`` returns the embedded files.

The container is told by the file's first bytes, never by its suffix. Supported are archives of
``torch.save`` and Lightning (:mod:`.torchzip`), what torch wrote before version 1.6
(:mod:`.legacytorch`), safetensors files (:mod:`.safetensors`), and indexes of shards in these
formats (:mod:`.sharded`).

A checkpoint may also be a folder, told by the files in it: a distributed checkpoint of torch, such
as FSDP and Lightning write (:mod:`.dcp`), or one of DeepSpeed (:mod:`.deepspeed`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from panovlm.checkpoint.formats import (
    legacytorch,
    safetensors,
    sharded,
    torchzip,
    ziparchive,
)
from panovlm.checkpoint.formats.dcpfiles import is_dcp
from panovlm.checkpoint.formats.header import (
    ATTACHMENTS,
    ITEMSIZE,
    Contents,
    Header,
    TensorInfo,
    record_bytes,
    record_names,
)
from panovlm.checkpoint.formats.lookalike import describe_file
from panovlm.checkpoint.formats.source import Source
from panovlm.checkpoint.formats.split import FolderReader, read_bytes
from panovlm.checkpoint.formats.zerofiles import is_deepspeed
from panovlm.checkpoint.names.averages import Weights, choose
from panovlm.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ATTACHMENTS",
    "Header",
    "TensorInfo",
    "fault_of",
    "is_checkpoint_folder",
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


def is_checkpoint_folder(path: Path) -> bool:
    """Tell whether ``path`` is a folder that is one checkpoint as a whole."""
    return _folder_reader(path) is not None


def read_header(path: str | Path, weights: Weights | None = None) -> Header:
    """Describe a checkpoint without reading its tensors.

    Args:
        path: a checkpoint file, the ``*.index.json`` of a sharded one, or a folder that is one
            checkpoint.
        weights: which entry is meant where a checkpoint has the live weights in one and their
            running average in another.

    Returns:
        Names, shapes, dtypes and everything else that the file says about itself.

    Raises:
        CheckpointError: the path holds no checkpoint (the message says what it holds instead),
            or one that is truncated, damaged or ambiguous.
    """
    header = _read_header(Path(path), weights)
    try:
        "".join(header.tensors).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"{path} is damaged: the name of a tensor is no text ({error.object[error.start]!r}). "
            "Copy it again or take the checkpoint before it."
        ) from error
    return header


def _read_header(path: Path, weights: Weights | None) -> Header:
    if folder := _folder_reader(path):
        return folder.read(path, weights)
    with Source(path) as source:
        if not _is_index(source):
            found = _contents(source, weights)
            names = record_names(found.header.tensors)
            return replace(found.header, records=_records(source, found, names), contents=found)
        index = sharded.read_index(source)
    headers = [_read_shard(shard) for shard in index.shards]
    merged = sharded.merge_headers(index, headers)
    records: dict[str, bytes] = {}
    for name in record_names(merged.tensors):
        shard = next(header.path for header in headers if name in header.tensors)
        with Source(shard) as source:
            records |= _records(source, _reader(source).read(source), [name])
    return replace(merged, records=records)


def _records(source: Source, found: Contents, names: Iterable[str]) -> dict[str, bytes]:
    """Read the few bytes in which models keep their settings."""
    placed = {name: found.tensors[name] for name in names}
    records: dict[str, bytes] = {}
    for name, place in placed.items():
        if place.stride == (1,):
            size = ITEMSIZE[place.info.dtype]
            start = _reader(source).data_start(source, place.record) + place.offset * size
            data = source.read(start, place.info.shape[0] * size)
            records[name] = record_bytes(data, place.info.dtype)
    return records


def fault_of(path: str | Path) -> str | None:
    """Say why a path is no complete checkpoint, or return ``None``: it is one.

    Its headers are read; which of two copies of the weights is meant does not matter.
    """
    path = Path(path)
    if folder := _folder_reader(path):
        return _fault_of_folder(folder, path)
    try:
        with Source(path) as source:
            if _is_index(source):
                sharded.read_index(source)
            else:
                _reader(source).read(source)
    except CheckpointError as error:
        return str(error)
    return None


def _fault_of_folder(reader: FolderReader, path: Path) -> str | None:
    fault = None
    meant: tuple[Weights, ...] = ("model", "ema")
    for weights in meant:
        try:
            reader.read(path, weights)
        except CheckpointError as error:
            fault = str(error)
        else:
            return None
    return fault


def load_tensors(
    path: str | Path, weights: Weights | None = None, header: Header | None = None
) -> dict[str, Tensor]:
    """Map the weights of a checkpoint into memory.

    A tensor that is split over several places of a folder is put together in memory. For all
    others, pages are read from the disk when they are touched, and writing to a tensor never
    changes the file. The file must not be overwritten in place while its tensors live; replacing
    it by renaming, as :mod:`panovlm.atomic` does, is safe.

    Args:
        path: as for :func:`read_header`.
        weights: likewise.
        header: what :func:`read_header` told of it for the same ``weights``; it is not read again
            unless the file was touched since, and then it must say the same.

    Returns:
        CPU tensors without gradient, under the names of ``read_header(path).tensors``. Tied
        weights share their memory.

    Raises:
        CheckpointError: as :func:`read_header`, or the file is not that of ``header`` any more.
    """
    from panovlm.checkpoint.formats.binding import bind, gather

    path = Path(path)
    if folder := _folder_reader(path):
        return gather(path, folder.tensors(path, weights))
    tensors: dict[str, Tensor] = {}
    for file in _files(path):
        with Source(file) as source:
            placed = _contents(source, weights, header).tensors
            tensors |= bind(source, placed, _reader(source).data_start)
    return tensors


def read_attachments(
    path: str | Path, weights: Weights | None = None, header: Header | None = None
) -> dict[str, bytes]:
    """Return the files embedded in a checkpoint (the tokenizer), by relative name.

    No torch is needed. The result is empty for a checkpoint without attachments.

    Args:
        path: as for :func:`read_header`.
        weights: likewise.
        header: as for :func:`load_tensors`.

    Raises:
        CheckpointError: as :func:`load_tensors`, or the files exceed 512 MiB together.
    """
    path = Path(path)
    if folder := _folder_reader(path):
        split = folder.attachments(path, weights)
        _check_total(path, sum(tensor.info.shape[0] for tensor in split.values()))
        return {name: read_bytes(tensor) for name, tensor in split.items()}
    files: dict[str, bytes] = {}
    total = 0
    for file in _files(path):
        with Source(file) as source:
            reader = _reader(source)
            found = _contents(source, weights, header).attachments
            total += sum(placed.info.shape[0] for placed in found.values())
            _check_total(path, total)
            for name, placed in found.items():
                start = reader.data_start(source, placed.record) + placed.offset
                files[name] = source.read(start, placed.info.shape[0])
    return files


def _check_total(path: Path, total: int) -> None:
    if total > _MAX_ATTACHMENTS:
        raise CheckpointError(f"{path}: the attachments exceed {_MAX_ATTACHMENTS} bytes.")


def _folder_reader(path: Path) -> FolderReader | None:
    """Choose the reader of a folder, if it is a checkpoint as a whole."""
    try:
        if not path.is_dir():
            return None
        found_dcp = is_dcp(path)
        found_deepspeed = not found_dcp and is_deepspeed(path)
    except (OSError, ValueError):
        return None  # the reader of a file says what is wrong with the path
    # Most checkpoints are files: the readers of folders are imported when one is met.
    if found_dcp:
        from panovlm.checkpoint.formats import dcp

        return dcp
    if found_deepspeed:
        from panovlm.checkpoint.formats import deepspeed

        return deepspeed
    return None


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


def _contents(source: Source, weights: Weights | None, header: Header | None = None) -> Contents:
    """Describe one file, or that copy of its weights which is meant.

    What ``header`` tells of the file is believed while the file is the same.

    Raises:
        CheckpointError: it is another file than the one that ``header`` tells of.
    """
    state = source.state()
    known = header.contents if header is not None else None
    if known is not None and known.state == state:
        return known
    found = replace(_meant(_reader(source).read(source), weights, source.path), state=state)
    # A new link or a touch changes the state, too.
    if known is not None and found.header != known.header:
        raise CheckpointError(
            f"{source.path} was replaced by another checkpoint while it was being loaded. "
            "Load it again, once whatever writes it is done."
        )
    return found


def _meant(found: Contents, weights: Weights | None, path: Path) -> Contents:
    """Choose between the live weights of a file and their running average."""
    average = found if found.header.averaged else found.average
    if average is None:
        return found
    live = "" if average is found else repr(found.header.entry)
    meant = choose(weights, live, repr(average.header.entry), str(path))
    return average if meant == "ema" else found


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
