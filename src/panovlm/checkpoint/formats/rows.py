"""Elements in a row: the flat buffers that DeepSpeed cuts parameters out of."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path

from panovlm.checkpoint.formats.header import Placement, TensorInfo, contiguous_stride
from panovlm.checkpoint.formats.split import Part, SplitTensor
from panovlm.errors import CheckpointError


class Row:
    """Elements in a row that are kept in several places, one after another.

    Args:
        places: files and the one-dimensional tensors in them, in order.

    Attributes:
        length: number of elements.
    """

    def __init__(self, places: Sequence[tuple[Path, Placement]]) -> None:
        self._places = [place for place in places if place[1].info.shape[0]]
        ends = accumulate(placed.info.shape[0] for _, placed in self._places)
        self._starts = [0, *ends]
        self.length = self._starts.pop()

    def parts(self, start: int, length: int, at: int = 0) -> Iterator[Part]:
        """Yield ``length`` elements from ``start`` on, as shares of a flat tensor from ``at`` on.

        The stretch must lie in the row.
        """
        index = bisect_right(self._starts, start) - 1
        while length:
            file, placed = self._places[index]
            skipped = start - self._starts[index]
            taken = min(length, placed.info.shape[0] - skipped)
            info = TensorInfo((taken,), placed.info.dtype)
            yield Part(file, placed._replace(info=info, offset=placed.offset + skipped), (at,))
            start, length, at, index = start + taken, length - taken, at + taken, index + 1


def joined(info: TensorInfo, parts: Sequence[Part]) -> SplitTensor:
    """Return the tensor that stretches of elements make; one that is one stretch lies in place.

    Raises:
        CheckpointError: the stretches are not of the tensor's dtype.
    """
    for part in parts:
        if part.placed.info.dtype != info.dtype:
            raise CheckpointError(
                f"{part.file} holds {part.placed.info.dtype}, and the files beside it "
                f"{info.dtype}. They do not belong together; copy the folder again."
            )
    if len(parts) != 1:
        return SplitTensor(info, (prod(info.shape),), tuple(parts))
    placed = parts[0].placed._replace(info=info, stride=contiguous_stride(info.shape))
    return SplitTensor(info, info.shape, (Part(parts[0].file, placed, (0,) * len(info.shape)),))
