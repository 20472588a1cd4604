"""Weighing the batches of an optimizer step, against the gradient of all items at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from panovlm.errors import ConfigError
from panovlm.training.accumulation import ItemMean


@pytest.mark.parametrize("sizes", [(5,), (1, 4, 2), (3, 3)])
@pytest.mark.parametrize("batches", [1, 3, 4])
def test_every_item_of_a_step_counts_the_same(batches: int, sizes: tuple[int, ...]) -> None:
    if len(sizes) > batches:
        pytest.skip("a step has no more batches than are accumulated")
    torch.manual_seed(0)
    layer = nn.Linear(3, 1).double()
    parts = [torch.randn(size, 3, dtype=torch.float64) for size in sizes]
    layer(torch.cat(parts)).square().mean().backward()
    expected = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    mean = ItemMean(batches, scale=7)
    for _ in range(2):  # the second step begins anew
        layer.zero_grad()
        for part in parts:
            loss = layer(part).square().mean()
            (mean.weigh(loss, len(part)) / batches).backward()
        mean.finish(layer.parameters())
        for parameter, gradient in zip(layer.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


def test_a_single_batch_is_left_as_it_is() -> None:
    loss = torch.tensor(2.0)
    assert ItemMean(1, scale=7).weigh(loss, 3) is loss


def test_gradients_that_a_strategy_keeps_to_itself() -> None:
    mean = ItemMean(2, scale=1)
    mean.weigh(torch.tensor(1.0), 1)
    with pytest.raises(ConfigError, match=r"environment\.strategy: .*keeps the gradients"):
        mean.finish([nn.Parameter(torch.zeros(1))])
