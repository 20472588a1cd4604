"""The selective scan of Mamba: exact, without keeping all states, by one of several backends.

For one channel and one entry of its state the recurrence over time is

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,        y_t = C_t . h_t + D u_t

(Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, algorithm 2,
with the Euler rule for B as in their code).
"""

from __future__ import annotations

from torch import Tensor

from panovlm.models.mamba import backends, recomputed
from panovlm.models.mamba.arguments import check_shapes, common_dtype
from panovlm.models.mamba.scan_torch import scan_from


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
    *,
    reverse: bool = False,
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
        reverse: begin with the last time step, as if time were turned round before and after.

    Returns:
        ``[b, d, l]`` in the dtype of ``u``.

    Raises:
        ValueError: the shapes do not fit together.
        ConfigError: the backend that was asked for cannot work on this device.
        MissingDependencyError: it is not installed in full.
    """
    check_shapes(u, A, delta=delta, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    given = (u, delta, A, B, C, D, z, delta_bias)
    dtype = common_dtype(given)
    backend = backends.for_scan(u.device, dtype, u.numel() * A.shape[1])
    if backend == "numba":
        from panovlm.models.mamba.scan_numba import NumbaCall  # compiles: only when it is wanted

        tensors = [None if t is None else t.to(dtype) for t in given]
        return recomputed.scan(NumbaCall, tensors, delta_softplus, reverse).to(u.dtype)
    if backend == "triton":
        from panovlm.models.mamba.scan_triton import TritonCall

        return recomputed.scan(TritonCall, given, delta_softplus, reverse)
    if reverse:  # the others go forwards only
        gate = None if z is None else z.flip(2)
        rest = (A, B.flip(2), C.flip(2), D, gate, delta_bias, delta_softplus)
        return selective_scan(u.flip(2), delta.flip(2), *rest).flip(2)
    if backend == "mamba_ssm":
        from panovlm.models.mamba import scan_mamba_ssm

        return scan_mamba_ssm.scan(given, delta_softplus)
    return scan_from(None, *given, delta_softplus=delta_softplus)[0]
