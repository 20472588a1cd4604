"""Makes torch tensors out of the bytes of checkpoint files, without copying them where it can.

A file is mapped privately (copy on write): opening costs no memory, pages are read when they
are touched, and writing to a tensor, as an optimizer does, never changes the file. Only a tensor
that is split over several places is put together in memory.

The tensors are bound from the reader's own description rather than by
``torch.load(mmap=True, weights_only=True)``. That would follow the pickle a second time and
refuse files whose hyper-parameters hold an object of a foreign class; this needs no pickle, works
the same for all formats, and keeps the two views of a file, header and tensors, from differing.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from panovlm.checkpoint.formats.header import ITEMSIZE, Placement
from panovlm.checkpoint.formats.source import Source
from panovlm.checkpoint.formats.split import Part, SplitTensor
from panovlm.errors import CheckpointError

_CARRIERS = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
    16: torch.complex128,
}  # copied without a look at the values; not every dtype can be copied


def bind(
    source: Source, placements: Mapping[str, Placement], data_start: Callable[[Source, int], int]
) -> dict[str, Tensor]:
    """Map ``source`` and return its tensors by name, on the CPU, without gradient.

    Tensors that share a storage in the file share memory here too.

    Args:
        source: the open file; it may be closed afterwards.
        placements: what to bind.
        data_start: finds the first byte of a placement's record.

    Raises:
        CheckpointError: the file is damaged, or cannot be mapped.
    """
    mapped = _Mapped(source)
    starts = {placed.record: 0 for placed in placements.values()}
    starts = {record: data_start(source, record) for record in starts}
    return {
        name: mapped.tensor(name, placed._replace(record=starts[placed.record]))
        for name, placed in placements.items()
    }


def gather(folder: Path, split: Mapping[str, SplitTensor]) -> dict[str, Tensor]:
    """Map the files of a folder and return the tensors that are split over them.

    A tensor that lies in one place stays there; the others are copied together. Names of one and
    the same :class:`SplitTensor` share memory.

    Raises:
        CheckpointError: a file is damaged or cannot be mapped, or the tensors have more elements
            than the files hold.
    """
    files: dict[Path, _Mapped] = {}
    for file in {part.file for tensor in split.values() for part in tensor.parts}:
        with Source(file) as source:
            files[file] = _Mapped(source)
    scattered = {tensor for tensor in split.values() if len(tensor.parts) != 1}
    needed = sum(prod(tensor.grid) * ITEMSIZE[tensor.info.dtype] for tensor in scattered)
    present = sum(file.size for file in files.values())
    if needed > present:
        raise CheckpointError(
            f"{folder} is damaged: it describes tensors of {needed} bytes, and its files hold "
            f"{present}. Copy it again or take the checkpoint before it."
        )
    made: dict[SplitTensor, Tensor] = {}
    for name, tensor in split.items():
        if tensor not in made:
            made[tensor] = _put_together(name, tensor, files)
    return {name: made[tensor] for name, tensor in split.items()}


def _put_together(name: str, split: SplitTensor, files: Mapping[Path, _Mapped]) -> Tensor:
    if len(split.parts) == 1:
        part = split.parts[0]
        return files[part.file].tensor(name, part.placed)
    dtype: torch.dtype = getattr(torch, split.info.dtype)
    carrier = _CARRIERS[ITEMSIZE[split.info.dtype]]
    result = torch.empty(split.grid, dtype=carrier)
    for part in split.parts:
        share = files[part.file].tensor(name, part.placed).view(carrier)
        result[_box(part)] = share
    return result.view(dtype).view(split.info.shape)


def _box(part: Part) -> tuple[slice, ...]:
    shape = part.placed.info.shape
    return tuple(slice(at, at + n) for at, n in zip(part.start, shape, strict=True))


class _Mapped:
    """A file in memory."""

    def __init__(self, source: Source) -> None:
        if sys.byteorder == "big":
            raise CheckpointError(f"{source.path} is little-endian; this machine is big-endian.")
        try:
            mapped = mmap.mmap(source.fileno(), source.size, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{source.path} cannot be mapped into memory: {error}") from error
        self.path, self.size = source.path, source.size
        self.bytes = torch.frombuffer(mapped, dtype=torch.uint8).untyped_storage()
        self.storages: dict[tuple[int, int], torch.UntypedStorage] = {}

    def tensor(self, name: str, placed: Placement) -> Tensor:
        """Return a tensor whose storage starts at byte ``placed.record``."""
        info, stride, offset, start, nbytes = placed
        if (start, nbytes) not in self.storages:
            if start + nbytes > self.size:
                raise CheckpointError(
                    f"{self.path} is truncated: tensor {name!r} ends at byte {start + nbytes}, "
                    f"and the file has {self.size}."
                )
            self.storages[start, nbytes] = self.part(start, nbytes, ITEMSIZE[info.dtype])
        tensor = torch.empty(0, dtype=getattr(torch, info.dtype))
        return tensor.set_(self.storages[start, nbytes], offset, info.shape, stride)

    def part(self, start: int, nbytes: int, itemsize: int) -> torch.UntypedStorage:
        """Return a part of the mapping; a copy where a writer left it unaligned."""
        part = self.bytes[start : start + nbytes]
        return part if start % itemsize == 0 else part.clone()
