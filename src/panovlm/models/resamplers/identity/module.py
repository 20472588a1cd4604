"""The network of the identity."""

from __future__ import annotations

from torch import Tensor, nn

from panovlm.models.resamplers.layers import mark


class IdentityResampler(nn.Module):
    """Leaves tokens as they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        mark(self, "identity", width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens ``[B·V, S, D]``."""
        return tokens
