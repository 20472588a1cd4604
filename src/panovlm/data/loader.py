"""A data loader that continues exactly where a checkpoint left it.

The order of an epoch is a function of (seed, epoch) alone, and what a dataset draws for a sample
(jitter, order of questions) may depend on the seed and on the :class:`Draw` it is asked for. A
position is then two numbers, the epoch and the batches done in it, whatever the number of workers.
Lightning stores the state of every loader that has ``state_dict`` and sets the epoch of every
sampler that has ``set_epoch``. With several processes its own sampler must stay out of the way:
``Trainer(use_distributed_sampler=False)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple, cast

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from panovlm.data.blocks import mixed_order
from panovlm.data.weights import digest, draw_repeats, epoch_length
from panovlm.errors import ConfigError, DataError


class Draw(NamedTuple):
    """What a sampler asks a dataset for."""

    epoch: int
    """Number of the pass over the data, from 0."""
    number: int
    """Index in the dataset."""
    repeat: int = 0
    """How often it was taken before in this pass."""


class _Position(NamedTuple):
    epoch: int
    batches: int


class Blocks(NamedTuple):
    """What an order keeps together."""

    of: Sequence[int]
    """Block of each sample."""
    together: int
    """Blocks whose samples are shuffled among each other."""


class SeededSampler(Sampler[Draw]):
    """Samples of one process in an order that follows from seed and epoch.

    With several processes each takes every ``world_size``-th sample. So that all of them take
    equally many, up to ``world_size - 1`` samples from the front are taken twice.

    Args:
        length: Samples in the dataset, at least 1.
        seed: Seed of the orders.
        shuffle: False: the order of the dataset, and every pass counts as epoch 0.
        rank: Which process this is.
        world_size: How many processes there are.
        weights: How often each sample is taken per epoch, on average; None: once. Only shuffled
            samples have them.
        blocks: Shuffle the samples block by block; None: all of them.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        weights: Sequence[float] | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        self.weights = weights
        self.blocks = blocks
        self.length = length if weights is None else epoch_length(weights)
        """Samples of an epoch, over all processes."""
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.skip = 0
        """Samples to leave out at the start of the next pass."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.length / self.world_size)

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch if self.shuffle else 0
        order = self._order(epoch)
        order = list(islice(cycle(order), len(self) * self.world_size))
        own = order[self.rank :: self.world_size]
        return iter(own[self.skip :])

    def _order(self, epoch: int) -> list[Draw]:
        if not self.shuffle:
            return [Draw(epoch, number) for number in range(self.length)]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.weights is None:
            taken = [Draw(epoch, number) for number in range(self.length)]
        else:
            repeats = enumerate(draw_repeats(self.weights, generator))
            taken = [Draw(epoch, number, again) for number, n in repeats for again in range(n)]
        if self.blocks is not None:
            own = [self.blocks.of[draw.number] for draw in taken]
            return mixed_order(taken, own, self.blocks.together, generator)
        return [taken[place] for place in torch.randperm(len(taken), generator=generator).tolist()]


class ResumableLoader(DataLoader[Any]):
    """A ``DataLoader`` whose position is part of a checkpoint.

    Args:
        dataset: Has a length and takes a :class:`Draw` as key.
        batch_size: Samples per batch and process; the last batch of an epoch may be smaller.
        seed: Seed of the orders.
        shuffle: False: the order of the dataset, the same in every epoch.
        collate: Makes a batch of a list of samples.
        num_workers: Processes that load samples; 0: this one. They live as long as the loader.
        rank: Which training process this is.
        world_size: How many training processes there are.
        pin_memory: Put batches into page-locked memory, for a faster copy to a GPU.
        weights: How often each sample is taken per epoch, see :class:`SeededSampler`.
        blocks: What is read together, see :class:`SeededSampler`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        collate: Callable[[list[Any]], Any],
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        weights: Sequence[float] | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        self._order = SeededSampler(
            len(cast("Sequence[Any]", dataset)),
            seed=seed,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            weights=weights,
            blocks=blocks,
        )
        self._size = batch_size
        self._done = _Position(0, 0)
        self._resume: _Position | None = None
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=self._order,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=_prepare_worker,
            pin_memory=pin_memory,
            # Its own generator, so that loading never moves torch's global one.
            generator=torch.Generator().manual_seed(seed),
        )

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        epoch = self._order.epoch
        start = self._resume.batches if self._resume and self._resume.epoch == epoch else 0
        self._resume = None
        self._done = _Position(epoch, start)
        self._order.skip = start * self._size
        try:
            for batch in super().__iter__():
                self._done = _Position(epoch, self._done.batches + 1)
                yield batch
        except (ConfigError, DataError) as error:
            raise _without_worker_traceback(error) from error

    def state_dict(self) -> dict[str, int]:
        """Return the position: the epoch, the batches done in it, and what gives them meaning."""
        epoch = self._order.epoch
        done = self._done.batches if self._done.epoch == epoch else 0
        return {"epoch": epoch, "done": done, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a position.

        Raises:
            ConfigError: The position was taken with another seed, batch size, number of processes
                or dataset, so that it means nothing here.
        """
        own = self._identity()
        for name in own.keys() | state.keys() - {"epoch", "done"}:
            before, here = state.get(name, "unset"), own.get(name, "unset")
            if before != here:
                raise ConfigError(
                    f"training cannot be continued in the middle of its data: the checkpoint was "
                    f"written with {name} {before}, this run has {here}; use the same "
                    "settings and tables as before, or start the stage anew from the checkpoint's "
                    "weights"
                )
        self._order.set_epoch(state["epoch"])
        self._done = self._resume = _Position(state["epoch"], state["done"])

    def _identity(self) -> dict[str, int]:
        identity = {
            "seed": self._order.seed,
            "batch_size": self._size,
            "world_size": self._order.world_size,
            "length": self._order.length,
        }
        weights, blocks = self._order.weights, self._order.blocks
        if weights is not None:
            identity["weights"] = digest(weights)
        if blocks is not None:
            identity["blocks"] = digest([*blocks.of, blocks.together])
        return identity


def _prepare_worker(_: int) -> None:
    """Keep OpenCV to one thread: workers are parallel, and its pool does not survive a fork."""
    cv2.setNumThreads(0)


def _without_worker_traceback(error: ConfigError | DataError) -> ConfigError | DataError:
    """Return the error as the worker raised it; torch puts the worker's traceback before it."""
    kind = type(error)
    _, _, message = str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")
    return kind(message.strip())
