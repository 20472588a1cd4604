"""Reads the index of a checkpoint that is split over several files (``*.index.json``).

The index maps each tensor to the file that holds it. Only plain names of files beside the index
are followed: an index is data from elsewhere and must not lead out of its folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from panovlm.checkpoint.formats.header import ATTACHMENTS, Header, TensorInfo
from panovlm.checkpoint.formats.jsontext import parse_object
from panovlm.checkpoint.formats.source import Source, inside
from panovlm.errors import CheckpointError

_MAX_INDEX = 64 << 20


class Index(NamedTuple):
    """An index file.

    Attributes:
        path: the index file.
        shards: the files that it names, in order of their names.
        weight_map: tensor name to file name.
        metadata: what else it says, such as ``total_size``.
    """

    path: Path
    shards: tuple[Path, ...]
    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]


def read_index(source: Source) -> Index:
    """Parse an index.

    Raises:
        CheckpointError: the file is no index, or names a file outside its folder.
    """
    if source.size > _MAX_INDEX:
        raise CheckpointError(f"{source.path} has {source.size} bytes, too many for an index.")
    entries = parse_object(source.read(0, source.size), str(source.path))
    weight_map, metadata = entries.get("weight_map"), entries.get("metadata", {})
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
        raise CheckpointError(
            f"{source.path} is a JSON file without a weight_map. Expected was a checkpoint, or "
            "the *.index.json that lists the shards of one."
        )
    names = sorted(set(map(str, weight_map.values())))
    if any(not isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{source.path} is damaged: weight_map has values that are no names.")
    folder, links = source.path.parent, source.path.resolve().parent
    shards = tuple(inside(folder, n, named_by=source.path, links=links) for n in names)
    return Index(source.path, shards, weight_map, metadata)


def merge_headers(index: Index, headers: Sequence[Header]) -> Header:
    """Return one header for all shards, checked against the index.

    Args:
        index: the index.
        headers: the header of each of ``index.shards``.

    Raises:
        CheckpointError: a listed tensor is absent from its shard, a tensor occurs in two shards,
            or the shards carry different metadata, so that they belong to different checkpoints.
    """
    tensors: dict[str, TensorInfo] = {}
    attachments: dict[str, TensorInfo] = {}
    extras: dict[str, Any] = {}
    for header in headers:
        _add(index, header, tensors, header.tensors, "tensor")
        _add(index, header, attachments, header.attachments, "attachment")
        for name, value in header.extras.items():
            if extras.setdefault(name, value) != value:
                raise CheckpointError(
                    f"{index.path}: its shards disagree about {name!r} (last seen in "
                    f"{header.path.name}), so they belong to different checkpoints."
                )
    held = {header.path.name: header for header in headers}
    for name, shard in index.weight_map.items():
        if not _holds(held[shard], name):
            raise CheckpointError(
                f"{index.path} lists {name!r} in {shard}, which does not hold it. The index and "
                "the shards do not belong together; copy all of them again."
            )
    return Header(
        path=index.path,
        container="sharded",
        tensors=tensors,
        extras={**extras, **index.metadata},
        attachments=attachments,
        skipped=tuple(dict.fromkeys(name for header in headers for name in header.skipped)),
    )


def _add(
    index: Index,
    header: Header,
    merged: dict[str, TensorInfo],
    found: Mapping[str, TensorInfo],
    kind: str,
) -> None:
    twice = merged.keys() & found.keys()
    if twice:
        raise CheckpointError(
            f"{index.path}: the {kind} {min(twice)!r} is in {header.path.name} and in another "
            "shard. The shards do not belong together; copy all of them again."
        )
    merged.update(found)


def _holds(header: Header, name: str) -> bool:
    folder, _, file = name.partition("/")
    return name in header.tensors or (folder == ATTACHMENTS and file in header.attachments)
