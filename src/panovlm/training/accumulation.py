"""One mean over all items of an optimizer step, whose batches come one after the other."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn

from panovlm.errors import ConfigError


class ItemMean:
    """Weighs the batches of an optimizer step by what they hold.

    A language model's loss is a mean over the labelled tokens of a batch. The mean of such means,
    which adding up gradients gives, would count a token of a short answer for more than one of a
    long answer, and the last batches of an epoch, where fewer are added up, for less than others.
    Here every item of a step counts the same, over all batches and training processes: losses are
    weighed by the items of their batch, and the sum of gradients is divided by all of them.

    Args:
        batches: batches per optimizer step, by whose number Lightning divides every loss.
        scale: usual number of items, the same in every process; it only keeps numbers small.
    """

    def __init__(self, batches: int, scale: int) -> None:
        self.batches = batches
        self.scale = scale
        self._items = 0.0

    def weigh(self, loss: Tensor, items: float) -> Tensor:
        """Return a batch's loss as it shall be differentiated.

        Args:
            loss: mean over the items of the batch.
            items: how many there are. Where the loss is one over the batches of all processes,
                every process gives their mean number.
        """
        if not self._matters():
            return loss
        self._items += items
        return loss * (items / self.scale)

    def finish(self, parameters: Iterable[nn.Parameter]) -> None:
        """Turn the added gradients into those of the mean, in place, and begin a new step.

        Raises:
            ConfigError: the training strategy keeps the gradients to itself.
        """
        if not self._matters():
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            raise ConfigError(
                "environment.strategy: this strategy keeps the gradients to itself, so that those "
                "of several batches cannot be weighed; choose auto or ddp, or train on one device "
                "with accumulate_grad_batches 1."
            )
        total = torch.tensor(self._items, device=gradients[0].device)
        processes = 1
        if _is_distributed():
            distributed.all_reduce(total)
            processes = distributed.get_world_size()  # whose gradients are averaged
        factor = self.batches * processes * self.scale / total
        for gradient in gradients:
            gradient.mul_(factor)
        self._items = 0.0

    def _matters(self) -> bool:
        """Tell whether a step has more than one batch."""
        return self.batches > 1 or _is_distributed()


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
