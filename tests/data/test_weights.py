"""Weights give the repetitions that they promise, and a run continues in the middle of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from panovlm.data.loader import Draw, ResumableLoader, SeededSampler
from panovlm.data.samples import Sample, group_rows
from panovlm.data.weights import draw_repeats, epoch_length
from panovlm.errors import ConfigError

weights = st.lists(st.sampled_from([0.25, 0.4, 1.0, 1.5, 2.0, 3.7]), min_size=1, max_size=30)


@given(weights, st.integers(0, 5))
def test_an_epoch_keeps_its_length_and_its_bounds(weights: list[float], seed: int) -> None:
    repeats = draw_repeats(weights, torch.Generator().manual_seed(seed))
    assert sum(repeats) == epoch_length(weights)
    for weight in set(weights):
        own = [n for n, w in zip(repeats, weights, strict=True) if w == weight]
        assert max(own) - min(own) <= 1
        assert abs(sum(own) - len(own) * weight) <= 0.5 or sum(own) == 1


def test_repetitions_follow_the_weights_over_many_epochs() -> None:
    weights = [2.0] * 5 + [0.4] * 10 + [1.0] * 5
    sampler = SeededSampler(20, seed=3, shuffle=True, weights=weights)
    seen: Counter[int] = Counter()
    for epoch in range(400):
        sampler.set_epoch(epoch)
        draws = list(sampler)
        assert len(draws) == len(set(draws)) == len(sampler) == 19
        seen.update(draw.number for draw in draws)
    assert all(seen[n] == 800 for n in range(5))
    assert all(seen[n] == 400 for n in range(15, 20))
    # Binomial(400, 0.4) has a standard deviation of 9.8.
    assert all(abs(seen[n] - 160) < 50 for n in range(5, 15))


def test_weights_of_one_change_nothing() -> None:
    plain = SeededSampler(9, seed=3, shuffle=True)
    first = SeededSampler(9, seed=3, shuffle=True, weights=[1.0] * 9)
    assert Counter(plain) == Counter(first)


class Draws(Dataset[Draw]):
    """Returns what it is asked for."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, draw: Draw) -> Draw:
        return draw


def loader(weights: list[float] | None) -> ResumableLoader:
    return ResumableLoader(
        Draws(), batch_size=2, seed=5, shuffle=True, collate=list, weights=weights
    )


MIXED = [0.5] * 4 + [2.5] * 3


def run(loader: ResumableLoader, first: int, stop: int | None = None) -> list[Any]:
    seen: list[Any] = []
    for epoch in range(first, 3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            seen.append(batch)
            if len(seen) == stop:
                return seen
    return seen


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 14))
def test_stopping_anywhere_and_continuing(stop: int) -> None:
    whole = run(loader(MIXED), 0)
    assert len(whole) == 15
    before = loader(MIXED)
    run(before, 0, stop)
    after = loader(MIXED)
    state = before.state_dict()
    after.load_state_dict(state)
    assert run(after, state["epoch"]) == whole[stop:]


@pytest.mark.parametrize("other", [None, [0.5] * 3 + [2.5] * 4, [2.5] * 3 + [0.5] * 4])
def test_other_weights_do_not_continue(other: list[float] | None) -> None:
    with pytest.raises(ConfigError, match="cannot be continued"):
        loader(other).load_state_dict(loader(MIXED).state_dict())
    with pytest.raises(ConfigError, match="cannot be continued"):
        loader(MIXED).load_state_dict(loader(other).state_dict())


def test_rows_of_different_weights_are_not_grouped() -> None:
    rows = [Sample(Path("a"), (("q", str(n)),), f"t:{n}", weight=1.0 + n % 2) for n in range(6)]
    for epoch in range(3):
        groups = group_rows(rows, 2, 0, epoch)
        assert [group[0].weight for group in groups] == [1.0, 1.0, 2.0, 2.0]
        assert all(len({row.weight for row in group}) == 1 for group in groups)
