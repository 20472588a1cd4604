"""What training keeps on disk, as the settings say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from panovlm.config.schema import Settings
from panovlm.data.kept_views import OnDisk, on_disk
from panovlm.data.store import Store
from panovlm.errors import ConfigError
from panovlm.training.features import FeatureKeeper
from panovlm.training.freeze import trainable_parts
from panovlm.training.workers import worker_count


def view_cache(settings: Settings) -> bool | OnDisk:
    """Return whether views are kept in memory, or where on disk."""
    return on_disk(settings) or settings.training.cache_views is True


def feature_keepers(settings: Settings, console: Console) -> list[FeatureKeeper]:
    """Return what completes the features before a stage, if they are to be kept."""
    if not settings.training.cache_features:
        return []
    store = Store(Path(settings.paths.cache_dir), "features")
    limit, workers = settings.training.cache_limit, worker_count(settings)
    return [FeatureKeeper(store, limit, workers, console)]


def check_frozen(settings: Settings, stages: Sequence[str]) -> None:
    """Refuse to keep features where the tower trains.

    Raises:
        ConfigError: a stage trains the tower, or part of it.
    """
    if not settings.training.cache_features:
        return
    for name in stages:
        blocks = trainable_parts(name, settings.training.stage_configs[name]).vision_blocks
        if blocks:
            raise ConfigError(
                "training.cache_features keeps what a frozen vision tower computes, but stage "
                f"{name} trains the tower (training.stage_configs.{name}.trainable.vision_blocks "
                f"is {blocks}). Set that to 0, or switch the cache off; stages that leave the "
                "tower as it is can be trained with it on their own (--stage)."
            )
