"""Small parts that the networks of several architectures share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panovlm.models.vision.grid import ViewGrid


def mark(module: nn.Module, name: str, *shape: int) -> None:
    """Give a network a constant whose name and shape tell files what the network is."""
    module.register_buffer(name, torch.ones(shape, dtype=torch.uint8))


def as_pictures(tokens: Tensor, view: ViewGrid) -> Tensor:
    """Lay tokens ``[N, S, D]`` out as pictures ``[N, D, rows, columns]``.

    Tokens in front that show no place are left out.
    """
    patches = tokens[:, view.extra :].unflatten(1, (view.rows, view.columns))
    return patches.permute(0, 3, 1, 2)


def as_tokens(pictures: Tensor) -> Tensor:
    """Return the tokens ``[N, rows · columns, D]`` of pictures ``[N, D, rows, columns]``."""
    return pictures.flatten(2).transpose(1, 2)
