"""Training an experiment: its stages one after the other, each starting from the one before."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from rich.console import Console

from panovlm.checkpoint.load import load_checkpoint
from panovlm.checkpoint.locate import CONFIG, locate
from panovlm.checkpoint.metadata import CheckpointMetadata, TrainingRecord
from panovlm.checkpoint.save import describe_model
from panovlm.config.schema import Settings, StageConfig
from panovlm.data.module import PanoramaData
from panovlm.data.samples import Sample, read_tables
from panovlm.data.synthetic import write_scenes
from panovlm.errors import CheckpointError, DataError
from panovlm.models.assemble import new_model
from panovlm.models.language.chat import resolve_max_length
from panovlm.models.model import PanoramaVLM
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.training.checkpoints import AtomicCheckpointIO, CheckpointWriter
from panovlm.training.freeze import counts, freeze, table, trainable_parts
from panovlm.training.module import StageModule
from panovlm.training.progress import ProgressLines
from panovlm.training.rundir import (
    BEST,
    LAST,
    checkpoint_stem,
    experiment_name,
    move_aside,
    stage_folder,
)
from panovlm.training.state import StateFile


@dataclass(frozen=True)
class StageTables:
    """The rows of one stage, and the files that they came from."""

    train_files: tuple[str, ...]
    val_files: tuple[str, ...]
    train: Sequence[Sample]
    val: Sequence[Sample]


def train(
    settings: Settings,
    *,
    config_file: Path | None = None,
    config_text: bytes | None = None,
    stages: Sequence[str] | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Path:
    """Train the stages of an experiment.

    Args:
        settings: the experiment.
        config_file: its YAML file, copied into every run folder.
        config_text: what to write there instead, when the settings differ from the file.
        stages: stages to run; all of the experiment's when absent.
        resume: continue an interrupted run: finished stages are skipped, the current one goes on
            from its last checkpoint. Otherwise an earlier run of this name is moved aside.
        console: where the progress is told.

    Returns:
        The run folder of the last stage.

    Raises:
        PanoVLMError: a setting, a table, an image or a checkpoint cannot be used; tables are read
            before anything is trained.
    """
    run = _Run(settings, config_file, config_text, console or Console())
    return run.stages(tuple(stages or settings.training.stages), resume=resume)


class _Run:
    """One call of :func:`train`."""

    def __init__(
        self,
        settings: Settings,
        config_file: Path | None,
        config_text: bytes | None,
        console: Console,
    ) -> None:
        self.settings = settings
        self.config_file = config_file
        self.config_text = config_text
        self.console = console
        self.state = StateFile(settings)

    def stages(self, names: Sequence[str], *, resume: bool) -> Path:
        """Run stages; return the folder of the last."""
        settings = self.settings
        if settings.environment.threads is not None:
            torch.set_num_threads(settings.environment.threads)
        if settings.data.synthetic is not None:
            with self.console.status("writing synthetic scenes"):
                write_scenes(settings.data.synthetic)
        tables = {name: self._tables(name) for name in names}
        if not resume:
            self._make_room(names)
        before: Path | None = None
        if names[0] != settings.training.stages[0]:
            before = self._stage_before(names[0])
        for name in names:
            folder = stage_folder(settings, name)
            if resume and self.state.read().is_completed(name):
                self.console.print(f"stage {name}: complete, skipped")
            else:
                self._stage(name, tables, folder, before, resume=resume)
            before = folder
        assert before is not None
        return before

    def _tables(self, name: str) -> StageTables:
        """Read the rows of a stage."""
        data, own = self.settings.data, self.settings.training.stage_configs[name].data
        train_files = (own.csv_train if own else ()) or data.csv_train
        val_files = (own.csv_val if own else ()) or data.csv_val
        if not train_files:
            raise DataError(
                f"stage {name} has no training table; set data.csv_train, or "
                f"training.stage_configs.{name}.data.csv_train."
            )
        base = self.settings.paths.data_dir
        check = not data.skip_unreadable_images
        return StageTables(
            train_files,
            val_files,
            read_tables(train_files, data_dir=base, check_images=check),
            read_tables(val_files, data_dir=base, check_images=check),
        )

    def _make_room(self, names: Sequence[str]) -> None:
        """Move an earlier run of the same name out of the way."""
        interrupted = any(s.status == "running" for s in self.state.read().stages.values())
        everything = set(names) >= set(self.settings.training.stages)
        folder = Path(self.settings.paths.runs_dir) / experiment_name(self.settings)
        places = [folder] if everything else [stage_folder(self.settings, n) for n in names]
        for place in places:
            moved = move_aside(place)
            if moved is not None:
                hint = " (it was interrupted; --resume would have continued it)"
                self.console.print(f"earlier run moved to {moved}{hint if interrupted else ''}")
        if everything:
            self.state.clear()

    def _stage_before(self, name: str) -> Path | None:
        """Return the folder that a later stage starts from when it is run alone."""
        order = self.settings.training.stages
        if name not in order:
            return None
        folder = stage_folder(self.settings, order[order.index(name) - 1])
        if not folder.is_dir():
            raise CheckpointError(
                f"stage {name} starts from stage {order[order.index(name) - 1]}, but {folder} "
                "does not exist; train that stage first, or all of them."
            )
        return folder

    def _stage(
        self,
        name: str,
        tables: dict[str, StageTables],
        folder: Path,
        before: Path | None,
        *,
        resume: bool,
    ) -> None:
        """Train one stage."""
        lightning.seed_everything(self.settings.environment.seed, workers=True, verbose=False)
        stage = self.settings.training.stage_configs[name]
        model = self._model(name, stage, tables, before)
        freeze(model, trainable_parts(name, stage))
        self.console.print(table(counts(model), f"stage {name}: {folder}"))
        folder.mkdir(parents=True, exist_ok=True)
        self._copy_config(folder)
        self.state.begin(name, folder)
        rows = tables[name]
        module = StageModule(
            model,
            stage=name,
            settings=stage,
            describe=_describer(model, self.settings, name, rows, before),
        )
        last = folder / LAST
        going_on = resume and last.is_file()
        if going_on:
            self.console.print(f"stage {name}: continues from {last}")
        trainer = self._trainer(
            stage, folder, checkpoint_stem(self.settings, rows.train_files), rows
        )
        trainer.fit(
            module,
            datamodule=self._data(model, stage, rows, name),
            ckpt_path=str(last) if going_on else None,
            weights_only=True,
        )
        if trainer.interrupted:
            raise KeyboardInterrupt
        best = BEST if (folder / BEST).exists() else LAST
        self.console.print(f"stage {name}: done, {folder / best}")
        self.state.complete(name)

    def _model(
        self, name: str, stage: StageConfig, tables: dict[str, StageTables], before: Path | None
    ) -> PanoramaVLM:
        """Return the model that a stage starts with."""
        upstream = before or self.settings.paths.pretrained_dir
        if upstream is None:
            texts = [text for rows in tables.values() for text in _texts(rows.train)]
            recipe = self.settings.recipe()
            texts += [recipe.system_messages.default, recipe.models.default_generation_prompt]
            model = new_model(self.settings, texts)
        else:
            path = Path(upstream)
            self.console.print(f"stage {name}: starts from {locate(path).checkpoint}")
            model = load_checkpoint(
                path, device=torch.device("cpu"), overrides=_recipe_overrides(self.settings)
            )
        lora = stage.lora or (self.settings.lora if name == "finetune" else None)
        if lora is not None and lora.use_lora and not model.recipe.lora.use_lora:
            model.add_adapters(lora)
        return model.train()

    def _data(
        self, model: PanoramaVLM, stage: StageConfig, rows: StageTables, name: str
    ) -> PanoramaData:
        """Return the loaders of a stage."""
        training = self.settings.training
        needs_text = name != "vision"
        chat = model.chat() if needs_text else None
        length = None
        if chat is not None and model.tokenizer is not None:
            setting = stage.max_text_length or model.recipe.models.max_text_length
            joined = (chat.training_text(sample.turns) for sample in rows.train)
            length = resolve_max_length(setting, model.tokenizer, joined)
        return PanoramaData(
            rows.train if needs_text else _one_per_image(rows.train),
            rows.val if needs_text else _one_per_image(rows.val),
            pipeline=ViewPipeline(model.recipe.image_processing),
            chat=chat,
            batch_size=stage.batch_size,
            max_length=length,
            questions_per_sample=stage.questions_per_sample if needs_text else 1,
            seed=self.settings.environment.seed,
            num_workers=training.num_workers,
            augment=training.augment,
            cache_views=training.cache_views,
            skip_unreadable=self.settings.data.skip_unreadable_images,
        )

    def _trainer(
        self, stage: StageConfig, folder: Path, stem: str, rows: StageTables
    ) -> lightning.Trainer:
        """Return Lightning's trainer for a stage."""
        environment, training = self.settings.environment, self.settings.training
        writer = CheckpointWriter(folder, stem, training.checkpoint_every_n_steps)
        callbacks: list[lightning.Callback] = [writer, ProgressLines(self.console)]
        if self.console.is_terminal:
            callbacks.append(RichProgressBar(leave=False))
        if stage.patience and rows.val:
            callbacks.append(EarlyStopping("val_loss", patience=stage.patience))
        return lightning.Trainer(
            default_root_dir=folder,
            accelerator=environment.accelerator,
            devices=environment.devices,
            strategy=environment.strategy,
            precision=_precision(self.settings),
            max_epochs=stage.epochs,
            accumulate_grad_batches=stage.accumulate_grad_batches,
            gradient_clip_val=stage.gradient_clip or None,
            val_check_interval=stage.val_check_interval,
            limit_val_batches=1.0 if rows.val else 0,
            num_sanity_val_steps=0,
            logger=self._loggers(folder),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=self.console.is_terminal,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=10,
        )

    def _loggers(self, folder: Path) -> list[Logger]:
        """Return the CSV and TensorBoard logs, and W&B when a project is named."""
        loggers: list[Logger] = [
            CSVLogger(folder, name="logs", version="csv"),
            TensorBoardLogger(folder, name="logs", version="tensorboard"),
        ]
        project = self.settings.training.wandb_project
        if project is not None:
            from lightning.pytorch.loggers import WandbLogger

            loggers.append(WandbLogger(project=project, save_dir=folder))
        return loggers

    def _copy_config(self, folder: Path) -> None:
        """Put the experiment's YAML beside its checkpoints."""
        if self.config_text is not None:
            (folder / CONFIG).write_bytes(self.config_text)
        elif self.config_file is not None:
            shutil.copyfile(self.config_file, folder / CONFIG)


def _describer(
    model: PanoramaVLM, settings: Settings, name: str, rows: StageTables, before: Path | None
) -> Any:
    """Return the function that describes a checkpoint of a stage."""
    stage = settings.training.stage_configs[name]
    data = {
        "csv_train": list(rows.train_files),
        "csv_val": list(rows.val_files),
        "csv_test": list(settings.data.csv_test),
        "data_dir": settings.paths.data_dir,
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
                upstream_checkpoint=str(before) if before else None,
            ),
        )

    return describe


def _recipe_overrides(settings: Settings) -> dict[str, Any]:
    """Return the recipe fields that an experiment decides anew when it starts from a checkpoint.

    Backbones, tokenizer and adapters are those of the checkpoint.
    """
    from panovlm.checkpoint.fields import flatten

    kept = ("vision_config", "language_config", "vision_name", "language_model_name")
    kept = (*kept, "tokenizer_name", "layout", "vicreg_projector_dim", "vicreg_projector_hidden")
    return {
        name: value
        for name, value in flatten(settings.recipe()).items()
        if name.split(".")[-1] not in kept and not name.startswith("lora.") and value is not None
    }


def _texts(samples: Sequence[Sample]) -> list[str]:
    return [text for sample in samples for turn in sample.turns for text in turn]


def _one_per_image(samples: Sequence[Sample]) -> list[Sample]:
    """Return one row per panorama, for a stage that reads no text."""
    return list({sample.image: sample for sample in reversed(samples)}.values())[::-1]


def _precision(settings: Settings) -> Any:
    """Return Lightning's precision: bf16 autocast on a GPU that has it, else float32."""
    chosen = settings.environment.precision
    if chosen != "auto":
        return chosen
    accelerated = settings.environment.accelerator in ("auto", "gpu") and torch.cuda.is_available()
    return "bf16-mixed" if accelerated and torch.cuda.is_bf16_supported() else "32-true"
