"""Batches hold what the items hold, and padding that counts for nothing."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from panovlm.data.collate import collate
from panovlm.data.dataset import Item

PAD = 7


def item(length: int, number: int) -> Item:
    ids = list(range(number, number + length))
    return {
        "pixel_values": torch.full((2, 3, 4, 4), float(number)),
        "source": f"t.csv:{number}",
        "input_ids": ids,
        "labels": [-100, *ids[1:]],
    }


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_rows_end_in_padding(lengths: list[int]) -> None:
    items = [item(length, number) for number, length in enumerate(lengths)]
    batch = collate(items, PAD)
    longest = max(lengths)
    assert batch["pixel_values"].shape == (len(items), 2, 3, 4, 4)
    assert batch["source"] == [f"t.csv:{number}" for number in range(len(items))]
    for row, (length, one) in enumerate(zip(lengths, items, strict=True)):
        assert (batch["pixel_values"][row] == row).all()
        assert batch["input_ids"][row].tolist() == one["input_ids"] + [PAD] * (longest - length)
        assert batch["labels"][row].tolist() == one["labels"] + [-100] * (longest - length)
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (longest - length)
    assert {batch[name].dtype for name in ("input_ids", "attention_mask", "labels")} == {
        torch.int64
    }


def test_views_without_text() -> None:
    items: list[Item] = [
        {"pixel_values": torch.zeros(2, 3, 4, 4), "source": "t.csv:2"} for _ in range(3)
    ]
    assert set(collate(items, PAD)) == {"pixel_values", "source"}
