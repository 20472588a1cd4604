"""Writing checkpoints during training so that no reader ever meets half a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from panovlm.checkpoint.atomic import atomic_write, link_or_copy
from panovlm.checkpoint.save import write_sidecar, write_tokenizer
from panovlm.training.module import StageModule
from panovlm.training.rundir import BEST, LAST, checkpoint_name


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's file writer, through a temporary file, fsync and rename."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write ``checkpoint`` to ``path`` as a whole or not at all."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as file:
            torch.save(checkpoint, file)


class CheckpointWriter(lightning.Callback):
    """Keeps the best checkpoint by validation loss, and the last one for resuming.

    Weights are written before the document beside them, so that the document never describes a
    file that is not there yet.

    Args:
        folder: the stage's run folder.
        stem: fixed part of the file names.
        every_n_steps: optimizer steps between two writes of ``last.ckpt``.
    """

    def __init__(self, folder: Path, stem: str, every_n_steps: int) -> None:
        self.folder = folder
        self.stem = stem
        self.every_n_steps = every_n_steps
        self.best_loss: float | None = None
        self.best_file: str | None = None
        self._last_step = -1

    def state_dict(self) -> dict[str, Any]:
        """Return what ``last.ckpt`` must remember of this callback."""
        return {"best_loss": self.best_loss, "best_file": self.best_file}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.best_loss = state_dict["best_loss"]
        self.best_file = state_dict["best_file"]

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        *_: Any,
    ) -> None:
        """Write ``last.ckpt`` every few optimizer steps."""
        step = trainer.global_step
        if step != self._last_step and step % self.every_n_steps == 0:
            self._write_last(trainer)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Keep the checkpoint if it is the best so far."""
        if trainer.sanity_checking or "val_loss" not in trainer.callback_metrics:
            return
        assert isinstance(pl_module, StageModule)
        loss = float(trainer.callback_metrics["val_loss"])
        pl_module.last_val_loss = loss
        if self.best_loss is None or loss < self.best_loss:
            self._write_best(trainer, pl_module, loss)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write ``last.ckpt`` at the end of every epoch."""
        self._write_last(trainer)

    def _write_best(self, trainer: lightning.Trainer, module: StageModule, loss: float) -> None:
        """Write the new best file, point ``best.ckpt`` to it, then remove the old one."""
        name = checkpoint_name(self.stem, trainer.current_epoch, loss)
        trainer.save_checkpoint(self.folder / name, weights_only=True)
        if trainer.is_global_zero:
            link_or_copy(self.folder / name, self.folder / BEST)
            if self.best_file not in (None, name):
                (self.folder / str(self.best_file)).unlink(missing_ok=True)
            self._describe(trainer, module)
        self.best_loss, self.best_file = loss, name

    def _write_last(self, trainer: lightning.Trainer) -> None:
        """Write the whole training state."""
        self._last_step = trainer.global_step
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        module = trainer.lightning_module
        assert isinstance(module, StageModule)
        if trainer.is_global_zero and not (self.folder / BEST).exists():
            self._describe(trainer, module)

    def _describe(self, trainer: lightning.Trainer, module: StageModule) -> None:
        """Write the document and the tokenizer beside the weights."""
        metadata = module.describe(trainer.current_epoch, trainer.global_step, module.last_val_loss)
        write_sidecar(self.folder, metadata)
        write_tokenizer(self.folder, module.model)
