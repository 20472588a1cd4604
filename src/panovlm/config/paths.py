"""Where an experiment's files are. No torch is imported here."""

from __future__ import annotations

from typing import Literal

from panovlm.config.base import StrictModel


class Paths(StrictModel):
    """Folders that PanoVLM writes to and reads from."""

    runs_dir: str = "runs"
    """Folder of all run folders."""
    eval_dir: str = "results/eval_results"
    """Folder of evaluation results."""
    cache_dir: str = "cache"
    """Folder of views and features that are kept on disk; several runs may share it, and it can be
    removed whenever none of them is under way."""
    data_dir: str = ""
    """Base of relative image paths in tables; empty: the table's own folder."""
    pretrained_dir: str | None = None
    """Checkpoint (file or run folder) that the first stage starts from."""
    pretrained_weights: Literal["model", "ema"] | None = None
    """Which copy of its weights, where it holds the live ones and their running average."""

    def _check(self) -> None:
        for name, value in self.model_dump().items():
            if value is not None and "\0" in value:
                raise ValueError(f"{name} is {value!r}; no path holds a NUL character")
