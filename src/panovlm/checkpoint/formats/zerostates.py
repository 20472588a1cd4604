"""Reads one file of the states of a DeepSpeed checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panovlm.checkpoint.formats.header import Placement, is_shape
from panovlm.checkpoint.formats.names import StoredTensor
from panovlm.checkpoint.formats.saved import SavedObject, mapping_of
from panovlm.checkpoint.formats.source import Source
from panovlm.checkpoint.formats.torchzip import data_start, open_archive
from panovlm.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


class States:
    """One file of states, opened.

    Args:
        source: the file.

    Attributes:
        path: the file.
        saved: the object in it.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.path = source.path
        self.saved: SavedObject = open_archive(source)

    def entry(self, name: str) -> Any:
        """Return an entry, ``None`` where it is absent or unset."""
        return self.saved.entries().get(name)

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an entry that maps names; one that is unset is empty."""
        value = self.entry(name)
        found = {} if value is None else mapping_of(value)
        if found is None or any(type(key) is not str for key in found):
            raise self.damaged(f"its {name} does not map names")
        return found

    def shapes(self, value: Any) -> Shapes:
        """Return a mapping of names to shapes."""
        found = mapping_of(value)
        if found is None:
            raise self.damaged("it does not map names to shapes")
        for name, shape in found.items():
            if type(name) is not str or not is_shape(shape):
                raise self.damaged("it does not map names to shapes")
        return found

    def groups(self) -> list[Shapes]:
        """Return names and shapes of what is trained, for each group of parameters in order."""
        value = self.entry("param_shapes")
        if value is None:
            return []
        groups = [self.shapes(group) for group in (value if type(value) is list else [value])]
        if sum(map(len, groups)) > len({name for group in groups for name in group}):
            raise self.damaged("it lists a parameter twice")
        return groups

    def absolute(self, placed: Placement) -> Placement:
        """Return a placement whose record is the position of its first byte."""
        return placed._replace(record=data_start(self.source, placed.record))

    def place(self, name: str, value: Any) -> Placement:
        """Return where a tensor lies."""
        if type(value) is not StoredTensor:
            raise self.damaged(f"{name} is no tensor")
        return self.absolute(self.saved.place(name, value))

    def flat(self, name: str, value: Any) -> tuple[Path, Placement]:
        """Return where a one-dimensional tensor lies whose elements follow each other."""
        placed = self.place(name, value)
        if len(placed.info.shape) != 1 or (placed.stride != (1,) and placed.info.shape[0] > 1):
            raise self.damaged(
                f"{name} has the shape {list(placed.info.shape)}; a row was expected"
            )
        return self.path, placed

    def damaged(self, what: str) -> CheckpointError:
        """Say what is wrong with the file."""
        return CheckpointError(
            f"{self.path} is damaged: {what}. Copy the folder again or take the checkpoint "
            "before it."
        )

    def share(self, key: str, processes: int) -> list[tuple[Path, Placement]]:
        """Return the rows of one process, one for each group of parameters.

        Args:
            key: the entry of the optimizer's state that holds them.
            processes: how many processes have left their rows.
        """
        state = self.mapping("optimizer_state_dict")
        counts = state.get("partition_count")
        counts = counts if type(counts) is list else [counts]
        for count in counts or [0]:
            if type(count) is not int or count != processes:
                told = str(count) if type(count) is int else "an unknown number of"
                raise CheckpointError(
                    f"{self.path} belongs to a checkpoint of {told} processes, and {processes} "
                    "have left their share. If it was trained with experts, it is not read; "
                    "otherwise copy the folder again or take the checkpoint before it."
                )
        rows = state.get(key)
        if type(rows) is not list:
            raise CheckpointError(
                f"{self.path} has no {key}: it was written by an old version, or its weights were "
                "kept elsewhere (offloaded). Convert it with the zero_to_fp32.py of the DeepSpeed "
                "that wrote it."
            )
        return [self.flat(f"{key}[{index}]", row) for index, row in enumerate(rows)]
