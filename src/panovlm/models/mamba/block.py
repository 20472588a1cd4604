"""The Mamba mixer: causal convolution, selective scan and gate between two projections."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from panovlm.models.mamba.convolution import convolve
from panovlm.models.mamba.loop import loop_past, loop_scan
from panovlm.models.mamba.scan import selective_scan

STEP_SIZE_RANGE = (1e-3, 1e-1)
"""Step sizes that the bias of ``dt_proj`` starts with, spread evenly over their logarithm."""


class MambaMixer(nn.Module):
    """One causal Mamba mixer with the parameter names and the numerics of mamba-ssm's ``Mamba``.

    Widths: I = int(expand * d_model), truncated; R = ceil(d_model / 16).

    Args:
        d_model: width of input and output.
        expand: inner width as a multiple of ``d_model``.
        d_state: size n of the state of every inner channel.
        d_conv: taps of the convolution over time.
    """

    def __init__(self, d_model: int, *, expand: float, d_state: int, d_conv: int) -> None:
        super().__init__()
        inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16)
        self.d_state = d_state
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise every parameter as mamba-ssm does.

        A = -(1 .. n) (S4D-real), D = 1, step sizes between 1e-3 and 1e-1 ("Mamba", section 3.6).
        """
        if self.A_log.is_meta:
            return  # without memory there is nothing to give a value to
        for layer in (self.in_proj, self.conv1d, self.x_proj, self.out_proj):
            layer.reset_parameters()
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        low, high = (math.log(size) for size in STEP_SIZE_RANGE)
        step = torch.empty_like(self.dt_proj.bias, dtype=torch.float32).uniform_(low, high).exp()
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        states = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=self.A_log.device)
        self.A_log.copy_(states.log().expand_as(self.A_log))
        nn.init.ones_(self.D)

    def forward(self, x: Tensor, loop: int | None = None, *, reverse: bool = False) -> Tensor:
        """Mix the time steps of ``x`` ``[b, l, d_model]``, each seeing itself and earlier ones.

        The scan runs in float32 whatever the dtype of ``x`` and of autocast.

        Args:
            x: sequences.
            loop: how many of them in a row follow each other round a closed loop; before its own
                sequence a time step then sees the other ones. ``None``: each stands alone.
            reverse: turn time round: each step sees itself and later ones, and loops go the other
                way.
        """
        if reverse and loop is not None:
            # Turned round as a whole, the sequences of a loop and the steps in them change their
            # order, and the loops too; turning back restores all of it.
            return self.forward(x.flip(0, 1), loop).flip(0, 1)
        signal, gate = self.in_proj(x).chunk(2, dim=-1)  # [b, l, I] each
        signal = self._convolve(signal, loop, reverse=reverse)
        signal = nn.functional.silu(signal, inplace=not signal.requires_grad)
        sizes = (self.dt_rank, self.d_state, self.d_state)
        dt, B, C = self.x_proj(signal).split(sizes, dim=-1)
        delta = dt @ self.dt_proj.weight.t()  # its bias joins in the scan, in float32
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        steps = (signal.transpose(1, 2), delta.transpose(1, 2), A, B.transpose(1, 2))
        rest = (C.transpose(1, 2), self.D, gate.transpose(1, 2), self.dt_proj.bias)
        if loop is None:
            y = selective_scan(*steps, *rest, delta_softplus=True, reverse=reverse)
        else:
            y = loop_scan(loop, *steps, *rest)
        return self.out_proj(y.transpose(1, 2))

    def _convolve(self, x: Tensor, loop: int | None, *, reverse: bool = False) -> Tensor:
        """Convolve each channel of ``x`` ``[b, l, I]`` with its taps, causally."""
        taps, bias = self.conv1d.weight, self.conv1d.bias
        assert bias is not None
        past = taps.shape[-1] - 1
        alone = loop is None
        before = x.new_zeros(len(x), past, x.shape[2]) if alone else loop_past(x, loop, past)
        if reverse:
            return convolve(torch.cat((x, before), 1), taps.flip(2), bias)
        return convolve(torch.cat((before, x), 1), taps, bias)
