"""Loaders of one training stage for Lightning."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

from lightning.pytorch import LightningDataModule

from panovlm.data.cache import KnownViews, ViewCache, first_rows, readable
from panovlm.data.collate import Batch, collate
from panovlm.data.dataset import PanoramaDataset
from panovlm.data.features import KeptFeatures
from panovlm.data.kept_views import KeptViews, OnDisk
from panovlm.data.loader import Blocks, ResumableLoader
from panovlm.data.on_device import with_views
from panovlm.data.samples import Sample
from panovlm.errors import DataError
from panovlm.models.language.chat import ChatFormat
from panovlm.panorama.device import DeviceViews
from panovlm.panorama.pipeline import ViewPipeline


class PanoramaData(LightningDataModule):
    """Training and validation data of one stage.

    The trainer must be made with ``use_distributed_sampler=False``: the loaders share the samples
    out themselves, so that a checkpoint can name a position in them.

    Args:
        train: Rows to train on.
        val: Rows to validate on; none: no validation.
        pipeline: Cuts and normalises the views.
        chat: Turns conversations into ids and labels; None: views only.
        batch_size: Samples per batch and process.
        max_length: Most text tokens of a sample; None: no limit.
        questions_per_sample: Rows about one panorama that share its views.
        seed: Seed of order, groups and jitter.
        num_workers: Processes that load samples; 0: the training process itself.
        augment: Colour jitter of the training views.
        cache_views: Render all views once, when training starts, and keep them in memory; or, on
            disk, when they are first asked for.
        yaw_turns: Turn the training panoramas by a chance multiple of this part of a circle.
        skip_unreadable: Leave out, and log, rows whose image cannot be read.
        stream_blocks: Shuffle the training rows block by block, so many blocks at a time; None: all
            of them.
        views_on: What cuts the perspective views: the loader, or the device that its batches go to.

    Attributes:
        pipeline: Cuts and normalises the views.
        notes: What the user should know once the datasets are set up.
    """

    def __init__(
        self,
        train: Sequence[Sample],
        val: Sequence[Sample],
        *,
        pipeline: ViewPipeline,
        chat: ChatFormat | None,
        batch_size: int,
        max_length: int | None = None,
        questions_per_sample: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        augment: bool = False,
        cache_views: bool | OnDisk = False,
        yaw_turns: int = 1,
        skip_unreadable: bool = False,
        stream_blocks: int | None = None,
        views_on: Literal["loader", "device"] = "loader",
    ) -> None:
        super().__init__()
        if not train:
            raise DataError(
                "there is nothing to train on; name tables with data.csv_train, or make scenes "
                "with data.synthetic"
            )
        self._samples = {"train": train, "val": val}
        self.pipeline = pipeline
        self._chat = chat
        self._batch_size = batch_size
        self._max_length = max_length
        self._questions = questions_per_sample
        self._seed = seed
        self._num_workers = num_workers
        self._augment = augment
        self._in_memory = cache_views is True
        self._limit = cache_views.limit if isinstance(cache_views, OnDisk) else 0
        self._kept = (
            KeptViews(cache_views.folder, pipeline) if isinstance(cache_views, OnDisk) else None
        )
        self._yaw_turns = yaw_turns
        self._skip_unreadable = skip_unreadable
        self._stream_blocks = stream_blocks
        self._device_views = DeviceViews(pipeline) if views_on == "device" else None
        self._datasets: dict[str, PanoramaDataset] = {}
        self.notes: list[str] = []

    def panoramas(self) -> list[Sample]:
        """Return the first row about each panorama of the datasets that are set up."""
        rows = [row for dataset in self._datasets.values() for row in dataset.rows]
        return list(first_rows(rows).values())

    def rendered(self, samples: Sequence[Sample], num_workers: int) -> ResumableLoader:
        """Return the views of panoramas, one after the other, as validation would see them."""
        dataset = PanoramaDataset(samples, self.pipeline, None, cache=self._kept)
        return ResumableLoader(
            dataset,
            batch_size=1,
            seed=self._seed,
            shuffle=False,
            collate=partial(collate, pad_id=0),
            num_workers=num_workers,
        )

    def give_features(self, features: KeptFeatures) -> None:
        """Let the loaders give what the tower makes of the views, instead of these."""
        for dataset in self._datasets.values():
            dataset.features = features

    def setup(self, stage: str) -> None:
        """Make the datasets, once; with the options for it, read all images.

        Raises:
            DataError: An image cannot be read.
        """
        for split, samples in self._samples.items():
            if samples and split not in self._datasets:
                self._datasets[split] = self._dataset(samples, vary=split == "train")

    def train_dataloader(self) -> ResumableLoader:
        """Return the shuffled training batches, whose position a checkpoint keeps."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """Return the validation batches, always the same; an empty list when there are none."""
        return self._loader("val", shuffle=False) if "val" in self._datasets else []

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Cut the views of a batch that has arrived on the device, if they are cut there."""
        if self._device_views is None:
            return batch
        cut = with_views(batch, self._device_views)
        # Lightning has brought other inputs to the model's precision before they came here.
        return self.trainer.precision_plugin.convert_input(cut) if self.trainer else cut

    def _dataset(self, samples: Sequence[Sample], *, vary: bool) -> PanoramaDataset:
        threads = os.cpu_count() or 1  # no loader works yet
        if self._skip_unreadable:
            samples = readable(samples, threads)
        return PanoramaDataset(
            samples,
            self.pipeline,
            self._chat,
            max_length=self._max_length,
            questions_per_sample=self._questions,
            seed=self._seed,
            augment=self._augment and vary,
            yaw_turns=self._yaw_turns if vary else 1,
            cache=self._cache(samples, threads),
            cut=self._device_views is None,
        )

    def _cache(self, samples: Sequence[Sample], threads: int) -> KnownViews | None:
        if self._kept is None:
            return ViewCache(samples, self.pipeline, threads) if self._in_memory else None
        self.notes.append(self._kept.require_room(len(first_rows(samples)), self._limit))
        return self._kept

    def _loader(self, split: str, *, shuffle: bool) -> ResumableLoader:
        trainer = self.trainer
        return ResumableLoader(
            self._datasets[split],
            batch_size=self._batch_size,
            seed=self._seed,
            shuffle=shuffle,
            collate=partial(collate, pad_id=self._pad_id()),
            num_workers=self._num_workers,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
            weights=self._datasets[split].weights if shuffle else None,
            blocks=self._blocks(split) if shuffle else None,
        )

    def _blocks(self, split: str) -> Blocks | None:
        if self._stream_blocks is None:
            return None
        return Blocks(self._datasets[split].blocks, self._stream_blocks)

    def _pad_id(self) -> int:
        return 0 if self._chat is None else cast("int", self._chat.tokenizer.pad_token_id)
