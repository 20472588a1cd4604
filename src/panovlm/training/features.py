"""What a frozen vision tower makes of the panoramas of a stage, computed once and kept on disk.

Every panorama is computed by itself, so that its features follow from it and the tower alone and
not from the batch in which it happens to be met. An entry is known by the bytes of the picture, the
way to its views, the tower's weights and configuration, and what they are computed with; nothing of
it is a name, a path or a date.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from typing import Any, cast

import lightning
import torch
import transformers
from rich.console import Console
from torch import Tensor

from panovlm.checkpoint.loading.borrow import digest
from panovlm.data.cache import in_parallel, naming
from panovlm.data.features import KeptFeatures, write_features
from panovlm.data.module import PanoramaData
from panovlm.data.samples import Sample
from panovlm.data.store import Store, key_of, picture_identity, size_text
from panovlm.errors import DataError
from panovlm.models.compilation import uncompiled
from panovlm.models.model import PanoramaVLM
from panovlm.models.vision.backbone import VisionBackbone
from panovlm.panorama.identity import code_digest, rendering_identity
from panovlm.training.module import StageModule


class FeatureKeeper(lightning.Callback):
    """Computes the features that are not there yet, and lets the loaders read them.

    It does so when the model is where it trains, with its checkpoint's weights, and no loader is
    at work. Training processes share the panoramas out; those on another machine, whose disk may be
    another one, then complete what they do not find.

    Args:
        store: where the features are kept.
        limit: GiB that those of the stage may take.
        num_workers: processes that load panoramas.
        console: where it is told how much there is to do.
    """

    def __init__(self, store: Store, limit: float, num_workers: int, console: Console) -> None:
        self._store = store
        self._limit = limit
        self._num_workers = num_workers
        self._console = console

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Complete the features of the stage's panoramas.

        Raises:
            ConfigError: they would take too much room, or cannot be written.
            DataError: an image cannot be read.
        """
        assert isinstance(pl_module, StageModule)
        data = cast("PanoramaData", cast(Any, trainer).datamodule)
        tower = _Tower(trainer, pl_module.model, data, self._num_workers)
        samples = data.panoramas()
        found = in_parallel(tower.entry, samples, os.cpu_count() or 1)
        keys = {row.image: key for row, key in zip(samples, found, strict=True)}
        rows = {keys[row.image]: row for row in samples}  # equal pictures once
        for rank, world_size in ((trainer.global_rank, trainer.world_size), (0, 1)):
            trainer.strategy.barrier()
            missing = [key for key in rows if key not in self._store]
            share = {key: rows[key] for key in missing[rank::world_size]}
            if share:
                self._say(f"features of {len(missing)} of {len(rows)} panoramas are to be computed")
                with self._console.status(f"computing the features of {len(share)} panoramas"):
                    self._compute(tower, share, len(rows), len(missing))
        self._say(f"features of {len(rows)} panoramas are read from {self._store.folder}")
        data.give_features(KeptFeatures(self._store, keys))

    def _compute(self, tower: _Tower, share: dict[str, Sample], entries: int, missing: int) -> None:
        """Compute and write this process's share; the first of it tells what all of them take."""
        made = tower.features(list(share.values()))
        for number, ((key, row), (features, size)) in enumerate(
            zip(share.items(), made, strict=True)
        ):
            if not number:
                each = features.nbytes
                self._say(
                    f"features take {size_text(each)} each, {size_text(entries * each)} in all"
                )
                self._store.require_room(entries, missing, each, self._limit)
            if tower.entry(row) != key:
                raise DataError(f"{row.source}: {row.image} is being changed; train when it is not")
            write_features(self._store, key, features, size)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Tower:
    """The tower of a stage, at the place and in the precision in which the stage trains.

    Args:
        trainer: it is about to train.
        model: the model that has the tower.
        data: the stage's panoramas.
        num_workers: processes that load panoramas.
    """

    def __init__(
        self, trainer: lightning.Trainer, model: PanoramaVLM, data: PanoramaData, num_workers: int
    ) -> None:
        self._trainer = trainer
        self._model = model
        self._data = data
        self._num_workers = num_workers
        self._common = {
            "rendering": rendering_identity(data.pipeline.settings),
            "tower": tower_identity(model.vision_backbone),
            "numerics": _numerics(trainer, model),
        }

    def entry(self, row: Sample) -> str:
        """Return the name of the entry of a sample's panorama, as it is now.

        Raises:
            DataError: its image cannot be read.
        """
        with naming(row):
            return key_of({"picture": picture_identity(row.image), **self._common})

    def features(self, samples: Sequence[Sample]) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Compute the features [V, S, Dv] of panoramas, one by one, and the size of their views.

        Raises:
            DataError: an image cannot be read.
        """
        backbone = self._model.vision_backbone
        was_training = backbone.training
        backbone.eval()
        for batch in self._data.rendered(samples, self._num_workers):
            pixels = batch["pixel_values"].to(self._model.device)
            forward = self._trainer.precision_plugin.forward_context()
            with torch.no_grad(), forward, uncompiled(backbone):
                features, size = self._model.seen(pixels)
            yield features[0], size
        backbone.train(was_training)


def tower_identity(tower: VisionBackbone) -> dict[str, Any]:
    """Return what identifies a tower: the digest of its weights, its configuration, its code."""
    config: dict[str, Any] = json.loads(tower.config.to_json_string(use_diff=False))
    for field in ("_name_or_path", "dtype", "transformers_version"):  # where it came from
        config.pop(field, None)
    return {
        "weights": digest("", tower.state_dict()),
        "config": config,
        "code": code_digest("panovlm.models.vision"),
        "transformers": transformers.__version__,
    }


def _numerics(trainer: lightning.Trainer, model: PanoramaVLM) -> dict[str, Any]:
    """Return what decides how the tower's sums are rounded."""
    device = model.device
    encoder = cast(Any, model.vision_backbone.encoder)
    on_gpu = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "machine": platform.machine(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "threads": 0 if on_gpu else torch.get_num_threads(),
        "precision": str(trainer.precision),
        "matrix products": torch.get_float32_matmul_precision(),
        "attention": encoder.config._attn_implementation,
    }
