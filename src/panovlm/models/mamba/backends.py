"""Which implementation the selective scan uses, chosen when the program runs.

Scans round a loop of views begin with a state of their own and are always those of torch.

All compute the same, so that the choice belongs to the machine and not to a model: it stands in
``environment.scan_backend`` and in no checkpoint. Like torch's number of threads it holds for the
whole process.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from panovlm.errors import ConfigError, MissingDependencyError

Backend = Literal["torch", "numba", "triton", "mamba_ssm"]
Choice = Literal["auto", "torch", "numba", "triton", "mamba_ssm"]

ON_GPU = ("triton", "mamba_ssm")
WORTH_COMPILING = 1 << 23
"""States of a scan (batch x width x length x n) from which ``auto`` takes numba: the first scan of
a machine compiles for some ten seconds, and every process loads the result for half a second."""

_choice: Choice = "auto"


def use(choice: Choice) -> None:
    """Choose the backend of every scan of this process from now on.

    Args:
        choice: ``torch``: anywhere; ``numba``: compiled loops for float32 on the CPU; ``triton``
            and ``mamba_ssm``: kernels for CUDA devices, while scans on the CPU beside them (of
            checkpoints that are tried out there) go by ``auto``; ``auto``: numba for large scans on
            the CPU where it is installed, else torch. Scans in float64 stay in torch.

    Raises:
        MissingDependencyError: what is asked for is not installed.
    """
    global _choice
    missing = {"numba": _missing_numba, "triton": missing_for_triton, "mamba_ssm": _missing_mamba}
    if choice in missing and (lack := missing[choice]()):
        raise MissingDependencyError(
            f"environment.scan_backend is {choice!r}, but {lack} Or set environment.scan_backend "
            "to auto or torch."
        )
    _choice = choice


def chosen() -> Choice:
    """Return what :func:`use` was last called with."""
    return _choice


@cache
def has_numba() -> bool:
    """Tell whether numba is installed, without importing it."""
    return find_spec("numba") is not None


@cache
def missing_for_triton() -> str | None:
    """Say what Triton lacks on this machine and how to get it, if anything.

    It compiles a small library in C when it first meets a CUDA device.
    """
    if find_spec("triton") is None:
        return "the package triton is not installed. Install it with: pip install triton."
    if interpreted():
        return None
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler, which it needs. Install gcc or clang."
    scheme = sysconfig.get_default_scheme()
    if scheme == "posix_local":  # Debian's folder for what is not its own; Triton leaves it out too
        scheme = "posix_prefix"
    headers = Path(sysconfig.get_paths(scheme)["include"])
    if not (headers / "Python.h").is_file():
        return (
            f"Triton needs Python's header files, and there is no {headers / 'Python.h'}. Install "
            "them (on Debian and Ubuntu: the package python3-dev)."
        )
    return None


def interpreted() -> bool:
    """Tell whether Triton interprets its kernels, which takes long and works on the CPU."""
    from triton import knobs

    return knobs.runtime.interpret


def _missing_numba() -> str | None:
    if has_numba():
        return None
    return "the package numba is not installed. Install it with: pip install 'panovlm[fast]'."


def _missing_mamba() -> str | None:
    if find_spec("mamba_ssm") is not None:
        return None
    return "the package mamba-ssm is not installed. Install it with: pip install mamba-ssm."


def for_scan(device: torch.device, dtype: torch.dtype, states: int) -> Backend:
    """Return the backend for a scan over so many states, of this kind of tensors.

    Raises:
        ConfigError: the chosen one cannot work on this device.
    """
    if _choice == "torch" or dtype != torch.float32 or device.type == "meta":
        return "torch"
    if device.type == "cpu":
        return _on_cpu(states)
    if _choice == "numba" or (_choice in ON_GPU and device.type != "cuda"):
        raise _unfit("the CPU" if _choice == "numba" else "CUDA devices", device)
    return "torch" if _choice == "auto" else _choice


def _on_cpu(states: int) -> Backend:
    if _choice == "triton" and interpreted():
        return "triton"
    if _choice in ON_GPU and not torch.cuda.is_available():
        raise _unfit("CUDA devices", torch.device("cpu"))
    wanted = _choice == "numba" or states >= WORTH_COMPILING
    return "numba" if wanted and has_numba() else "torch"


def _unfit(where: str, device: torch.device) -> ConfigError:
    return ConfigError(
        f"environment.scan_backend is {_choice!r}, which works on {where} only, but the model is "
        f"on {device}. Set environment.scan_backend to auto or torch."
    )
