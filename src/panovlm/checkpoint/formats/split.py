"""Tensors whose elements lie in several files, or in several places of one.

Training on many devices leaves each device's share in a file of its own. A share is a box of the
tensor (DCP), or a stretch of its elements in a row (DeepSpeed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import NamedTuple, Protocol

from panovlm.checkpoint.formats.header import ITEMSIZE, Header, Placement, TensorInfo
from panovlm.checkpoint.formats.source import Source
from panovlm.checkpoint.names.averages import Weights

_CELLS = 1024  # of the common grid, beside sixteen for each box


class Part(NamedTuple):
    """A share of a tensor.

    Attributes:
        file: the file that holds it.
        placed: where in the file; its ``record`` is the position of the storage's first byte.
        start: where in the tensor, in entries of ``SplitTensor.grid``.
    """

    file: Path
    placed: Placement
    start: tuple[int, ...]


class SplitTensor(NamedTuple):
    """A tensor and its shares, which together give every element exactly once.

    Attributes:
        info: shape and dtype.
        grid: the shape that the shares are boxes of: the tensor's own, or its number of elements.
        parts: the shares.
    """

    info: TensorInfo
    grid: tuple[int, ...]
    parts: tuple[Part, ...]


class FolderReader(Protocol):
    """What the module of a container offers that is a folder."""

    def read(self, folder: Path, weights: Weights | None) -> Header:
        """Describe the folder, or that copy of its weights which is meant."""
        ...

    def tensors(self, folder: Path, weights: Weights | None) -> Mapping[str, SplitTensor]:
        """Find the shares of the weights."""
        ...

    def attachments(self, folder: Path, weights: Weights | None) -> Mapping[str, SplitTensor]:
        """Find the embedded files."""
        ...


class Box(NamedTuple):
    """A box of a tensor: its first entry and its shape."""

    start: tuple[int, ...]
    shape: tuple[int, ...]


def whole(file: Path, placed: Placement) -> SplitTensor:
    """Return a tensor that lies in one place."""
    start = (0,) * len(placed.info.shape)
    return SplitTensor(placed.info, placed.info.shape, (Part(file, placed, start),))


def cover_fault(shape: tuple[int, ...], boxes: Sequence[Box]) -> str:
    """Say why the boxes do not fill ``shape`` exactly once, or return an empty text.

    All edges together cut the tensor into cells; every cell must lie in exactly one box.
    """
    for box in boxes:
        ends = [start + length for start, length in zip(box.start, box.shape, strict=True)]
        if any(end > length for end, length in zip(ends, shape, strict=True)):
            return f"the chunk {list(box.shape)} at {list(box.start)} reaches beyond it"
    cuts = [
        sorted({0, length, *(b.start[axis] for b in boxes), *(_end(b, axis) for b in boxes)})
        for axis, length in enumerate(shape)
    ]
    cells = prod(len(cut) - 1 for cut in cuts)
    if cells > _CELLS + 16 * len(boxes):
        return f"its {len(boxes)} chunks lie in no order that is supported"
    index = [{cut: place for place, cut in enumerate(axis)} for axis in cuts]
    filled: set[tuple[int, ...]] = set()
    for box in boxes:
        spans = [range(at[box.start[a]], at[_end(box, a)]) for a, at in enumerate(index)]
        for cell in product(*spans):
            if cell in filled:
                return f"the chunk {list(box.shape)} at {list(box.start)} overlaps another one"
            filled.add(cell)
    return "" if len(filled) == cells else f"its {len(boxes)} chunk(s) leave a part of it out"


def is_row(split: SplitTensor) -> bool:
    """Tell whether the shares of a one-dimensional tensor lie there element after element."""
    return all(part.placed.stride == (1,) for part in split.parts)


def read_bytes(split: SplitTensor) -> bytes:
    """Read the bytes of a one-dimensional tensor, such as embedded files are kept in."""
    pieces: list[bytes] = []
    for part in sorted(split.parts, key=lambda part: part.start):
        with Source(part.file) as source:
            info, size = part.placed.info, ITEMSIZE[part.placed.info.dtype]
            start = part.placed.record + part.placed.offset * size
            pieces.append(source.read(start, info.shape[0] * size))
    return b"".join(pieces)


def _end(box: Box, axis: int) -> int:
    return box.start[axis] + box.shape[axis]
