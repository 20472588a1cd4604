"""Which stages of an experiment are done, kept on disk so that a run can be continued."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from panovlm.atomic import write_bytes
from panovlm.checkpoint.documents.metadata import now
from panovlm.config.base import Field, StrictModel
from panovlm.config.schema import Settings
from panovlm.errors import ConfigError
from panovlm.training.rundir import experiment_name

Status = Literal["running", "completed"]


class StageState(StrictModel):
    """What is known about one stage."""

    status: Status
    folder: str
    started_at: str
    completed_at: str | None = None


class RunState(StrictModel):
    """The stages of one experiment that were begun."""

    version: Literal[1] = 1
    stages: dict[str, StageState] = Field(default_factory=dict)

    def is_completed(self, stage: str) -> bool:
        """Tell whether a stage was finished."""
        return stage in self.stages and self.stages[stage].status == "completed"


class StateFile:
    """The file ``{runs_dir}/{experiment}_stage_state.json``."""

    def __init__(self, settings: Settings) -> None:
        folder = Path(settings.paths.runs_dir)
        self.path = folder / f"{experiment_name(settings)}_stage_state.json"

    def read(self) -> RunState:
        """Return the state; empty when nothing was begun.

        Raises:
            ConfigError: the file is damaged.
        """
        if not self.path.is_file():
            return RunState()
        try:
            return RunState.model_validate(json.loads(self.path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ConfigError(
                f"{self.path} cannot be read ({str(error).splitlines()[0]}); remove it to begin "
                "the experiment anew."
            ) from error

    def forget(self, stages: Sequence[str]) -> None:
        """Forget some stages, for a new run of them."""
        left = {name: entry for name, entry in self.read().stages.items() if name not in stages}
        if left:
            self._write(left)
        elif self.path.is_file():
            self.path.unlink()

    def begin(self, stage: str, folder: Path) -> None:
        """Record that a stage runs; one that ran before keeps its start."""
        state = self.read()
        known = state.stages.get(stage)
        started = known.started_at if known else now()
        self._put(stage, StageState(status="running", folder=str(folder), started_at=started))

    def complete(self, stage: str) -> None:
        """Record that a stage is done."""
        known = self.read().stages[stage]
        self._put(stage, known.model_copy(update={"status": "completed", "completed_at": now()}))

    def _put(self, stage: str, entry: StageState) -> None:
        self._write({**self.read().stages, stage: entry})

    def _write(self, stages: Mapping[str, StageState]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(RunState(stages=dict(stages)).model_dump(mode="json"), indent=2)
        write_bytes(self.path, text.encode())
