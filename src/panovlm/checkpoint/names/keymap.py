"""Which tensor of a file goes where in the model, and how it is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from panovlm.checkpoint.formats.header import RECORD
from panovlm.checkpoint.settle.shapes import Shapes
from panovlm.config.model_recipe import Layout
from panovlm.errors import ContradictionError
from panovlm.models.resamplers.recipe import Dialect

EARLIER = "layout"
MARKERS = (RECORD, EARLIER)
"""Tensors by which a checkpoint of this family is told, and that are no weights: the model's
settings, or of earlier ones a single byte."""
Part = tuple[int, int]
"""(number, count) of one of the equal parts into which a tensor is cut along its first axis."""


@dataclass(frozen=True)
class KeyMap:
    """The names of one checkpoint.

    Attributes:
        files: model name → name in the file. One tensor of a file may serve two places.
        aliases: model name → further names in the file that hold the same tensor.
        ignored: name in the file → why it is not a weight of the model.
        unknown: names in the file that belong to no component.
        layout: which family of checkpoints the file belongs to.
        prefixes: wrappers that were removed, for the report.
        notes: what the reader should know.
        dialect: what other implementation named the resampler's tensors.
        parts: model name → which part of the tensor in the file it is, where it is not the whole.
    """

    files: Mapping[str, str]
    aliases: Mapping[str, tuple[str, ...]]
    ignored: Mapping[str, str]
    unknown: tuple[str, ...]
    layout: Layout
    prefixes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    dialect: Dialect | None = None
    parts: Mapping[str, Part] = field(default_factory=dict[str, Part])

    def shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
        """Return the shapes of a file under the model's names."""
        return Shapes({name: self._shape(name, shapes[file]) for name, file in self.files.items()})

    def take(self, name: str, tensors: Mapping[str, Any]) -> Any:
        """Return a tensor of the model out of those of the file."""
        file = self.files[name]
        stored = tensors[file]
        if name in self.parts:
            number, count = self.parts[name]
            # A copy, so that the parts do not share their memory.
            return stored.chunk(count)[number].clone()
        # One tensor of the file at two places of the model is two parameters there.
        return stored if self._first_places[file] == name else stored.clone()

    @cached_property
    def _first_places(self) -> dict[str, str]:
        """Name in the file → the first model name that it serves."""
        places: dict[str, str] = {}
        for name, file in self.files.items():
            places.setdefault(file, name)
        return places

    def _shape(self, name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        if name not in self.parts:
            return stored
        count = self.parts[name][1]
        if not stored or stored[0] % count:
            raise ContradictionError(
                f"{self.files[name]} has shape {list(stored)}; {count} equal parts along its first "
                "axis were expected. The checkpoint is damaged."
            )
        return stored[0] // count, *stored[1:]
