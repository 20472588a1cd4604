"""What the implementations of the scan have in common: their arguments."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor


def check_shapes(u: Tensor, A: Tensor, **others: Tensor | None) -> None:
    """Refuse arguments of a scan that do not fit together, even where they would broadcast.

    Raises:
        ValueError: the shapes do not fit together.
    """
    if u.ndim != 3 or A.ndim != 2 or len(A) != u.shape[1]:
        raise ValueError(
            f"selective_scan: u must be [b, d, l] and A [d, n]; got u {list(u.shape)} and "
            f"A {list(A.shape)}"
        )
    (batch, width, length), n = u.shape, A.shape[1]
    expected = {
        "start": (batch, width, n),
        "delta": (batch, width, length),
        "B": (batch, n, length),
        "C": (batch, n, length),
        "D": (width,),
        "z": (batch, width, length),
        "delta_bias": (width,),
    }
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != expected[name]:
            raise ValueError(
                f"selective_scan: {name} has shape {list(tensor.shape)}, but "
                f"{list(expected[name])} belongs to u {list(u.shape)} and A {list(A.shape)}"
            )


def common_dtype(tensors: Iterable[Tensor | None]) -> torch.dtype:
    """Return the type that a scan computes in: float32, or float64 if a tensor has it."""
    found = (t.dtype for t in tensors if t is not None)
    return reduce(torch.promote_types, found, torch.float32)


def width_last(t: Tensor) -> Tensor:
    """Turn ``[b, d, l]`` into ``[b, l, d]`` whose channels lie side by side."""
    turned = t.detach().transpose(1, 2)
    return turned if turned.stride(2) == 1 or turned.shape[2] == 1 else turned.contiguous()
