"""Writes distributed checkpoints whose tensors are cut as one likes, with torch's own classes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

Box = tuple[tuple[int, ...], tuple[int, ...]]


def boxes(shape: Sequence[int], cuts: Sequence[Sequence[int]]) -> list[Box]:
    """Return the boxes that cuts along every axis make: first entries and shapes."""
    found: list[Box] = [((), ())]
    for length, cut in zip(shape, cuts, strict=True):
        edges = [0, *cut, length]
        found = [
            ((*start, low), (*size, high - low))
            for start, size in found
            for low, high in pairwise(edges)
        ]
    return found


def write(
    folder: Path,
    tensors: Mapping[str, tuple[Tensor, Sequence[Box]]],
    objects: Mapping[str, Any] | None = None,
    *,
    steps: Mapping[str, tuple[str | int, ...]] | None = None,
    files: int = 2,
    protocol: int = 4,
    change: Callable[[Metadata], None] = lambda metadata: None,
) -> Path:
    """Write a folder and return it.

    Args:
        tensors: name → the tensor and the boxes that it is cut into.
        objects: what is saved beside.
        steps: name → its place in the saved object; by default the name, parted at the first dot.
        files: how many processes take turns in writing.
        change: what is done to the metadata before it is written.
    """
    folder.mkdir(parents=True)
    streams = [io.BytesIO() for _ in range(files)]
    described: dict[str, Any] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    turn = 0

    def put(index: MetadataIndex, value: Any) -> None:
        nonlocal turn
        rank = turn % files
        turn += 1
        start = streams[rank].tell()
        item = io.BytesIO()
        torch.save(value, item)
        streams[rank].write(item.getvalue())
        length = streams[rank].tell() - start
        storage[index] = _StorageInfo(f"__{rank}_0.distcp", start, length)

    for name, (tensor, parts) in tensors.items():
        chunks = [ChunkStorageMetadata(torch.Size(a), torch.Size(n)) for a, n in parts]
        properties = TensorProperties.create_from_tensor(tensor)
        described[name] = TensorStorageMetadata(properties, tensor.size(), chunks)
        for number, (start, size) in enumerate(parts):
            window = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
            put(MetadataIndex(name, start, number), tensor[window].clone())
    for name, value in (objects or {}).items():
        described[name] = BytesStorageMetadata()
        put(MetadataIndex(name), value)
    default = {name: tuple(name.split(".", 1)) for name in described}
    metadata = Metadata(described, {**default, **(steps or {})}, storage, version="1.0.0")
    change(metadata)
    for rank, stream in enumerate(streams):
        (folder / f"__{rank}_0.distcp").write_bytes(stream.getvalue())
    with (folder / ".metadata").open("wb") as file:
        pickle.dump(metadata, file, protocol=protocol)
    return folder
