"""Writing checkpoints during training so that no reader ever meets half a file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from panovlm.atomic import atomic_write, link_or_copy
from panovlm.checkpoint.saving.save import write_sidecar, write_tokenizer
from panovlm.training.module import StageModule
from panovlm.training.random_state import random_state, set_random_state
from panovlm.training.rundir import BEST, LAST, checkpoint_name


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's file writer, through a temporary file, fsync and rename."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write ``checkpoint`` to ``path`` as a whole or not at all.

        Raises:
            CheckpointError: the file cannot be written; the one that was there is intact.
        """
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)


class CheckpointWriter(Checkpoint):
    """Keeps the best checkpoint by validation loss, and the last one for resuming.

    Weights are written before the document beside them, so that the document never describes a
    file that is not there yet.

    A run that goes on from ``last.ckpt`` ends with the very weights of one that was never stopped.
    So it is written only where nothing is under way: not between the batches whose gradients are
    accumulated, not between a step and the validation that is due after it (Lightning would leave
    that validation out), and, being a ``Checkpoint`` to Lightning, after every other callback has
    had its turn. It also holds the states of the random generators, which Lightning does not keep.

    Args:
        folder: the stage's run folder.
        stem: fixed part of the file names.
        every_n_steps: optimizer steps between two writes of ``last.ckpt``.
        after_write: called with every file that was written, once its document is.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        every_n_steps: int,
        after_write: Callable[[Path, StageModule], None] | None = None,
    ) -> None:
        self.folder = folder
        self.stem = stem
        self.every_n_steps = every_n_steps
        self.after_write = after_write
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
            "random": random_state(),
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
            set_random_state(self._restored["random"])
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

    def _write_best(self, trainer: lightning.Trainer, module: StageModule, loss: float) -> None:
        """Write the new best file, point ``best.ckpt`` to it, then remove the old one."""
        name = checkpoint_name(self.stem, trainer.current_epoch, loss)
        self.best_loss = loss
        trainer.save_checkpoint(self.folder / name, weights_only=True)
        if not trainer.is_global_zero:
            return
        link_or_copy(self.folder / name, self.folder / BEST)
        for old in self.folder.iterdir():
            if old.name.startswith(f"{self.stem}_epoch") and old.name != name:
                old.unlink()
        self._describe(module)
        self._read_back(self.folder / name)

    def _write_last(self, trainer: lightning.Trainer) -> None:
        """Write the whole training state."""
        self._due = False
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        if not trainer.is_global_zero:
            return
        if not (self.folder / BEST).exists():
            self._describe(self._stage_module())
        self._read_back(self.folder / LAST)

    def _describe(self, module: StageModule) -> None:
        """Write the document and the tokenizer of the last file beside it."""
        assert module.document is not None
        write_sidecar(self.folder, module.document)
        write_tokenizer(self.folder, module.model)

    def _read_back(self, path: Path) -> None:
        """Pass on what was written."""
        if self.after_write is not None:
            self.after_write(path, self._stage_module())

    def _stage_module(self) -> StageModule:
        assert self._module is not None
        return self._module
