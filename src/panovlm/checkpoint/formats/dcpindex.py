"""Reads the ``.metadata`` of a distributed checkpoint (DCP): which bytes of which file are what.

It is a pickle of torch's classes. Their names are compared, their fields taken as plain values;
none of them is imported. Every range of bytes that it gives is checked against the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from panovlm.checkpoint.formats.dcpfiles import METADATA
from panovlm.checkpoint.formats.header import ITEMSIZE, TensorInfo, is_shape
from panovlm.checkpoint.formats.inert import unpickle
from panovlm.checkpoint.formats.names import Foreign, Global
from panovlm.checkpoint.formats.source import Source, inside
from panovlm.checkpoint.formats.split import Box, cover_fault
from panovlm.checkpoint.formats.torchzip import MAX_PICKLE
from panovlm.errors import CheckpointError

Steps = tuple[str | int, ...]
"""Place of an entry in the nested object that was saved: ``("model", "layers.0.weight")``."""

_CLASSES = "torch.distributed."
_MAX_VALUES = 4_000_000  # some 100,000 chunks
_MAX_ENTRIES = 200_000
_MAX_CHUNKS = 1_000_000
_MAX_STEPS = 32
_MAX_STEP = 4096  # characters, or the place in a list
_MAX_RANK = 64


class Item(NamedTuple):
    """A range of bytes that ``torch.save`` wrote."""

    file: Path
    start: int
    length: int


class Index:
    """The table of contents of one distributed checkpoint.

    Args:
        folder: the folder that holds ``.metadata``.

    Attributes:
        path: the ``.metadata`` file.
        steps: entry → its place in the saved object.

    Raises:
        CheckpointError: the file is damaged, or made for another purpose.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / METADATA
        with Source(self.path) as source:
            if source.size > MAX_PICKLE:
                raise CheckpointError(
                    f"{self.path} has {source.size} bytes; more than {MAX_PICKLE} are not read. "
                    "Save the weights alone, without the optimizer's state."
                )
            data = source.read(0, source.size)
        fields = self._fields(unpickle(data, str(self.path), max_values=_MAX_VALUES), "Metadata")
        self._entries = self._names(fields, "state_dict_metadata")
        if len(self._entries) > _MAX_ENTRIES:
            raise self._damaged(f"it lists {len(self._entries)} entries")
        self._items = dict(self._storage(fields))
        self._files: dict[str, tuple[Path, int]] = {}
        self._used: dict[Path, dict[Any, tuple[int, int]]] = {}
        self._chunks = 0
        places = self._names(fields, "planner_data") if fields.get("planner_data") else {}
        self.steps = {name: self._steps(name, places.get(name, (name,))) for name in self._entries}

    def is_tensor(self, name: str) -> bool:
        """Tell whether an entry is a tensor; any other is an object that ``torch.save`` wrote."""
        kind = self._entries[name]
        if type(kind) is Foreign and kind.name.startswith(_CLASSES):
            if kind.name.endswith(".TensorStorageMetadata"):
                return True
            if kind.name.endswith(".BytesStorageMetadata"):
                return False
        raise self._damaged(f"{name!r} is described in a way that is not supported")

    def info(self, name: str) -> TensorInfo:
        """Return shape and dtype of a tensor."""
        fields = self._fields(self._entries[name], "TensorStorageMetadata")
        properties = fields.get("properties")
        # The class states its fields as a tuple; the others are of no use to a reader.
        state = properties.state if type(properties) is Foreign else None
        dtype = state[0] if type(state) is tuple and state else None
        if type(dtype) is not Global or dtype.name.removeprefix("torch.") not in ITEMSIZE:
            raise self._damaged(f"tensor {name!r} has a dtype that is not supported")
        shape = fields.get("size")
        if not is_shape(shape):
            raise self._damaged(f"tensor {name!r} has a shape that is not supported")
        return TensorInfo(shape, dtype.name.removeprefix("torch."))

    def chunks(self, name: str) -> list[tuple[Box, Item]]:
        """Return the chunks of a tensor, which together fill it exactly once.

        Raises:
            CheckpointError: chunks overlap, are absent, or lie in bytes that are not there.
        """
        shape = self.info(name).shape
        stored = self._fields(self._entries[name], "TensorStorageMetadata").get("chunks")
        if type(stored) is not list:
            raise self._damaged(f"the chunks of {name!r} are no list")
        self._chunks += len(stored)
        if self._chunks > _MAX_CHUNKS:
            raise self._damaged(f"it describes more than {_MAX_CHUNKS} chunks")
        boxes = [self._box(chunk, name, len(shape)) for chunk in stored]
        # A device that had no share of a small tensor wrote an empty one.
        boxes = [box for box in boxes if prod(box.shape)]
        # Nothing has no chunk; the cells of an empty shape would not show one.
        empty = "it has no elements, and its chunks have" if boxes else ""
        if fault := cover_fault(shape, boxes) if prod(shape) else empty:
            raise self._damaged(f"tensor {name!r} {list(shape)}: {fault}")
        return [(box, self.item(name, box.start)) for box in boxes]

    def item(self, name: str, start: tuple[int, ...] | None = None) -> Item:
        """Return the bytes of an entry, or of the chunk of a tensor that begins at ``start``."""
        where = f"{name!r}" if start is None else f"the chunk of {name!r} at {list(start)}"
        stored = self._items.get((name, start))
        if stored is None:
            raise self._damaged(f"it does not say where {where} lies")
        fields = self._fields(stored, "_StorageInfo")
        if fields.get("transform_descriptors"):
            raise CheckpointError(
                f"{self.path}: {where} was written through an extension of DCP (compression?). "
                "Load it where it was written, and save it again without extensions."
            )
        path, size = self._file(fields.get("relative_path"))
        span = (fields.get("offset"), fields.get("length"))
        item = Item(path, *self._numbers(span, f"the place of {where}"))
        if item.start + item.length > size:
            raise CheckpointError(
                f"{path} is truncated: {where} ends at byte {item.start + item.length}, and the "
                f"file has {size}. Copy it again or take the checkpoint before it."
            )
        span = item.start, item.start + item.length
        self._used.setdefault(path, {})[name, start] = span
        return item

    def check_apart(self) -> None:
        """Refuse items that share bytes: two entries would silently be one.

        Raises:
            CheckpointError: two of the items that were asked for do.
        """
        for path, spans in self._used.items():
            end = 0
            for start, stop in sorted(spans.values()):
                if start < end:
                    raise self._damaged(f"two entries share the bytes {start} to {end} of {path}")
                end = stop

    def _file(self, name: Any) -> tuple[Path, int]:
        """Return the path and the size of a file of the folder."""
        if type(name) is not str:
            raise self._damaged("a file is not named by a text")
        if name not in self._files:
            links = self.path.resolve().parent
            path = inside(self.folder, name, named_by=self.path, links=links)
            with Source(path) as source:
                self._files[name] = path, source.size
        return self._files[name]

    def _storage(self, fields: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, Any], Any]]:
        stored = fields.get("storage_data")
        if type(stored) is not dict:
            raise self._damaged("it has no table of the bytes")
        for key, info in stored.items():
            index = self._fields(key, "MetadataIndex")
            name, start = index.get("fqn"), index.get("offset")
            if type(name) is not str:
                raise self._damaged("an entry is not named by a text")
            where = None if start is None else self._numbers(start, f"a chunk of {name!r}")
            yield (name, where), info

    def _names(self, fields: Mapping[str, Any], field: str) -> Mapping[str, Any]:
        names = fields.get(field)
        if type(names) is not dict or any(type(name) is not str for name in names):
            raise self._damaged(f"its {field} does not map names")
        return names

    def _steps(self, name: str, steps: Any) -> Steps:
        if type(steps) is not tuple or not 0 < len(steps) <= _MAX_STEPS:
            raise self._damaged(f"the place of {name!r} cannot be followed")
        for step in steps:
            length = len(step) if type(step) is str else step if type(step) is int else -1
            if not 0 <= length <= _MAX_STEP:
                raise self._damaged(f"the place of {name!r} cannot be followed")
        return steps

    def _box(self, chunk: Any, name: str, rank: int) -> Box:
        fields = self._fields(chunk, "ChunkStorageMetadata")
        where = f"a chunk of {name!r}"
        box = Box(*(self._numbers(fields.get(field), where) for field in ("offsets", "sizes")))
        if len(box.start) != rank or len(box.shape) != rank:
            raise self._damaged(f"{where} has not the {rank} axes of the tensor")
        return box

    def _fields(self, value: Any, kind: str) -> Mapping[str, Any]:
        """Return the fields of an object of torch's class ``kind``."""
        known = type(value) is Foreign and value.name.startswith(_CLASSES)
        if not known or not value.name.endswith(f".{kind}") or type(value.state) is not dict:
            raise self._damaged(f"a {kind} was expected in its place")
        return value.state

    def _numbers(self, values: Any, what: str) -> tuple[int, ...]:
        """Return ``values``, which must be sizes: whole numbers of at most 63 bits."""
        if type(values) is not tuple or len(values) > _MAX_RANK:
            raise self._damaged(f"{what} is no row of numbers")
        if any(type(value) is not int or not 0 <= value < 1 << 63 for value in values):
            raise self._damaged(f"{what} is no row of sizes")
        return values

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is damaged: {what}. Copy the folder again or take the checkpoint "
            "before it."
        )
