"""The tables of an experiment's stages, each file read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from panovlm.config.schema import Settings, WeightedTable
from panovlm.data.cache import require_readable
from panovlm.data.samples import Sample, read_tables
from panovlm.data.turns import all_turned, require_turnable
from panovlm.errors import DataError
from panovlm.training.workers import worker_count


@dataclass(frozen=True)
class StageTables:
    """The rows of one stage, and the files that they came from."""

    weighted: tuple[WeightedTable, ...]
    val_files: tuple[str, ...]
    train: Sequence[Sample]
    val: Sequence[Sample]

    @property
    def train_files(self) -> tuple[str, ...]:
        """Paths of the training tables."""
        return tuple(table.path for table in self.weighted)


def stage_files(settings: Settings, stage: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the paths of a stage's training and validation tables."""
    data, own = settings.data, settings.training.stage_configs[stage].data
    train = tuple(table.path for table in train_tables(settings, stage))
    return train, (own.csv_val if own else ()) or data.csv_val


def train_tables(settings: Settings, stage: str) -> tuple[WeightedTable, ...]:
    """Return the training tables of a stage: its own, else those of all."""
    own = settings.training.stage_configs[stage].data
    tables = (own.csv_train if own else ()) or settings.data.csv_train
    return tuple(WeightedTable(path=t) if isinstance(t, str) else t for t in tables)


class Tables:
    """Reads the tables that the stages of an experiment name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._read: dict[tuple[str, ...], list[Sample]] = {}
        self._turnable: set[str] = set()

    def of(self, stage: str) -> StageTables:
        """Return the rows of a stage.

        Raises:
            DataError: the stage has no training table, or a table or an image of it cannot be
                used.
        """
        _, val_files = stage_files(self._settings, stage)
        weighted = train_tables(self._settings, stage)
        if not weighted:
            raise DataError(
                f"stage {stage} has no training table; set data.csv_train, or "
                f"training.stage_configs.{stage}.data.csv_train."
            )
        train, val = self._train_rows(weighted), self._rows(val_files)
        if stage != "vision":
            _require_texts(stage, [*train, *val])
        turns = self._settings.training.yaw_turns
        if turns > 1 and stage not in self._turnable:
            require_turnable(train, turns, reads_text=stage != "vision")
            self._turnable.add(stage)
        return StageTables(weighted, val_files, train, val)

    def texts(self) -> Iterator[str]:
        """Yield the training texts of all stages of the experiment, whichever of them are run.

        Raises:
            DataError: as for :meth:`of`.
        """
        for stage in self._settings.training.stages:
            for sample in self.of(stage).train:
                for turns in all_turned(sample, self._settings.training.yaw_turns):
                    for turn in turns:
                        yield from turn

    def _train_rows(self, tables: tuple[WeightedTable, ...]) -> Sequence[Sample]:
        if all(table.weight == 1 for table in tables):
            return self._rows(tuple(table.path for table in tables))
        return [
            replace(row, weight=table.weight)
            for table in tables
            for row in self._rows((table.path,))
        ]

    def _rows(self, files: tuple[str, ...]) -> list[Sample]:
        if files not in self._read:
            strict = not self._settings.data.skip_unreadable_images
            data_dir = self._settings.paths.data_dir
            rows = read_tables(
                files,
                data_dir=data_dir,
                check_images=strict,
                image_input=self._settings.data.input,
                stream_blocks=self._settings.data.stream_blocks,
            )
            if strict:
                require_readable(rows, worker_count(self._settings))
            self._read[files] = rows
        return self._read[files]


def _require_texts(stage: str, samples: Sequence[Sample]) -> None:
    """Refuse panoramas without a conversation where texts are read."""
    bare = [sample.source for sample in samples if not sample.turns]
    if bare:
        raise DataError(
            f"{bare[0]}: it has no conversation ({len(bare)} of {len(samples)} rows of stage "
            f"{stage} have none); only stage vision reads panoramas alone: give it tables of its "
            "own with training.stage_configs.vision.data, or add the texts"
        )
