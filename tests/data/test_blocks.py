"""Orders by blocks take everything once, keep blocks together, and continue exactly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch.utils.data import Dataset

from panovlm.data.blocks import mixed_order
from panovlm.data.loader import Blocks, Draw, ResumableLoader
from panovlm.errors import ConfigError

OF = [number // 5 for number in range(40)]
"""Eight blocks of five."""


def order(seed: int, together: int) -> list[int]:
    return mixed_order(range(40), OF, together, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("together", [1, 3, 8, 100])
def test_everything_once_and_few_blocks_at_a_time(together: int) -> None:
    found = order(0, together)
    assert sorted(found) == list(range(40))
    assert found == order(0, together) != order(1, together)
    size = min(together, 8) * 5
    for first in range(0, 40, size):
        window = found[first : first + size]
        assert len({OF[item] for item in window}) == len(window) // 5
        assert window != sorted(window)


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, draw: Draw) -> int:
        return draw.number


def loader(together: int | None = 2, weights: Sequence[float] | None = None) -> ResumableLoader:
    return ResumableLoader(
        Numbers(), batch_size=3, seed=1, shuffle=True, collate=list, weights=weights,
        blocks=None if together is None else Blocks(OF, together),
    )  # fmt: skip


@pytest.mark.parametrize("stop", [1, 6, 13])
def test_a_position_is_restored(stop: int) -> None:
    whole = list(loader())
    first = loader()
    batches = iter(first)
    begun = [next(batches) for _ in range(stop)]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert begun + list(second) == whole


@pytest.mark.parametrize("other", [None, 3])
def test_another_order_is_not_continued(other: int | None) -> None:
    first = loader()
    next(iter(first))
    with pytest.raises(ConfigError, match="written with blocks"):
        loader(other).load_state_dict(first.state_dict())


def test_repeated_samples_stay_in_their_block() -> None:
    weights = [2.0 if block == 3 else 1.0 for block in OF]
    taken = [number for batch in loader(1, weights) for number in batch]
    assert len(taken) == 45
    blocks = [OF[number] for number in taken]
    assert sum(one != two for one, two in pairwise(blocks)) == 7
