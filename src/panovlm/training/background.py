"""Writes checkpoints while training goes on, so that no reader ever meets half a file.

The weights that are written are those of the training itself, not a copy: forward and backward
passes only read them, and the optimizer waits before it changes them. So a file costs no second
model in memory, and training stands still only where writing takes longer than the next step's
passes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from panovlm.atomic import atomic_write


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


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """The same in a thread of its own, one file after the other.

    Whoever changes a tensor of the checkpoint calls :meth:`wait` before.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] = _done()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Begin to write ``checkpoint`` to ``path``.

        Raises:
            CheckpointError: the file before could not be written.
        """
        self.wait()
        write = super().save_checkpoint
        self._last = self._thread.submit(lambda: write(checkpoint, path))

    def then(self, work: Callable[[], None]) -> None:
        """Do more once everything so far is done; not if that failed."""
        before = self._last

        def go_on() -> None:
            before.result()
            work()

        self._last = self._thread.submit(go_on)

    def wait(self) -> None:
        """Return once everything is written.

        Raises:
            CheckpointError: it could not be; said once.
        """
        last, self._last = self._last, _done()
        last.result()

    def settle(self, exception: BaseException) -> None:
        """Finish what was begun while an exception is on its way; it keeps its precedence."""
        last, self._last = self._last, _done()
        fault = last.exception()
        if fault is not None and fault is not exception:
            exception.add_note(str(fault))

    def teardown(self) -> None:
        """End the thread."""
        self._thread.shutdown()


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future
