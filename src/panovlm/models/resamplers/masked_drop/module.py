"""The network of dropping tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panovlm.models.resamplers.layers import mark
from panovlm.models.resamplers.masked_drop.recipe import MaskedDropSettings


class MaskedDropResampler(nn.Module):
    """Sets ``int(rate * S)`` tokens of every view to zero in training.

    They are drawn without replacement and independently for every view, with the default generator
    of the tokens' device. The others are not scaled, as they are what evaluation sees.
    """

    def __init__(self, settings: MaskedDropSettings, width: int) -> None:
        super().__init__()
        self.rate = settings.rate
        mark(self, "masked_drop", width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens ``[B·V, S, D]``, in training some of them zero."""
        blank = int(self.rate * tokens.shape[1])
        if not self.training or not blank:
            return tokens
        order = torch.rand(tokens.shape[:2], device=tokens.device).argsort(dim=1)
        return tokens.scatter(1, order[:, :blank, None].expand(-1, -1, tokens.shape[2]), 0.0)
