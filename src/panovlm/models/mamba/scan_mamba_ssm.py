"""The scan by the CUDA kernels of the package mamba-ssm, whose arguments ours are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from panovlm.errors import ConfigError, MissingDependencyError

LARGEST_STATE = 256
"""Entries of a channel's state that its kernels take at most."""


def scan(tensors: Sequence[Tensor | None], delta_softplus: bool) -> Tensor:
    """Scan tensors on a CUDA device.

    Its kernels want one type of all sequences and float32 of everything else.

    Args:
        tensors: u, delta, A, B, C, D, z and delta_bias as :func:`selective_scan` takes them.
        delta_softplus: put delta and its bias through a softplus.

    Returns:
        ``[b, d, l]`` in the dtype of ``u``.

    Raises:
        ConfigError: the state is too large for it.
        MissingDependencyError: it is installed without its CUDA extension, or for another torch.
    """
    try:
        from mamba_ssm.ops.selective_scan_interface import (  # pyright: ignore[reportMissingImports]
            selective_scan_fn,
        )
    except ImportError as error:
        raise MissingDependencyError(
            f"environment.scan_backend is 'mamba_ssm', but the package mamba-ssm cannot be "
            f"imported: {error}. Install a build of it for this torch and CUDA, or set "
            "environment.scan_backend to auto or torch."
        ) from error
    u, delta, A, B, C, D, z, delta_bias = tensors
    assert u is not None and delta is not None and A is not None
    assert B is not None and C is not None
    if A.shape[1] > LARGEST_STATE:
        raise ConfigError(
            f"environment.scan_backend is 'mamba_ssm', which takes a d_state of up to "
            f"{LARGEST_STATE}, but the model's is {A.shape[1]}. Set environment.scan_backend to "
            "auto or torch."
        )
    given = (t.dtype for t in (u, delta, B, C, z) if t is not None)
    dtype = reduce(torch.promote_types, given)
    y = selective_scan_fn(
        u.to(dtype),
        delta.to(dtype),
        A.float(),
        B.to(dtype),
        C.to(dtype),
        D=None if D is None else D.float(),
        z=None if z is None else z.to(dtype),
        delta_bias=None if delta_bias is None else delta_bias.float(),
        delta_softplus=delta_softplus,
    )
    return y.to(u.dtype)
