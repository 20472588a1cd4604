"""Describes a folder of DeepSpeed: ZeRO stages 0 to 3, also as Lightning and others write it.

``latest`` names the folder of the last save (``global_step1000``, ``checkpoint``). In it,
``*_model_states.pt`` hold the module and what else was saved, ``*_optim_states.pt`` what each
process keeps: in single precision, its share of the parameters that are trained, all in a row.
The shares are told apart by ``param_shapes``, which lists names and shapes in the same order.

Stages 1 and 2 cut the row of each parameter group into one stretch for each process. Stage 3
cuts every single parameter so, and leaves an empty tensor of it in the module.

Where a parameter is in the module in a shorter dtype, the one in single precision is taken: it
is what was trained, and what the training would go on from. Where no process has left its share,
the module is taken if it is complete.

A running average of the weights that was saved besides, in an entry of its own, is taken only where
it is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from panovlm.checkpoint.formats.header import (
    Header,
    Placement,
    TensorInfo,
    record_bytes,
    record_names,
)
from panovlm.checkpoint.formats.names import StoredTensor
from panovlm.checkpoint.formats.rows import Row, joined
from panovlm.checkpoint.formats.source import Source
from panovlm.checkpoint.formats.split import Part, SplitTensor, is_row, read_bytes, whole
from panovlm.checkpoint.formats.zerofiles import StateFiles, find_states, list_states
from panovlm.checkpoint.formats.zerostates import Shapes, States
from panovlm.checkpoint.names.averages import Weights, choose
from panovlm.errors import CheckpointError

_OWN = (
    "module",
    "buffer_names",
    "param_shapes",
    "frozen_param_shapes",
    "frozen_param_fragments",
    "shared_params",
    "sparse_tensor_module_names",
)
_PRECISE = ("float32", "float64")
_TRAINING = ("optimizer", "lr_scheduler", "data_sampler", "random_ltd")


def read(folder: Path, weights: Weights | None) -> Header:
    """Describe the DeepSpeed checkpoint in ``folder``.

    Raises:
        CheckpointError: it is damaged or incomplete, or of a kind that is not read (tensor or
            pipeline parallel, with experts).
    """
    return _describe(folder, weights).header


def tensors(folder: Path, weights: Weights | None) -> Mapping[str, SplitTensor]:
    """Find the weights in the files of ``folder``.

    Raises:
        CheckpointError: as :func:`read`.
    """
    return _describe(folder, weights).tensors


def attachments(folder: Path, weights: Weights | None) -> Mapping[str, SplitTensor]:
    """Find the embedded files in the files of ``folder``.

    Raises:
        CheckpointError: as :func:`read`.
    """
    return _describe(folder, weights).attachments


class _Described(NamedTuple):
    header: Header
    tensors: Mapping[str, SplitTensor]
    attachments: Mapping[str, SplitTensor]


def _describe(folder: Path, weights: Weights | None) -> _Described:
    files = list_states(find_states(folder))
    with ExitStack() as stack:
        models = [States(stack.enter_context(Source(path))) for path in files.models]
        shares = [States(stack.enter_context(Source(path))) for path in files.shares]
        stage = _Stage3(files, models, shares) if files.stage_3 else _Stage2(models[0], shares)
        found, entry = stage.tensors(), "module"
        average = _average(models[0])
        if average and choose(weights, repr(entry), repr(average[0]), str(folder)) == "ema":
            entry, found = average
        entries = models[0].saved.entries()
        others = {
            name: value for name, value in entries.items() if name not in (*_OWN, *_TRAINING, entry)
        }
        states = models[0].mapping("module")
        if no_tensors := {n: v for n, v in states.items() if type(v) is not StoredTensor}:
            others["module"] = no_tensors
        companions = models[0].saved.companions(others)
        embedded = {
            name: whole(models[0].path, models[0].absolute(placed))
            for name, placed in companions.attachments.items()
        }
    header = Header(
        path=folder,
        container="deepspeed",
        tensors={name: tensor.info for name, tensor in found.items()},
        extras=companions.extras,
        attachments={name: tensor.info for name, tensor in embedded.items()},
        skipped=(
            *companions.skipped,
            *(name for name in _TRAINING if entries.get(name) is not None),
            *(["optimizer_states"] if shares else []),
        ),
        entry=entry,
        averaged=entry != "module",
        records={
            name: record_bytes(read_bytes(found[name]), found[name].info.dtype)
            for name in record_names({name: tensor.info for name, tensor in found.items()})
            if is_row(found[name])
        },
    )
    return _Described(header, found, embedded)


def _average(model: States) -> tuple[str, dict[str, SplitTensor]] | None:
    """Return the entry that holds a running average of the weights, if there is one."""
    averages = model.saved.averages(model.saved.entries())
    if not averages:
        return None
    entry, stored = model.saved.weights(averages)
    return entry, {
        name: whole(model.path, model.place(name, value))
        for name, value in stored.items()
        if type(value) is StoredTensor
    }


class _Stage2:
    """Stages 0 to 2: the module is whole, in the dtype of computing."""

    def __init__(self, model: States, shares: list[States]) -> None:
        self.model = model
        self.shares = shares
        self.groups = model.groups()
        self.trained = {name: shape for group in self.groups for name, shape in group.items()}

    def tensors(self) -> dict[str, SplitTensor]:
        module = _module(self.model)
        placed = {
            name: self.model.place(name, value)
            for name, value in module.items()
            if type(value) is StoredTensor
        }
        for name, shape in self.trained.items():
            if name in placed and placed[name].info.shape != shape:
                raise self.model.damaged(
                    f"{name!r} is {list(placed[name].info.shape)} in the module and {list(shape)} "
                    "among the parameters that are trained"
                )
        found = {name: whole(self.model.path, place) for name, place in placed.items()}
        precise = all(
            name in placed and placed[name].info.dtype in _PRECISE for name in self.trained
        )
        if not precise and self.shares:
            found |= dict(self.masters())
            found |= self.second_names(placed, found)
        elif missing := self.trained.keys() - placed.keys():
            raise CheckpointError(
                f"{self.model.path} lacks {min(missing)!r}, and no *_optim_states.pt is beside it. "
                "Copy the whole folder."
            )
        return found

    def masters(self) -> Iterator[tuple[str, SplitTensor]]:
        """Yield the trained parameters in single precision."""
        count = len(self.shares)
        rows = [s.share("single_partition_of_fp32_groups", count) for s in self.shares]
        if any(len(row) != len(self.groups) for row in rows):
            raise self.model.damaged(
                f"it lists {len(self.groups)} groups of parameters, and the processes have left "
                f"{', '.join(str(len(row)) for row in rows)}"
            )
        for index, group in enumerate(self.groups):
            row = Row([share[index] for share in rows])
            needed = sum(prod(shape) for shape in group.values())
            # The row is padded to a multiple of this, and some of the padding is cut off again.
            step = 2 * count
            if row.length < needed or -(-row.length // step) != -(-needed // step):
                raise self.model.damaged(
                    f"group {index} of its parameters has {needed} elements, and the processes "
                    f"have left {row.length}"
                )
            start = 0
            dtype = rows[0][index][1].info.dtype
            for name, shape in group.items():
                yield name, joined(TensorInfo(shape, dtype), [*row.parts(start, prod(shape))])
                start += prod(shape)

    def second_names(
        self, placed: Mapping[str, Placement], found: Mapping[str, SplitTensor]
    ) -> dict[str, SplitTensor]:
        """Return the parameters that have two names in the module, by the second one."""
        if self.model.entry("shared_params") is not None:
            return _second_names(self.model, found)
        # Older versions do not tell, but the module shows it.
        homes = {placed[name]: name for name in self.trained if name in placed}
        return {
            name: found[homes[place]]
            for name, place in placed.items()
            if name not in self.trained and place in homes
        }


class _Stage3:
    """Stage 3: every parameter is cut into one stretch for each process."""

    def __init__(self, files: StateFiles, models: list[States], shares: list[States]) -> None:
        self.files = files
        self.models = models
        self.shares = shares
        self.trained = _same(models, lambda model: _merged(model.groups()))
        self.frozen = _same(models, _frozen_shapes)

    def tensors(self) -> dict[str, SplitTensor]:
        if len(self.shares) != len(self.models):
            raise CheckpointError(
                f"{self.files.folder} holds the states of {len(self.models)} processes and the "
                f"shares of {len(self.shares)} (*_optim_states.pt): files are missing. Copy the "
                "whole folder or take the checkpoint before it."
            )
        first = self.models[0]
        module = _module(first)
        buffers = first.entry("buffer_names")
        named = {name for name in buffers if type(name) is str} if type(buffers) is list else set()
        found: dict[str, SplitTensor] = {}
        for name, value in module.items():
            if type(value) is StoredTensor and (value.shape != (0,) or name in named):
                found[name] = whole(first.path, first.place(name, value))
        found |= dict(self.parameters())
        found |= dict(self.fixed())
        found |= _second_names(first, found)
        # An empty tensor that is left has no elements anywhere: it is a second name, and older
        # versions did not say of what.
        return {name: found[name] for name in (*module, *found) if name in found}

    def parameters(self) -> Iterator[tuple[str, SplitTensor]]:
        """Yield the trained parameters in single precision."""
        count = len(self.shares)
        kept = [s.share("fp32_flat_groups", count) for s in self.shares]
        rows = [Row(row) for row in kept]
        needed = sum(-(-prod(shape) // count) for shape in self.trained.values())
        for states, row in zip(self.shares, rows, strict=True):
            if row.length != needed:
                raise states.damaged(
                    f"it holds {row.length} elements; {needed} are this process' share of the "
                    "parameters"
                )
        start = 0
        dtype = kept[0][0][1].info.dtype if needed else "float32"
        for name, shape in self.trained.items():
            share = -(-prod(shape) // count)
            parts = _stretches(rows, start, share, prod(shape))
            yield name, joined(TensorInfo(shape, dtype), [*parts])
            start += share

    def fixed(self) -> Iterator[tuple[str, SplitTensor]]:
        """Yield the parameters that are not trained; the states of the module hold their shares."""
        fragments = [model.mapping("frozen_param_fragments") for model in self.models]
        for name, shape in self.frozen.items():
            stored = zip(self.models, fragments, strict=True)
            share = -(-prod(shape) // len(self.models))
            first = self.models[0].place(name, fragments[0].get(name))
            if first.info.shape == shape and shape != (share,):  # never cut
                yield name, whole(self.models[0].path, first)
                continue
            kept = [model.flat(name, of.get(name)) for model, of in stored]
            wrong = next((file for file, place in kept if place.info.shape != (share,)), None)
            if wrong is not None:
                raise CheckpointError(
                    f"{wrong} is damaged: its share of {name!r} {list(shape)} should have {share} "
                    "elements. Copy the folder again or take the checkpoint before it."
                )
            parts = _stretches([Row([place]) for place in kept], 0, share, prod(shape))
            yield name, joined(TensorInfo(shape, first.info.dtype), [*parts])


def _stretches(rows: list[Row], start: int, share: int, total: int) -> Iterator[Part]:
    """Yield the shares of a tensor that is cut into equal ones; the last may be filled up."""
    for process, row in enumerate(rows):
        at = process * share
        yield from row.parts(start, max(0, min(share, total - at)), at)


def _module(model: States) -> dict[str, Any]:
    """Return the module's state, whose tensors must all be of a kind that is read."""
    module = model.mapping("module")
    if not module:
        raise model.damaged("it holds no module")
    model.saved.refuse_undescribed(module)
    return module


def _merged(groups: list[Shapes]) -> Shapes:
    return {name: shape for group in groups for name, shape in group.items()}


def _frozen_shapes(model: States) -> Shapes:
    stored = model.entry("frozen_param_shapes")
    return {} if stored is None else model.shapes(stored)


def _same(models: list[States], of: Callable[[States], Shapes]) -> Shapes:
    """Return what the states of all processes must say alike."""
    first, steps = of(models[0]), _steps(models[0])
    for model in models[1:]:
        if of(model) != first or _steps(model) != steps:
            raise CheckpointError(
                f"{model.path} and {models[0].path.name} belong to different checkpoints. Copy "
                "the folder again or take the checkpoint before it."
            )
    return first


def _steps(model: States) -> int | None:
    steps = model.entry("global_steps")
    return steps if type(steps) is int else None


def _second_names(model: States, found: Mapping[str, SplitTensor]) -> dict[str, SplitTensor]:
    """Return the parameters that the file says have a second name, by that name."""
    second = model.mapping("shared_params")
    if any(type(first) is not str for first in second.values()):
        raise model.damaged("its shared_params do not map names to names")
    # One that is not trained may have been left out of the checkpoint.
    return {name: found[first] for name, first in second.items() if first in found}
