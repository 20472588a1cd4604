"""Orders for data that is read block by block: row groups of Parquet files, and shards.

An order takes the blocks by chance, so many at a time, and the rows of these in an order of chance.
So a process needs to keep few blocks, while the order follows from seed and epoch as every other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch

from panovlm.data.hub_rows import StreamedCell
from panovlm.data.shards import Member
from panovlm.panorama.picture import Image, Picture

T = TypeVar("T")


def blocks_of(images: Iterable[Image]) -> list[int]:
    """Return the number of the block that each image is read from.

    Images in files of their own are blocks of their own.
    """
    numbers: dict[object, int] = {}
    return [numbers.setdefault(_block(image), len(numbers)) for image in images]


def mixed_order(
    items: Sequence[T], blocks: Sequence[int], together: int, generator: torch.Generator
) -> list[T]:
    """Shuffle items block by block.

    Args:
        items: What is shuffled.
        blocks: The block of each.
        together: Blocks whose items are shuffled among each other.
        generator: Source of the chance.
    """
    by_block: dict[int, list[T]] = {}
    for item, block in zip(items, blocks, strict=True):
        by_block.setdefault(block, []).append(item)
    chosen = _shuffled(list(by_block.values()), generator)
    order: list[T] = []
    for first in range(0, len(chosen), together):
        window = [item for block in chosen[first : first + together] for item in block]
        order += _shuffled(window, generator)
    return order


def _shuffled(items: Sequence[T], generator: torch.Generator) -> list[T]:
    return [items[place] for place in torch.randperm(len(items), generator=generator).tolist()]


def _block(image: Image) -> object:
    file = image.file if isinstance(image, Picture) else image
    if isinstance(file, StreamedCell):
        return file.file, file.group
    return file.shard if isinstance(file, Member) else image
