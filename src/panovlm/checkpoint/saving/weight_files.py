"""Writes safetensors files, whole or in shards, without holding the weights in memory.

The format's own library copies every tensor before it writes the first byte. Here mapped weights
go from one file to the other in pieces, converted on the way where another type is wanted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

PIECE = 1 << 24
"""Values that are converted and written at once."""
_ALIGNMENT = 8
_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
}


@dataclass(frozen=True)
class Stored:
    """A tensor and the type that it is to be stored in."""

    tensor: Tensor
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.tensor.numel() * self.dtype.itemsize

    def value(self) -> Tensor:
        """Return the tensor as it is to be stored."""
        return self.tensor.detach().to(self.dtype)

    def pieces(self) -> Iterator[memoryview]:
        """Yield the bytes in the file's order."""
        for piece in self.tensor.detach().reshape(-1).split(PIECE):
            flat = piece.to(device="cpu", dtype=self.dtype).contiguous()
            yield flat.view(torch.uint8).numpy().data


def write_safetensors(
    file: BinaryIO, weights: Mapping[str, Stored], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file.

    Args:
        file: open for writing, empty.
        weights: what to write, by name.
        metadata: texts for the header's ``__metadata__``.
    """
    # Widest types first, so that every tensor begins at a multiple of its own size.
    names = sorted(weights, key=lambda name: -weights[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        stored = weights[name]
        start, end = end, end + stored.nbytes
        header[name] = {
            "dtype": _NAMES[stored.dtype],
            "shape": list(stored.tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        for piece in weights[name].pieces():
            file.write(piece)


def write_shards(
    folder: Path,
    weights: Mapping[str, Stored],
    metadata: Mapping[str, str],
    *,
    max_size: int,
) -> Path:
    """Write weights as ``model-00001-of-00002.safetensors``, ... and the index that lists them.

    Args:
        folder: where the files go.
        weights: what to write, by name; the order decides what stands together.
        metadata: texts for the header of every shard.
        max_size: bytes of one shard; a single larger tensor has a shard of its own.

    Returns:
        The index, which is written last.
    """
    shards = _divide(weights, max_size)
    listed: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        listed |= dict.fromkeys(names, file)
        with (folder / file).open("wb") as shard:
            write_safetensors(shard, {name: weights[name] for name in names}, metadata)
    total = sum(stored.nbytes for stored in weights.values())
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": listed}, indent=2) + "\n",
        encoding="utf-8",
    )
    return index


def _divide(weights: Mapping[str, Stored], max_size: int) -> list[Sequence[str]]:
    """Divide names into consecutive groups of at most ``max_size`` bytes."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, stored in weights.items():
        if groups[-1] and size + stored.nbytes > max_size:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += stored.nbytes
    return list(groups)
