"""Masks and positions of packed sequences, against a direct definition."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from panovlm.models.language.segments import segment_mask, segment_positions


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 4), st.integers(0, 3))
def test_a_token_sees_the_beginning_and_its_own_past(
    lengths: list[int], shared: int, padding: int
) -> None:
    row = [0] * shared
    for number, length in enumerate(lengths, 1):
        row += [number] * length
    row += [-1] * padding
    segments = torch.tensor([row])
    sees = segment_mask(segments, torch.float32)[0, 0] == 0
    for i, own in enumerate(row):
        for j, other in enumerate(row):
            assert sees[i, j] == (j <= i and other in (0, own))
    positions = segment_positions(segments)[0].tolist()
    for i, own in enumerate(row):
        before = sum(other in (0, own) for other in row[:i])
        assert own == -1 or positions[i] == before
