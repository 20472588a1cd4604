"""The tensors of a resolved checkpoint, mapped from all of its files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from panovlm.checkpoint.formats import load_tensors
from panovlm.checkpoint.resolution import Resolution

if TYPE_CHECKING:
    from torch import Tensor


def stored_tensors(resolution: Resolution) -> dict[str, Tensor]:
    """Return every stored tensor by the name that ``resolution.header`` lists it under.

    Adapters of another file are among them; weights that are left to a named model are not.

    Raises:
        CheckpointError: a file is damaged.
    """
    tensors = load_tensors(resolution.path, resolution.weights, resolution.header)
    if resolution.adapters is not None:
        part = load_tensors(resolution.adapters.path)
        tensors |= {name: part[own] for name, own in resolution.adapters.names.items()}
    return tensors
