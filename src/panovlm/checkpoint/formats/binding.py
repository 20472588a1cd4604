"""Makes torch tensors out of the bytes of a checkpoint file, without copying them.

The file is mapped privately (copy on write): opening costs no memory, pages are read when they
are touched, and writing to a tensor, as an optimizer does, never changes the file.

The tensors are bound from the reader's own description rather than by
``torch.load(mmap=True, weights_only=True)``. That would follow the pickle a second time and
refuse files whose hyper-parameters hold an object of a foreign class; this needs no pickle, works
the same for both formats, and keeps the two views of a file, header and tensors, from differing.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from panovlm.checkpoint.formats.header import ITEMSIZE, Placement
from panovlm.checkpoint.formats.source import Source
from panovlm.errors import CheckpointError


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
    if sys.byteorder == "big":
        raise CheckpointError(f"{source.path} is little-endian; this machine is big-endian.")
    try:
        mapped = mmap.mmap(source.fileno(), source.size, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source.path} cannot be mapped into memory: {error}") from error
    whole = torch.frombuffer(mapped, dtype=torch.uint8).untyped_storage()
    storages: dict[tuple[int, int], torch.UntypedStorage] = {}
    tensors: dict[str, Tensor] = {}
    for name, (info, stride, offset, record, nbytes) in placements.items():
        key = (record, nbytes)
        if key not in storages:
            start = data_start(source, record)
            if start + nbytes > source.size:
                raise CheckpointError(
                    f"{source.path} is truncated: tensor {name!r} ends at byte {start + nbytes}, "
                    f"and the file has {source.size}."
                )
            storages[key] = _slice(whole, start, nbytes, ITEMSIZE[info.dtype])
        tensor = torch.empty(0, dtype=getattr(torch, info.dtype))
        tensors[name] = tensor.set_(storages[key], offset, info.shape, stride)
    return tensors


def _slice(
    whole: torch.UntypedStorage, start: int, nbytes: int, itemsize: int
) -> torch.UntypedStorage:
    """Return a part of the mapping; a copy where a writer left it unaligned."""
    part = whole[start : start + nbytes]
    return part if start % itemsize == 0 else part.clone()
