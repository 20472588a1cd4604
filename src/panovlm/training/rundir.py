"""Names of experiments, run folders and checkpoint files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from panovlm.config.schema import Settings

BEST = "best.ckpt"
LAST = "last.ckpt"


def experiment_name(settings: Settings) -> str:
    """Return the experiment's name: the given one, else the prefix, else made from the parts.

    The made-up form is ``{VISION}_{LM}_{RESAMPLER}_{CROP}``, with ``_PE`` when positions are on.
    """
    given = settings.experiment.name
    if given and given not in ("auto", "{auto}") and not settings.experiment.auto_name:
        return given
    if settings.training.prefix:
        return settings.training.prefix
    models = settings.models
    vision = _last_part(models.vision_name).split("-")
    tower = "-".join(vision[: 2 if vision[0].lower().startswith("siglip") else 1])
    language = re.sub(r"[^A-Za-z0-9]", "", _last_part(models.language_model_name).split("-")[0])
    parts = [tower, language, models.resampler_type, settings.image_processing.crop_strategy]
    parts += ["PE"] if models.use_projection_positional_encoding else []
    return "_".join(part.upper() if part != "PE" else part for part in parts)


def stage_folder(settings: Settings, stage: str) -> Path:
    """Return ``{runs_dir}/{experiment}/{stage}/{crop}_{resampler}``."""
    crop = settings.image_processing.crop_strategy.replace("_", "-")
    leaf = f"{crop}_{settings.models.resampler_type}"
    return Path(settings.paths.runs_dir) / experiment_name(settings) / stage / leaf


def checkpoint_stem(settings: Settings, tables: Sequence[str]) -> str:
    """Return the fixed part of a checkpoint's file name.

    ``{vision}_{resampler}_{crop}_{dataset}``, where vision is the first part of the tower's name,
    ten characters at most, and dataset the stem of the first table (``_plusN`` for N more).
    """
    vision = _last_part(settings.models.vision_name).split("-")[0][:10]
    dataset = Path(tables[0]).stem if tables else "data"
    if len(tables) > 1:
        dataset += f"_plus{len(tables) - 1}"
    crop = settings.image_processing.crop_strategy
    return f"{vision}_{settings.models.resampler_type}_{crop}_{dataset}"


def checkpoint_name(stem: str, epoch: int, loss: float) -> str:
    """Return the file name of a checkpoint that became the best one."""
    return f"{stem}_epoch{epoch:02d}_loss{loss:.4f}.ckpt"


def move_aside(folder: Path) -> Path | None:
    """Rename an experiment's folder out of the way of a new run; nothing is deleted.

    Returns:
        The new name, or ``None`` when there was no folder.
    """
    if not folder.exists():
        return None
    number = 1
    while (target := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(target)
    return target


def _last_part(name: str) -> str:
    return name.rstrip("/").split("/")[-1]
