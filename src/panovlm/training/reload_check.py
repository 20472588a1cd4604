"""Whether the checkpoints of a run can be loaded, found out before it and with every save.

Before the first step a checkpoint of the untrained model goes the whole way: it is written as
training writes it, and a process that knows nothing but the file loads it, proves it and compares
it with its probe. That takes as long as starting such a process takes. Every file that training
writes is then read back here: its description, every name and shape, some values of every weight.
That takes milliseconds, and what a fresh process would add to it is known from the first check.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import panovlm
from panovlm.checkpoint.fields import flatten
from panovlm.checkpoint.formats import load_tensors
from panovlm.checkpoint.loading.load import prove_model
from panovlm.checkpoint.probe.measure import is_sharded
from panovlm.checkpoint.report.verify import verify
from panovlm.checkpoint.resolution import Resolution
from panovlm.checkpoint.resolve import resolve
from panovlm.errors import CheckpointError, ConfigError, PanoVLMError
from panovlm.models.samples import samples
from panovlm.training.background import AtomicCheckpointIO
from panovlm.training.module import StageModule

SWITCH = "training.reload_check: false switches this check off."


def check_before(module: StageModule, runs_dir: Path, *, fresh_process: bool) -> None:
    """Write a checkpoint of a stage's model and load it again; nothing of it is left.

    Args:
        module: the stage, before its training.
        runs_dir: folder of all runs; the disk that the checkpoints will be on.
        fresh_process: load it in a process of its own, instead of here.

    Raises:
        CheckpointError: it cannot be written, or does not load as the model that it is.
    """
    with _scratch(runs_dir) as folder:
        path = folder / "check.ckpt"
        checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(checkpoint)
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)
        fault = _fault_elsewhere(path) if fresh_process else _fault_here(path)
    if fault:
        raise CheckpointError(
            f"the checkpoints of stage {module.stage} would not load. One was written before the "
            f"first step and opened again:\n{fault.replace(str(path), 'the checkpoint')}\n"
            f"Nothing was trained. {SWITCH}"
        )


def reader(module: StageModule) -> Callable[[Path], None]:
    """Return what reads back a file with the weights of this moment, and what it must hold.

    A few values of every weight are noted here, so that it may be called while training goes on.
    It raises a CheckpointError if the file does not hold the model that is being trained.
    """
    if is_sharded(module.model):
        return lambda path: None
    noted = {name: samples(tensor).cpu() for name, tensor in module.model.state_dict().items()}
    return partial(_check_written, module=module, noted=noted)


def _check_written(path: Path, module: StageModule, noted: Mapping[str, Tensor]) -> None:
    try:
        resolution = resolve(path)
        resolution.raise_conflicts()
        resolution.raise_assumed()
        _check_recipe(resolution, module)
        prove_model(resolution, module.model).raise_failure(path)
        _check_values(resolution, noted)
    except PanoVLMError as error:
        raise CheckpointError(
            f"{path} was just written and cannot be used; training stops before it is needed:\n"
            f"{error}\n{SWITCH}"
        ) from error


def _check_recipe(resolution: Resolution, module: StageModule) -> None:
    """Compare the settings that no shape shows; the proof is about the others."""
    told, true = flatten(resolution.config), flatten(module.model.config.typed_recipe())
    for name in (told.keys() | true.keys()) - resolution.inferred.fields.keys():
        if told.get(name) != true.get(name):
            raise CheckpointError(
                f"{name} is {true.get(name)!r} in the model, but {told.get(name)!r} in "
                f"{resolution.sources.get(name)}."
            )


def _check_values(resolution: Resolution, noted: Mapping[str, Tensor]) -> None:
    """Compare a few values of every tensor."""
    stored = load_tensors(resolution.path)
    for name, file in resolution.keys.files.items():
        if name in noted and not torch.equal(samples(stored[file]), noted[name]):
            raise CheckpointError(f"{file} has other values in the file than in the model.")


def _fault_here(path: Path) -> str:
    """Load a checkpoint in this process; return what is wrong with it, or nothing."""
    found = verify(path, device=torch.device("cpu"), strict=True)
    return "" if found.holds else found.checks[-1].detail


def _fault_elsewhere(path: Path) -> str:
    """Load a checkpoint in a new process, without hub and GPU; return what is wrong with it."""
    command = [sys.executable, "-m", "panovlm", "verify", str(path), "--json"]
    home = str(Path(panovlm.__file__).parents[1])
    inherited = os.environ.get("PYTHONPATH")
    alone = {
        "PYTHONPATH": os.pathsep.join([home, inherited] if inherited else [home]),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(  # noqa: S603 - our own command on our own file
        [*command, "--device", "cpu", "--strict"],
        env={**os.environ, **alone},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ""
    try:
        return str(json.loads(done.stdout)["checks"][-1]["detail"])
    except ValueError:  # it did not come to an answer
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"the process that should load it ended with status {done.returncode}: {said}"


@contextmanager
def _scratch(runs_dir: Path) -> Generator[Path]:
    """Give a folder on the disk of the runs, and remove it."""
    place = next(folder for folder in (runs_dir, *runs_dir.absolute().parents) if folder.is_dir())
    try:
        folder = tempfile.TemporaryDirectory(prefix=".panovlm-reload-check-", dir=place)
    except OSError as error:
        raise ConfigError(
            f"{place} cannot be written to: {error.strerror}; choose another paths.runs_dir."
        ) from error
    with folder as name:
        yield Path(name)
