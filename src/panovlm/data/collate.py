"""Items into batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from panovlm.data.augment import Tint
from panovlm.data.dataset import Item
from panovlm.models.language.chat import IGNORED
from panovlm.panorama.uncut import Uncut, together


class Batch(TypedDict):
    """Several items: views, what they are cut from, or the tower's features; texts if they have."""

    source: list[str]
    """[B], where each sample stands in its table."""
    pixel_values: NotRequired[Tensor]
    """float32 [B, V, 3, h, w]"""
    uncut: NotRequired[list[Uncut]]
    """Panoramas, those of one size together, for views that are cut later."""
    tints: NotRequired[list[Tint]]
    """What the views of each are multiplied by then; absent: nothing."""
    features: NotRequired[Tensor]
    """[B, V, S, Dv]"""
    view_size: NotRequired[tuple[int, int]]
    """Height and width of the views that the features are of."""
    input_ids: NotRequired[Tensor]
    """int64 [B, L], padded on the right."""
    attention_mask: NotRequired[Tensor]
    """int64 [B, L], 1 for text and 0 for padding."""
    labels: NotRequired[Tensor]
    """int64 [B, L], -100 where no loss is taken."""
    segments: NotRequired[Tensor]
    """int64 [B, L], which conversation of its row a token belongs to (0: all, -1: padding); absent
    where every row has one conversation."""


def collate(items: Sequence[Item], pad_id: int) -> Batch:
    """Stack views and pad texts on the right.

    Args:
        items: Items with equally many views of one size.
        pad_id: Id that fills shorter texts; it counts neither as text nor in the loss.
    """
    batch: Batch = {"source": [item["source"] for item in items]}
    pixels = [item["pixel_values"] for item in items if "pixel_values" in item]
    whole = [item["uncut"] for item in items if "uncut" in item]
    if pixels:
        batch["pixel_values"] = torch.stack(pixels)
    elif whole:
        batch["uncut"] = together(whole)
        tints = [item["tint"] for item in items if "tint" in item]
        if tints:
            batch["tints"] = tints
    else:
        batch["features"] = torch.stack([item["features"] for item in items if "features" in item])
        (batch["view_size"],) = {item["view_size"] for item in items if "view_size" in item}
    if all("input_ids" in item for item in items):
        ids = [item["input_ids"] for item in items if "input_ids" in item]
        labels = [item["labels"] for item in items if "labels" in item]
        batch["input_ids"] = _padded(ids, pad_id)
        batch["attention_mask"] = _padded([[1] * len(row) for row in ids], 0)
        batch["labels"] = _padded(labels, IGNORED)
        if any("segments" in item for item in items):
            batch["segments"] = _padded([_segments(item) for item in items], -1)
    return batch


def _segments(item: Item) -> Sequence[int]:
    """Return the segments of an item; of a single conversation all is shared."""
    return item.get("segments", [0] * len(item.get("input_ids", ())))


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Return the rows as one tensor [B, L], filled up with ``value`` on the right."""
    padded = torch.full((len(rows), max(map(len, rows))), value)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = torch.tensor(row)
    return padded
