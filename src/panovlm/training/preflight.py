"""Faults of later stages, found before hours are spent on the first one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from panovlm.config.schema import LoRASettings, Settings, StageConfig
from panovlm.data.samples import group_rows, one_per_image
from panovlm.data.weights import epoch_length
from panovlm.errors import ConfigError
from panovlm.models.language.lora import check_targets
from panovlm.models.model import PanoramaVLM
from panovlm.training.freeze import last_blocks, trainable_parts
from panovlm.training.tables import Tables

SPLITTING = ("fsdp", "deepspeed")
"""Beginnings of the names of strategies that give every process a part of the weights only."""


def check_strategy(settings: Settings) -> None:
    """Refuse strategies under which another model than the one described would be trained.

    They flatten the weights, so that the optimizer cannot tell matrices, which decay, from biases,
    and convert buffers, such as the frequencies of rotary positions, to half precision. Lightning
    clips no gradients under them.

    Raises:
        ConfigError: the strategy is one of these.
    """
    chosen = settings.environment.strategy
    if chosen.startswith(SPLITTING):
        raise ConfigError(
            f"environment.strategy is {chosen}, which splits the model over the processes; that is "
            "not supported: weight decay and gradient clipping would go wrong, and rotary "
            "positions would be rounded. Choose auto or ddp. To save memory, lower batch_size and "
            "raise accumulate_grad_batches, train adapters (lora), or set "
            "models.language_quantization."
        )


def adapters_of(settings: Settings, name: str) -> LoRASettings | None:
    """Return the adapters that a stage trains, ``None`` where it adds none."""
    own = settings.training.stage_configs[name].lora
    adapters = own or (settings.lora if name == "finetune" else None)
    return adapters if adapters is not None and adapters.use_lora else None


def check_later_stages(
    model: PanoramaVLM, settings: Settings, names: Sequence[str], tables: Tables
) -> None:
    """Refuse settings of stages that are still to come where this model shows them to be wrong.

    Args:
        model: the model of the stage that is about to begin.
        settings: the experiment.
        names: the stages after that one.
        tables: the rows of all stages.

    Raises:
        ConfigError: a later stage asks for what the model or its tables do not have.
    """
    for name in names:
        stage, adapters = settings.training.stage_configs[name], adapters_of(settings, name)
        try:
            last_blocks(model, trainable_parts(name, stage).vision_blocks)
            if adapters is not None and not model.recipe.lora.use_lora:
                check_targets(model.language_model, adapters)
        except ConfigError as error:
            raise ConfigError(f"stage {name}: {error}") from error
        rows = tables.of(name).train
        if name == "vision":
            taken = one_per_image(rows)
        else:
            taken = [row[0] for row in group_rows(rows, stage.questions_per_sample, seed=0)]
        count = epoch_length([sample.weight for sample in taken])
        check_interval(name, stage, math.ceil(count / stage.batch_size))


def check_interval(name: str, stage: StageConfig, batches: int) -> None:
    """Refuse validations that would be further apart than an epoch is long.

    Args:
        name: the stage.
        stage: its settings.
        batches: batches of an epoch in one training process.

    Raises:
        ConfigError: they would.
    """
    interval = stage.val_check_interval
    if isinstance(interval, int) and interval > batches:
        raise ConfigError(
            f"training.stage_configs.{name}.val_check_interval is {interval}, but an epoch has "
            f"{batches} batches; give a number of batches from 1 to {batches}, or a fraction of an "
            "epoch up to 1.0."
        )
