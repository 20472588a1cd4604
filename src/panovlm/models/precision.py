"""The number type that a component computes in."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def in_dtype_of(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return a component's inputs in the type of its weights; these may differ between components.

    They stay as they are where it has no weights, or where FSDP keeps them in one flat parameter of
    a module further out.
    """
    mixed = _type_under_fsdp(module)
    if mixed is not None:
        return inputs.to(mixed)
    types = (p.dtype for p in module.parameters() if p.is_floating_point())
    return inputs.to(next(types, inputs.dtype))


def _type_under_fsdp(module: nn.Module) -> torch.dtype | None:
    """Return the ``param_dtype`` of torch's first FSDP, if that has a unit in ``module``.

    The weights have it only while their own unit computes, and tell another type out here; FSDP
    itself converts nothing but what comes into the whole model.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    from torch.distributed.fsdp import FullyShardedDataParallel

    units = FullyShardedDataParallel.fsdp_modules(module)
    return next((unit.mixed_precision.param_dtype for unit in units), None)
