"""Describes a folder of torch's distributed checkpoints (DCP), as FSDP and Lightning write them.

``.metadata`` tells names, shapes and places (:mod:`.dcpindex`); ``__R_N.distcp`` hold what process
R wrote, each tensor or object an archive of ``torch.save`` at a range of bytes. Lightning keeps
what is not distributed in ``meta.pt`` beside them.

Which part of the saved object holds the weights is decided as in a file of ``torch.save``: the
entry ``state_dict`` if it maps names to tensors, else the only mapping that does; the state of
optimizers is no candidate, and a running average is one only where it is meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from panovlm.checkpoint.formats.dcpindex import Index, Item, Steps
from panovlm.checkpoint.formats.header import (
    ATTACHMENTS,
    Header,
    Placement,
    TensorInfo,
    attachment_fault,
    contiguous_stride,
    record_bytes,
    record_names,
)
from panovlm.checkpoint.formats.names import StoredTensor
from panovlm.checkpoint.formats.saved import TRAINING, Companions, SavedObject
from panovlm.checkpoint.formats.source import Source, inside
from panovlm.checkpoint.formats.split import Box, Part, SplitTensor, is_row, read_bytes, whole
from panovlm.checkpoint.formats.torchzip import data_start, open_archive
from panovlm.checkpoint.names.averages import (
    COUNTERS,
    Weights,
    choose,
    entry_is_averaged,
    lightning_averages,
)
from panovlm.errors import CheckpointError

REST = "meta.pt"
"""What Lightning keeps beside the distributed part."""

_MAX_OBJECTS = 10_000
_STATE_DICT: Steps = ("state_dict",)
_OPTIMIZER = re.compile(r"optim(izer)?s?(_\w+)?")


def read(folder: Path, weights: Weights | None) -> Header:
    """Describe the distributed checkpoint in ``folder``.

    Raises:
        CheckpointError: it is damaged or incomplete, or its weights cannot be told apart.
    """
    return _Folder(folder, weights).header()


def tensors(folder: Path, weights: Weights | None) -> Mapping[str, SplitTensor]:
    """Find the weights in the files of ``folder``.

    Raises:
        CheckpointError: as :func:`read`, or what the files hold is not what ``.metadata`` tells.
    """
    found = _Folder(folder, weights)
    return found.split(found.weights)


def attachments(folder: Path, weights: Weights | None) -> Mapping[str, SplitTensor]:
    """Find the embedded files in the files of ``folder``.

    Raises:
        CheckpointError: as :func:`tensors`.
    """
    found = _Folder(folder, weights)
    files = found.split(found.embedded)
    for name, split in files.items():
        for part in split.parts:
            found.check_attachment(name, part.placed)
    rest = found.rest.attachments
    return files | {name: whole(folder / REST, placed) for name, placed in rest.items()}


class _Folder:
    """One distributed checkpoint: what each of its entries is for."""

    def __init__(self, path: Path, weights: Weights | None) -> None:
        self.path = path
        self.index = Index(path)
        self.rest = self.read_rest()
        tensors = {n: s for n, s in self.index.steps.items() if self.index.is_tensor(n)}
        training = {found for steps in tensors.values() if (found := _training(steps[:-1]))}
        ends = {len(steps) for steps in training}
        self.skipped: dict[str, None] = {}
        self.objects: list[str] = []
        self.homes: dict[Steps, list[str]] = {}
        for name, steps in self.index.steps.items():
            if _training(steps[:1]) or any(steps[:end] in training for end in ends):
                self.skipped[str(steps[0])] = None
            elif name in tensors:
                self.homes.setdefault(steps[:-1], []).append(name)
            else:
                self.objects.append(name)
        self.embedded = self.by_name(self.homes.pop((ATTACHMENTS,), []))
        for name, entry in self.embedded.items():
            info = self.index.info(entry)
            self.check_attachment(name, Placement(info, contiguous_stride(info.shape), 0, 0, 0))
        self.averaged = False
        self.home = self.find_weights(weights)
        self.weights = self.by_name(self.homes.pop(self.home))

    def check_attachment(self, name: str, placed: Placement) -> None:
        """Stop at an embedded file, or a chunk of one, that cannot be used."""
        if fault := attachment_fault(name, placed):
            raise CheckpointError(f"{self.path}: attachment {name!r}: {fault}.")

    def find_weights(self, weights: Weights | None) -> Steps:
        """Return the place of the mapping that holds the weights which are meant."""
        if lightning_averages({*self.rest.skipped, *self.rest.extras}):
            if weights != "ema":
                raise CheckpointError(
                    f"{self.path}: its distributed part holds a running average of the weights. "
                    f"The live ones are in {REST}, which is not read for weights. Take the average "
                    'with --weights ema (weights="ema" in Python).'
                )
            self.averaged = True
            return self.only(list(self.homes))
        top = {str(steps[0]) for steps in self.index.steps.values()}
        averages = [
            home
            for home, names in self.homes.items()
            if len(home) == 1
            and entry_is_averaged(str(home[0]), top)
            and any(self.index.steps[name][-1] not in COUNTERS for name in names)
        ]
        live = [home for home in self.homes if home not in averages]
        if not averages:
            return self.only(live)
        average = self.only(averages)
        shown = repr(_shown(self.only(live))) if live else ""
        self.averaged = choose(weights, shown, repr(_shown(average)), str(self.path)) == "ema"
        return average if self.averaged else self.only(live)

    def only(self, found: list[Steps]) -> Steps:
        """Return the one place that can hold the weights."""
        if _STATE_DICT in found:
            return _STATE_DICT
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(repr(_shown(home)) for home in found[:8])
            raise CheckpointError(
                f"{self.path}: {len(found)} parts could be the weights: {shown}. Save the one that "
                "is meant under 'state_dict'."
            )
        raise CheckpointError(
            f"{self.path} holds no weights: its entries are "
            f"{', '.join(map(repr, [*self.skipped, *self.objects][:12])) or 'none'}. Is it the "
            "folder of an optimizer? Give the one of the model."
        )

    def by_name(self, entries: list[str]) -> dict[str, str]:
        """Return the entries of one mapping by the names that they have in it."""
        names = {self.index.steps[entry][-1]: entry for entry in entries}
        if len(names) < len(entries) or any(type(name) is int for name in names):
            raise CheckpointError(
                f"{self.path}: the tensors {', '.join(map(repr, entries[:3]))}, ... are not named "
                "by different texts. Save a state dict."
            )
        return {str(name): entry for name, entry in names.items()}

    def header(self) -> Header:
        """Describe the folder, with every object that was saved beside the tensors."""
        files = {name: self.index.info(entry) for name, entry in self.embedded.items()}
        for entry in (*self.weights.values(), *self.embedded.values()):
            self.index.chunks(entry)
        extras = self.extras()
        self.index.check_apart()
        rest = self.rest
        twice = [*(extras.keys() & rest.extras.keys()), *(files.keys() & rest.attachments.keys())]
        if twice:
            raise CheckpointError(
                f"{self.path}: {twice[0]!r} is in {REST} and in the distributed part. They do "
                "not belong together; copy the folder again."
            )
        return Header(
            path=self.path,
            container="dcp",
            tensors={name: self.index.info(entry) for name, entry in self.weights.items()},
            extras={**extras, **rest.extras},
            attachments={**files, **{n: placed.info for n, placed in rest.attachments.items()}},
            skipped=(*self.skipped, *rest.skipped),
            entry=".".join(map(str, self.home)),
            averaged=self.averaged,
            records=self.records(),
        )

    def records(self) -> dict[str, bytes]:
        """Read the few bytes in which models keep their settings."""
        infos = {name: self.index.info(entry) for name, entry in self.weights.items()}
        found = self.split({name: self.weights[name] for name in record_names(infos)})
        return {
            name: record_bytes(read_bytes(split), split.info.dtype)
            for name, split in found.items()
            if is_row(split)
        }

    def extras(self) -> dict[str, Any]:
        """Return the objects of the folder, nested as they were saved."""
        if len(self.objects) > _MAX_OBJECTS:
            raise CheckpointError(
                f"{self.path} holds {len(self.objects)} objects beside its tensors; more than "
                f"{_MAX_OBJECTS} are not read. Save the weights alone."
            )
        found = _Nested(self.path)
        for names in self.homes.values():
            for name in names:
                found.put(self.index.steps[name], self.index.info(name))
        with _Files() as files:
            for name in self.objects:
                saved = files.open(self.index.item(name))
                found.put(self.index.steps[name], saved.plain(saved.value, name))
        return {str(name): _plain(value) for name, value in found.items.items()}

    def read_rest(self) -> Companions:
        """Describe what Lightning keeps beside the distributed part, if it does."""
        path = self.path / REST
        if not path.is_file():
            return Companions({}, {}, ())
        links = self.index.path.resolve().parent
        with Source(inside(self.path, REST, named_by=self.index.path, links=links)) as source:
            saved = open_archive(source)
            found = saved.companions(saved.entries())
            placed = {
                name: placed._replace(record=data_start(source, placed.record))
                for name, placed in found.attachments.items()
            }
        return found._replace(attachments=placed)

    def split(self, names: Mapping[str, str]) -> dict[str, SplitTensor]:
        """Find the chunks of tensors in their files."""
        found: dict[str, SplitTensor] = {}
        with _Files() as files:
            for name, entry in names.items():
                info = self.index.info(entry)
                parts = [
                    Part(item.file, files.place(entry, item, box, info.dtype), box.start)
                    for box, item in self.index.chunks(entry)
                ]
                found[name] = SplitTensor(info, info.shape, tuple(parts))
        self.index.check_apart()
        return found


class _Files(ExitStack):
    """The ``.distcp`` files that have been opened."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[Path, Source] = {}

    def open(self, item: Item) -> SavedObject:
        """Return the object that lies at a range of bytes."""
        if item.file not in self.sources:
            self.sources[item.file] = self.enter_context(Source(item.file))
        return open_archive(self.sources[item.file].part(item.start, item.length))

    def place(self, name: str, item: Item, box: Box, dtype: str) -> Placement:
        """Find a chunk's elements in its file, and check that it is the chunk that was meant."""
        saved = self.open(item)
        if type(saved.value) is not StoredTensor:
            raise CheckpointError(
                f"{item.file} is damaged: no tensor lies at bytes {item.start} to "
                f"{item.start + item.length}, where a chunk of {name!r} was expected. Copy it "
                "again or take the checkpoint before it."
            )
        placed = saved.place(name, saved.value)
        if placed.info != TensorInfo(box.shape, dtype):
            raise CheckpointError(
                f"{item.file} is damaged: the chunk of {name!r} at {list(box.start)} is "
                f"{placed.info.dtype} {list(placed.info.shape)}; {dtype} {list(box.shape)} was "
                "expected. Copy the folder again or take the checkpoint before it."
            )
        part = saved.source
        return placed._replace(record=part.start + data_start(part, placed.record))


class _Nested:
    """A mapping or list that had to be taken apart to be saved.

    Args:
        path: the folder, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.items: dict[str | int, Any] = {}

    def put(self, steps: Steps, value: Any) -> None:
        """Set a value at its place below this one."""
        place = self
        for step in steps[:-1]:
            place = place.items.setdefault(step, _Nested(self.path))
            if type(place) is not _Nested:
                break
        if type(place) is not _Nested or steps[-1] in place.items:
            where = ".".join(map(str, steps))
            raise CheckpointError(
                f"{self.path} is damaged: two of its entries claim the place {where!r}. Copy it "
                "again or take the checkpoint before it."
            )
        place.items[steps[-1]] = value

    def plain(self) -> dict[str | int, Any] | list[Any]:
        """Return it as a mapping, or as a list where its values are numbered."""
        items = {step: _plain(value) for step, value in self.items.items()}
        if not items or any(type(step) is str for step in items):
            return items
        return [items[step] for step in sorted(items)]


def _plain(value: Any) -> Any:
    return value.plain() if type(value) is _Nested else value


def _shown(home: Steps) -> str:
    return ".".join(map(str, home)) or "the top level"


def _training(steps: Steps) -> Steps:
    """Return the place of the training run's entry that ``steps`` lead into, empty if none."""
    for end, step in enumerate(steps, start=1):
        if step in TRAINING or _OPTIMIZER.fullmatch(str(step)):
            return steps[:end]
    return ()
