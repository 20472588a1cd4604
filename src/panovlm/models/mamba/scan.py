"""The selective scan of Mamba: exact, without keeping all states, by one of several backends.

For one channel and one entry of its state the recurrence over time is

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,        y_t = C_t . h_t + D u_t

(Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, algorithm 2,
with the Euler rule for B as in their code).
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from panovlm.models.mamba import backends
from panovlm.models.mamba.scan_torch import check_shapes, scan_from


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Scan sequences with the arguments and the meaning of mamba-ssm's ``selective_scan_fn``.

    Every sequence begins with a state of zero; :func:`~panovlm.models.mamba.scan_torch.scan_from`
    takes another one. Computes in float32, under autocast too (in float64 if an argument is
    float64), with the backend of :func:`panovlm.models.mamba.backends.use`. Every tensor argument
    gets its gradient; there are no second derivatives.

    Args:
        u: signal ``[b, d, l]``.
        delta: step sizes ``[b, d, l]``, before bias and softplus.
        A: diagonal state matrix ``[d, n]``; negative for a state that decays.
        B: input matrix of every time step ``[b, n, l]``.
        C: output matrix of every time step ``[b, n, l]``.
        D: weight of the direct path ``[d]``.
        z: gate ``[b, d, l]``; the output is multiplied by SiLU(z).
        delta_bias: added to ``delta``, ``[d]``.
        delta_softplus: put ``delta`` and its bias through a softplus.

    Returns:
        ``[b, d, l]`` in the dtype of ``u``.

    Raises:
        ValueError: the shapes do not fit together.
        ConfigError: the backend that was asked for cannot work on this device.
    """
    check_shapes(u, A, delta=delta, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    given = (u, delta, A, B, C, D, z, delta_bias)
    dtype = reduce(torch.promote_types, (t.dtype for t in given if t is not None), torch.float32)
    if backends.for_scan(u.device, dtype, u.numel() * A.shape[1]) == "numba":
        from panovlm.models.mamba import scan_numba  # compiles, so only when it is wanted

        tensors = [None if t is None else t.to(dtype) for t in given]
        return scan_numba.scan(tensors, delta_softplus).to(u.dtype)
    return scan_from(None, *given, delta_softplus=delta_softplus)[0]
