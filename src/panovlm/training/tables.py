"""The tables of an experiment's stages, each file read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from panovlm.config.schema import Settings
from panovlm.data.cache import require_readable
from panovlm.data.samples import Sample, read_tables
from panovlm.errors import DataError


@dataclass(frozen=True)
class StageTables:
    """The rows of one stage, and the files that they came from."""

    train_files: tuple[str, ...]
    val_files: tuple[str, ...]
    train: Sequence[Sample]
    val: Sequence[Sample]


def stage_files(settings: Settings, stage: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the training and the validation tables of a stage: its own, else those of all."""
    data, own = settings.data, settings.training.stage_configs[stage].data
    return (
        (own.csv_train if own else ()) or data.csv_train,
        (own.csv_val if own else ()) or data.csv_val,
    )


class Tables:
    """Reads the tables that the stages of an experiment name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._read: dict[tuple[str, ...], list[Sample]] = {}

    def of(self, stage: str) -> StageTables:
        """Return the rows of a stage.

        Raises:
            DataError: the stage has no training table, or a table or an image of it cannot be
                used.
        """
        train_files, val_files = stage_files(self._settings, stage)
        if not train_files:
            raise DataError(
                f"stage {stage} has no training table; set data.csv_train, or "
                f"training.stage_configs.{stage}.data.csv_train."
            )
        return StageTables(train_files, val_files, self._rows(train_files), self._rows(val_files))

    def texts(self) -> Iterator[str]:
        """Yield the training texts of all stages of the experiment, whichever of them are run.

        Raises:
            DataError: as for :meth:`of`.
        """
        for stage in self._settings.training.stages:
            for sample in self.of(stage).train:
                for turn in sample.turns:
                    yield from turn

    def _rows(self, files: tuple[str, ...]) -> list[Sample]:
        if files not in self._read:
            strict = not self._settings.data.skip_unreadable_images
            data_dir = self._settings.paths.data_dir
            rows = read_tables(files, data_dir=data_dir, check_images=strict)
            if strict:
                require_readable(rows, self._settings.training.num_workers)
            self._read[files] = rows
        return self._read[files]
