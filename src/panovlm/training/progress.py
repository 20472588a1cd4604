"""One line per validation, for logs and for terminals alike."""

from __future__ import annotations

import time

import lightning
from rich.console import Console


class ProgressLines(lightning.Callback):
    """Prints step, losses and elapsed time after every validation and epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._start = 0.0
        self._told = -1

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Tell where training stands."""
        self._tell(trainer)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Tell where training stands."""
        self._tell(trainer)

    def _tell(self, trainer: lightning.Trainer) -> None:
        if trainer.sanity_checking or trainer.global_step == self._told:
            return
        self._told = trainer.global_step
        losses = "  ".join(
            f"{name} {float(value):.4f}"
            for name, value in trainer.callback_metrics.items()
            if name in ("train_loss", "val_loss")
        )
        elapsed = time.monotonic() - self._start
        self.console.print(
            f"  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  "
            f"step {trainer.global_step}  {losses}  {elapsed:.0f} s",
            highlight=False,
        )
