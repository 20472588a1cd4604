"""What one stage trains with: its model, its data, its trainer, its description."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from rich.console import Console

from panovlm.checkpoint.documents.metadata import CheckpointMetadata, TrainingRecord
from panovlm.checkpoint.fields import flatten
from panovlm.checkpoint.loading.borrow import NOTHING, LeftOut
from panovlm.checkpoint.loading.load import load_checkpoint
from panovlm.checkpoint.saving.save import describe_model
from panovlm.config.schema import Settings, StageConfig
from panovlm.data.module import PanoramaData
from panovlm.data.samples import one_per_image
from panovlm.data.turns import all_turned
from panovlm.errors import ConfigError, MissingDependencyError
from panovlm.models.assemble import new_model
from panovlm.models.attention import FLASH, use_attention
from panovlm.models.compilation import check_compiler
from panovlm.models.language.chat import resolve_max_length
from panovlm.models.model import PanoramaVLM
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.training.background import BackgroundCheckpointIO
from panovlm.training.caches import feature_keepers, view_cache
from panovlm.training.checkpoints import CheckpointWriter
from panovlm.training.freeze import freeze, trainable_parts, widen
from panovlm.training.preflight import adapters_of, check_interval
from panovlm.training.progress import ProgressLines
from panovlm.training.reload_check import reader
from panovlm.training.rundir import checkpoint_stem, experiment_name
from panovlm.training.tables import StageTables, Tables
from panovlm.training.workers import worker_count

PLAIN = ("auto", "ddp")
"""Names of the strategy that copies the model to every process and averages the gradients."""


def stage_model(
    settings: Settings, name: str, tables: Tables, upstream: Path | None
) -> PanoramaVLM:
    """Return the model that a stage starts with, in training mode, the right parts trainable.

    Args:
        settings: the experiment.
        name: the stage.
        tables: a word tokenizer is made of their texts when one is needed.
        upstream: checkpoint to start from; ``None``: a new model.

    Raises:
        PanoVLMError: the model cannot be built or loaded, or nothing of it would be trained.
    """
    stage = settings.training.stage_configs[name]
    if upstream is None:
        recipe = settings.recipe()
        own = (recipe.system_messages.default, recipe.models.default_generation_prompt)
        model = new_model(settings, (text for part in (tables.texts(), own) for text in part))
    else:
        cpu = torch.device("cpu")
        paths = settings.paths
        given = paths.pretrained_dir is not None and upstream == Path(paths.pretrained_dir)
        model = load_checkpoint(
            upstream,
            device=cpu,
            overrides=_recipe_overrides(settings),
            weights=paths.pretrained_weights if given else None,
        )
    adapters = adapters_of(settings, name)
    if adapters is not None and not model.recipe.lora.use_lora:
        model.add_adapters(adapters)
    freeze(model, trainable_parts(name, stage))
    if settings.environment.precision != "bf16-true":
        widen(model)
    use_attention(model, settings.environment.attn_implementation, autocast=True)
    return model.train()


def stage_data(
    settings: Settings, name: str, model: PanoramaVLM, rows: StageTables
) -> PanoramaData:
    """Return the loaders of a stage, ready to use.

    Raises:
        DataError: an image cannot be read (when all are read ahead).
    """
    training, stage = settings.training, settings.training.stage_configs[name]
    reads_text = name != "vision"
    models = model.recipe.models
    fallback = models.vision_token_fallback_position
    shareable = models.training_placeholder or fallback == "prefix"
    if reads_text and not shareable and stage.questions_per_sample > 1:
        raise ConfigError(
            f"training.stage_configs.{name}.questions_per_sample is {stage.questions_per_sample}, "
            "but this model is trained with the vision tokens behind the text, where questions "
            "cannot share them; set it to 1."
        )
    chat = model.chat() if reads_text else None
    length = None
    if chat is not None and model.tokenizer is not None:
        setting = stage.max_text_length or models.max_text_length
        said = (turns for row in rows.train for turns in all_turned(row, training.yaw_turns))
        texts = map(chat.training_text, said)
        length = resolve_max_length(setting, model.tokenizer, texts)
        if models.fusion_text_limit is not None:  # nothing behind it would be read
            length = min(length, models.fusion_text_limit)
    data = PanoramaData(
        rows.train if reads_text else one_per_image(rows.train),
        rows.val if reads_text else one_per_image(rows.val),
        pipeline=ViewPipeline(model.recipe.image_processing),
        chat=chat,
        batch_size=stage.batch_size,
        max_length=length,
        questions_per_sample=stage.questions_per_sample if reads_text else 1,
        seed=settings.environment.seed,
        num_workers=worker_count(settings),
        augment=training.augment,
        cache_views=view_cache(settings),
        yaw_turns=training.yaw_turns,
        skip_unreadable=settings.data.skip_unreadable_images,
        stream_blocks=settings.data.stream_blocks,
        views_on=training.views_on,
    )
    data.setup("fit")
    return data


def check_attention(settings: Settings) -> None:
    """Refuse flash attention where it cannot compute what a stage asks for.

    Raises:
        ConfigError: training is in single precision, or shares views among questions, which needs
            a mask that flash attention does not take.
    """
    if settings.environment.attn_implementation != FLASH:
        return
    if _precision(settings) == "32-true":
        raise ConfigError(
            f"environment.attn_implementation {FLASH} computes in half precision only; set "
            "environment.precision to bf16-mixed on a CUDA GPU, or the attention to sdpa."
        )
    for name, stage in settings.training.stage_configs.items():
        if stage.questions_per_sample > 1 and name != "vision":
            raise ConfigError(
                f"training.stage_configs.{name}.questions_per_sample is "
                f"{stage.questions_per_sample}, but environment.attn_implementation {FLASH} cannot "
                "keep the questions about one panorama apart; set one to 1 or the other to sdpa."
            )


def optimizer_steps(name: str, stage: StageConfig, data: PanoramaData, processes: int) -> int:
    """Return the optimizer steps of a stage on so many training processes.

    Raises:
        ConfigError: validations would be further apart than an epoch is long.
    """
    batches = math.ceil(len(data.train_dataloader()) / processes)
    check_interval(name, stage, batches)
    return stage.epochs * math.ceil(batches / stage.accumulate_grad_batches)


def training_processes(settings: Settings) -> int:
    """Return how many processes train an experiment, on this machine and others together.

    Raises:
        ConfigError: the devices that it asks for are not there, or its settings do not go together,
            or torch cannot compile for them.
        MissingDependencyError: a package that it asks for is not installed.
    """
    if settings.training.wandb_project is not None and find_spec("wandb") is None:
        raise MissingDependencyError(
            "training.wandb_project needs the package wandb; install it (`pip install wandb`) or "
            "leave the setting out."
        )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = _trainer(settings, strategy=settings.environment.strategy, **quiet)
    if trainer.precision != _precision(settings):  # Lightning takes another one with a warning
        raise ConfigError(
            f"environment.precision is {settings.environment.precision}, which is for CUDA GPUs; "
            f"set it to {trainer.precision} or 32-true."
        )
    if settings.environment.compile:
        check_compiler(trainer.strategy.root_device)
    return trainer.world_size


def stage_trainer(
    settings: Settings,
    name: str,
    folder: Path,
    rows: StageTables,
    console: Console,
    *,
    processes: int,
    steps: int,
) -> lightning.Trainer:
    """Return Lightning's trainer for a stage of so many steps, in one of so many processes."""
    training, stage = settings.training, settings.training.stage_configs[name]
    stem = checkpoint_stem(settings, rows.train_files)
    io = BackgroundCheckpointIO()
    read_back = reader if training.reload_check else None
    callbacks: list[lightning.Callback] = [
        ProgressLines(console),
        CheckpointWriter(folder, stem, training.checkpoint_every_n_steps, io, read_back),
        *feature_keepers(settings, console),
    ]
    if console.is_terminal:
        callbacks.append(RichProgressBar(leave=False))
    if stage.patience and rows.val:
        callbacks.append(EarlyStopping("val_loss", patience=stage.patience))
    return _trainer(
        settings,
        strategy=_strategy(settings, processes),
        default_root_dir=folder,
        max_epochs=stage.epochs,
        accumulate_grad_batches=stage.accumulate_grad_batches,
        gradient_clip_val=stage.gradient_clip or None,
        val_check_interval=stage.val_check_interval,
        limit_val_batches=1.0 if rows.val else 0,
        num_sanity_val_steps=0,
        logger=_loggers(folder, training.wandb_project),
        callbacks=callbacks,
        plugins=[io],
        enable_progress_bar=console.is_terminal,
        use_distributed_sampler=False,
        log_every_n_steps=min(10, max(1, steps // 10)),
    )


def describer(
    model: PanoramaVLM,
    settings: Settings,
    name: str,
    rows: StageTables,
    upstream: Path | None,
    left_out: LeftOut = NOTHING,
) -> Callable[[int, int, float | None], CheckpointMetadata]:
    """Return the function that describes a checkpoint of a stage."""
    stage = settings.training.stage_configs[name]
    data = {
        "csv_train": list(rows.train_files),
        "train_weights": [table.weight for table in rows.weighted],
        "csv_val": list(rows.val_files),
        "csv_test": list(settings.data.csv_test),
        "data_dir": settings.paths.data_dir,
        "input": settings.data.input.model_dump(exclude_defaults=True),
        "train_rows": len(rows.train),
        "val_rows": len(rows.val),
    }

    def describe(epoch: int, step: int, val_loss: float | None) -> CheckpointMetadata:
        return describe_model(
            model,
            experiment_name=experiment_name(settings),
            stage=name,
            training=TrainingRecord(
                epoch=epoch,
                global_step=step,
                val_loss=val_loss,
                stage_config=stage.model_dump(mode="json"),
                data=data,
                upstream_checkpoint=str(upstream) if upstream else None,
            ),
            left_out=left_out,
        )

    return describe


def _trainer(settings: Settings, **arguments: Any) -> lightning.Trainer:
    """Return a trainer in the experiment's environment."""
    environment = settings.environment
    try:
        return lightning.Trainer(
            accelerator=environment.accelerator,
            devices=environment.devices,
            precision=_precision(settings),
            enable_model_summary=False,
            **arguments,
        )
    # TypeError: Lightning's answer to devices -1 on a CPU.
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        chosen = ", ".join(
            f"environment.{field} {getattr(environment, field)}"
            for field in ("accelerator", "devices", "strategy", "precision")
        )
        raise ConfigError(f"this machine cannot train with {chosen}: {error}") from error


def _loggers(folder: Path, wandb_project: str | None) -> list[Logger]:
    """Return the CSV and TensorBoard logs, and W&B when a project is named.

    A continued stage writes a new CSV file beside those before.
    """
    loggers: list[Logger] = [
        CSVLogger(folder, name="logs/csv"),
        TensorBoardLogger(folder, name="logs", version="tensorboard"),
    ]
    if wandb_project is not None:
        from lightning.pytorch.loggers import WandbLogger

        loggers.append(WandbLogger(project=wandb_project, save_dir=folder))
    return loggers


def _recipe_overrides(settings: Settings) -> dict[str, Any]:
    """Return the recipe fields that an experiment decides anew when it starts from a checkpoint.

    Backbones, tokenizer and adapters are those of the checkpoint.
    """
    kept = ("vision_config", "language_config", "vision_name", "language_model_name")
    kept = (*kept, "tokenizer_name", "layout", "vicreg_projector_dim", "vicreg_projector_hidden")
    return {
        name: value
        for name, value in flatten(settings.recipe()).items()
        if name.split(".")[-1] not in kept and not name.startswith("lora.") and value is not None
    }


def _strategy(settings: Settings, processes: int) -> str:
    """Return Lightning's strategy.

    Towers and the Q-Former bring parameters that no output depends on (pooling heads, the table of
    words); plain DDP waits for their gradients for ever.
    """
    chosen = settings.environment.strategy
    return "ddp_find_unused_parameters_true" if processes > 1 and chosen in PLAIN else chosen


def _precision(settings: Settings) -> Any:
    """Return Lightning's precision: bf16 autocast on a GPU that has it, else float32.

    Older GPUs only emulate it, which takes longer than float32.
    """
    chosen = settings.environment.precision
    if chosen != "auto":
        return chosen
    accelerated = settings.environment.accelerator in ("auto", "gpu") and torch.cuda.is_available()
    has_bf16 = accelerated and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if has_bf16 else "32-true"
