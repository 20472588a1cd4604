"""When checkpoints are written during training, and what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning
from lightning.pytorch.callbacks import Checkpoint
from torch.optim import Optimizer

from panovlm.atomic import link_or_copy
from panovlm.checkpoint.documents.metadata import CheckpointMetadata
from panovlm.checkpoint.saving.save import write_sidecar, write_tokenizer
from panovlm.training.background import BackgroundCheckpointIO
from panovlm.training.module import StageModule
from panovlm.training.random_state import random_state, set_random_state
from panovlm.training.rundir import BEST, LAST, checkpoint_name


class CheckpointWriter(Checkpoint):
    """Keeps the best checkpoint by validation loss, and the last one for resuming.

    Files are written while training goes on (see :class:`BackgroundCheckpointIO`), which waits for
    them before it changes a weight. Weights are written before the document beside them, so that
    the document never describes a file that is not there yet.

    A run that goes on from ``last.ckpt`` ends with the very weights of one that was never stopped.
    So it is written only where nothing is under way: not between the batches whose gradients are
    accumulated, not between a step and the validation that is due after it (Lightning would leave
    that validation out), and, being a ``Checkpoint`` to Lightning, after every other callback has
    had its turn. It also holds the states of the random generators, which Lightning does not keep.

    Args:
        folder: the stage's run folder.
        stem: fixed part of the file names.
        every_n_steps: optimizer steps between two writes of ``last.ckpt``.
        io: what writes the files of the trainer.
        reader: called before a file is written; what it returns is called with the file once that
            and its document are there, possibly in another thread.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        every_n_steps: int,
        io: BackgroundCheckpointIO,
        reader: Callable[[StageModule], Callable[[Path], None]] | None = None,
    ) -> None:
        self.folder = folder
        self.stem = stem
        self.every_n_steps = every_n_steps
        self.io = io
        self.reader = reader
        self.best_loss: float | None = None
        self._module: StageModule | None = None
        self._restored: dict[str, Any] | None = None
        self._step = 0
        self._due = False

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Remember the module."""
        assert isinstance(pl_module, StageModule)
        self._module = pl_module

    def state_dict(self) -> dict[str, Any]:
        """Return what ``last.ckpt`` must remember besides what Lightning does."""
        module = self._stage_module()
        return {
            "best_loss": self.best_loss,
            "val_loss": module.last_val_loss,
            "stopped": bool(module.trainer.should_stop),
            "random": random_state(module.device),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.best_loss = state_dict["best_loss"]
        self._stage_module().last_val_loss = state_dict["val_loss"]
        self._restored = state_dict

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Put the random generators where they were, once nothing else draws from them."""
        self._step = trainer.global_step
        if self._restored is not None:
            set_random_state(self._restored["random"], pl_module.device)
            trainer.should_stop = self._restored["stopped"]
            self._restored = None

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write ``last.ckpt`` every few optimizer steps."""
        if trainer.global_step == self._step:  # gradients are being accumulated
            return
        self._step = trainer.global_step
        self._due = self._due or self._step % self.every_n_steps == 0
        interval = cast("int", trainer.val_check_batch)
        validates = trainer.enable_validation and (batch_idx + 1) % interval == 0
        if self._due and not validates and not trainer.is_last_batch:
            self._write_last(trainer)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Keep the checkpoint if it is the best so far, and write ``last.ckpt`` if that is due."""
        if trainer.sanity_checking or "val_loss" not in trainer.callback_metrics:
            return
        module = self._stage_module()
        loss = float(trainer.callback_metrics["val_loss"])
        module.last_val_loss = loss if math.isfinite(loss) else None
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self._write_best(trainer, module, loss)
        if self._due and not trainer.is_last_batch:
            self._write_last(trainer)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write ``last.ckpt`` at the end of every epoch."""
        self._write_last(trainer)

    def on_before_optimizer_step(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        optimizer: Optimizer,
    ) -> None:
        """Let weights change only once they are written."""
        self.io.wait()

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """End with everything written, for every process."""
        self.io.wait()
        trainer.strategy.barrier("checkpoints")

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        """Finish what is being written, also when training stops."""
        self.io.settle(exception)

    def _write_best(self, trainer: lightning.Trainer, module: StageModule, loss: float) -> None:
        """Write the new best file, point ``best.ckpt`` to it, then remove the old one."""
        name = checkpoint_name(self.stem, trainer.current_epoch, loss)
        self.best_loss = loss
        read_back = self._reader(module)
        trainer.save_checkpoint(self.folder / name, weights_only=True)
        if trainer.is_global_zero:
            self.io.then(partial(self._keep_best, name, module, module.document, read_back))

    def _keep_best(
        self,
        name: str,
        module: StageModule,
        document: CheckpointMetadata | None,
        read_back: Callable[[Path], None],
    ) -> None:
        link_or_copy(self.folder / name, self.folder / BEST)
        for old in self.folder.iterdir():
            if old.name.startswith(f"{self.stem}_epoch") and old.name != name:
                old.unlink()
        self._describe(module, document)
        read_back(self.folder / name)

    def _write_last(self, trainer: lightning.Trainer) -> None:
        """Write the whole training state."""
        self._due = False
        module = self._stage_module()
        read_back = self._reader(module)
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        if trainer.is_global_zero:
            self.io.then(partial(self._keep_last, module, module.document, read_back))

    def _keep_last(
        self,
        module: StageModule,
        document: CheckpointMetadata | None,
        read_back: Callable[[Path], None],
    ) -> None:
        if not (self.folder / BEST).exists():
            self._describe(module, document)
        read_back(self.folder / LAST)

    def _describe(self, module: StageModule, document: CheckpointMetadata | None) -> None:
        """Write the document and the tokenizer of a file beside it."""
        assert document is not None
        write_sidecar(self.folder, document)
        write_tokenizer(self.folder, module.model)

    def _reader(self, module: StageModule) -> Callable[[Path], None]:
        """Return what reads back the file that is written next, with the weights of this moment."""
        return (lambda path: None) if self.reader is None else self.reader(module)

    def _stage_module(self) -> StageModule:
        assert self._module is not None
        return self._module
