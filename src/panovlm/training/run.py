"""Training an experiment: its stages one after the other, each starting from the one before."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from panovlm.atomic import remove_leftovers, write_bytes
from panovlm.checkpoint.find.locate import CONFIG, locate
from panovlm.checkpoint.loading.borrow import NOTHING, find_left_out
from panovlm.config.schema import STAGES, Settings
from panovlm.data.module import PanoramaData
from panovlm.data.synthetic import write_scenes
from panovlm.errors import CheckpointError, ConfigError, PanoVLMError
from panovlm.models.compilation import compile_layers, is_failure, refusal
from panovlm.models.mamba import backends
from panovlm.training.caches import check_frozen
from panovlm.training.freeze import counts, table
from panovlm.training.module import StageModule
from panovlm.training.overlap import check_batch, check_overlap
from panovlm.training.preflight import check_later_stages, check_strategy
from panovlm.training.reload_check import check_before
from panovlm.training.resume import check_unchanged
from panovlm.training.rundir import BEST, LAST, experiment_name, move_aside, stage_folder
from panovlm.training.stage import (
    check_attention,
    describer,
    optimizer_steps,
    stage_data,
    stage_model,
    stage_trainer,
    training_processes,
)
from panovlm.training.state import StateFile
from panovlm.training.tables import Tables


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
            and the first model is built before an earlier run is touched.
        KeyboardInterrupt: training was interrupted; what was written before is complete.
    """
    text = config_text
    if text is None and config_file is not None:
        text = config_file.read_bytes()
    run = _Run(settings, text, console or Console())
    return run.stages(tuple(stages or settings.training.stages), resume=resume)


def leads() -> bool:
    """Tell whether this is the first of the training processes, the one that speaks."""
    return cast(Any, rank_zero_only).rank == 0


class _Run:
    """One call of :func:`train`.

    With several training processes each of them makes this call. The first one alone moves files,
    keeps the record of the stages and speaks.
    """

    def __init__(self, settings: Settings, config: bytes | None, console: Console) -> None:
        self.settings = settings
        self.config = config
        self.leads = leads()
        self.console = console if self.leads else Console(quiet=True)
        self.state = StateFile(settings)
        self.tables = Tables(settings)
        self.processes = 1
        self.reloaded = False

    def stages(self, names: Sequence[str], *, resume: bool) -> Path:
        """Run stages; return the folder of the last."""
        settings = self.settings
        if not settings.training.stages:
            raise ConfigError(f"training.stages is empty; name some of {', '.join(STAGES)}.")
        unknown = [name for name in names if name not in settings.training.stages]
        if unknown or not names:
            raise ConfigError(
                f"there is no stage {', '.join(unknown) or '(none was named)'}; the experiment has "
                f"{', '.join(settings.training.stages)}."
            )
        folders = {name: stage_folder(settings, name) for name in names}
        done = [name for name in names if resume and self._is_complete(name, folders[name])]
        if done == list(names):
            self._tell(f"nothing to do: {', '.join(names)} complete")
            return folders[names[-1]]
        if settings.environment.threads is not None:
            torch.set_num_threads(settings.environment.threads)
        if "vision" in names and "vision" not in done:
            check_overlap(settings)
            check_batch(settings)
        backends.use(settings.environment.scan_backend)
        check_strategy(settings)
        check_attention(settings)
        check_frozen(settings, [name for name in names if name not in done])
        self.processes = training_processes(settings)
        if settings.data.synthetic is not None:
            with self.console.status("writing synthetic scenes"):
                write_scenes(settings.data.synthetic)
        for name in names:
            self.tables.of(name)
        upstream = self._upstream_of_first(names[0])
        begun = [name for name in names if (folders[name] / LAST).is_file()]
        if resume and not begun:
            self._tell("no earlier run to continue; starting from the beginning")
        for name in names:
            if name in done:
                self._tell(f"stage {name}: complete, skipped")
            else:
                room_for = names if name == names[0] and not resume else ()
                later = names[names.index(name) + 1 :]
                self._stage(
                    name, folders[name], upstream, resume=resume, room_for=room_for, later=later
                )
            upstream = folders[name]
        return folders[names[-1]]

    def _stage(
        self,
        name: str,
        folder: Path,
        upstream: Path | None,
        *,
        resume: bool,
        room_for: Sequence[str],
        later: Sequence[str],
    ) -> None:
        """Train one stage; an earlier run gives way only when everything is ready."""
        settings, rows = self.settings, self.tables.of(name)
        lightning.seed_everything(settings.environment.seed, workers=True, verbose=False)
        if upstream is not None:
            self._tell(f"stage {name}: starts from {locate(upstream).checkpoint}")
        model = stage_model(settings, name, self.tables, upstream)
        for note in model.resolution.notes if model.resolution else ():
            self._tell(f"stage {name}: {note}")
        if settings.environment.compile:
            layers = ", ".join(f"{n} {kind}" for kind, n in compile_layers(model).items())
            self._tell(f"stage {name}: compiles {layers}; its first steps take longer for that")
        data = stage_data(settings, name, model, rows)
        for note in data.notes:
            self._tell(f"stage {name}: {note}")
        stage = settings.training.stage_configs[name]
        steps = optimizer_steps(name, stage, data, self.processes)
        check_later_stages(model, settings, later, self.tables)
        left_out = find_left_out(model) if settings.training.save == "trainable" else NOTHING
        for reference in left_out.references.values():
            self._tell(f"stage {name}: leaves frozen weights to {reference.name}")
        describe = describer(model, settings, name, rows, upstream, left_out)
        last = folder / LAST if resume and (folder / LAST).is_file() else None
        if last is not None:
            check_unchanged(last, describe(0, 0, None))
            self._tell(f"stage {name}: continues from {last}")
        module = StageModule(
            model,
            stage=name,
            settings=stage,
            total_steps=steps,
            describe=describe,
            left_out=left_out,
        )
        if self.leads:
            self._check_reload(module)
            self._make_room(room_for)
            self._begin(name, folder)
        self._tell(f"stage {name}: writes to {folder}")
        self.console.print(table(counts(model), f"stage {name}"))
        trainer = stage_trainer(
            settings, name, folder, rows, self.console, processes=self.processes, steps=steps
        )
        self._fit(trainer, module, data, last)
        best = BEST if (folder / BEST).exists() else LAST
        self._tell(f"stage {name}: done, {folder / best}")
        if self.leads:
            self.state.complete(name)

    def _fit(
        self,
        trainer: lightning.Trainer,
        module: StageModule,
        data: PanoramaData,
        last: Path | None,
    ) -> None:
        """Train, and answer what stops it from outside."""
        saved = Path(trainer.default_root_dir) / LAST
        going_on = f"--resume continues from {saved}"
        try:
            trainer.fit(
                module, datamodule=data, ckpt_path=str(last) if last else None, weights_only=True
            )
        except torch.OutOfMemoryError as error:
            raise PanoVLMError(
                f"stage {module.stage} does not fit into the accelerator's memory "
                f"({str(error).splitlines()[0]}). Lower batch_size, raise accumulate_grad_batches "
                "by the same factor, and train the stage anew."
            ) from error
        except (SystemExit, RuntimeError) as stop:
            # Who ends a job often signals all its processes. Then the end of a loader or of a C++
            # compiler can be noticed, as a RuntimeError, before Lightning answers the signal.
            terminated = trainer.received_sigterm
            if self.settings.environment.compile and is_failure(stop) and not terminated:
                raise refusal(stop) from stop
            if not terminated and not (isinstance(stop, SystemExit) and trainer.interrupted):
                raise
            where = going_on if saved.is_file() else "nothing was saved yet"
            self._tell(f"stage {module.stage}: stopped at step {trainer.global_step}; {where}")
            if terminated:
                raise SystemExit(128 + signal.SIGTERM) from stop
            # Lightning answers Ctrl-C by leaving the process, and turns a deaf ear to it from then.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from stop

    def _is_complete(self, name: str, folder: Path) -> bool:
        """Tell whether a stage was finished.

        Raises:
            CheckpointError: it was, but what it made is gone.
        """
        if not self.state.read().is_completed(name):
            return False
        if not (folder / BEST).is_file() and not (folder / LAST).is_file():
            raise CheckpointError(
                f"{self.state.path} calls stage {name} complete, but {folder} holds no checkpoint; "
                "restore it, or train the stage anew without --resume."
            )
        return True

    def _upstream_of_first(self, name: str) -> Path | None:
        """Return what the first stage of this call starts from.

        Raises:
            CheckpointError: it is a later stage, and the one before it was not trained.
        """
        order = self.settings.training.stages
        if name == order[0]:
            given = self.settings.paths.pretrained_dir
            return None if given is None else Path(given)
        before = order[order.index(name) - 1]
        folder = stage_folder(self.settings, before)
        if not folder.is_dir():
            raise CheckpointError(
                f"stage {name} starts from stage {before}, but {folder} does not exist; train that "
                "stage first, or all of them."
            )
        return folder

    def _check_reload(self, module: StageModule) -> None:
        """Find out whether the stage's checkpoints can be loaded; once in a new process."""
        if not self.settings.training.reload_check:
            return
        with self.console.status("loading a checkpoint as a reader would"):
            runs = Path(self.settings.paths.runs_dir)
            check_before(module, runs, fresh_process=not self.reloaded)
        where = "here" if self.reloaded else "in a new process"
        self._tell(f"stage {module.stage}: its checkpoints load ({where}, before the first step)")
        self.reloaded = True

    def _make_room(self, names: Sequence[str]) -> None:
        """Move the earlier run of some stages out of the way; nothing is deleted."""
        begun = self.state.read().stages
        interrupted = any(s.status == "running" for n, s in begun.items() if n in names)
        everything = set(names) >= set(self.settings.training.stages)
        folder = Path(self.settings.paths.runs_dir) / experiment_name(self.settings)
        places = [folder] if everything else [stage_folder(self.settings, n) for n in names]
        self.state.forget(names)
        for place in places if names else ():
            moved = move_aside(place)
            if moved is not None:
                hint = " (it was interrupted; --resume would have continued it)"
                self._tell(f"earlier run moved to {moved}{hint if interrupted else ''}")

    def _begin(self, name: str, folder: Path) -> None:
        """Make the run folder of a stage, with the experiment's YAML in it."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the run folder {folder} cannot be made: {error.strerror}; choose another "
                "paths.runs_dir."
            ) from error
        remove_leftovers(folder)
        if self.config is not None:
            write_bytes(folder / CONFIG, self.config)
        self.state.begin(name, folder)

    def _tell(self, text: str) -> None:
        """Print a line as it is, whatever the width of the terminal."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
