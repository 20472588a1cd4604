"""Which implementation the selective scan uses, chosen when the program runs.

Scans round a loop of views begin with a state of their own and are always those of torch.

All compute the same, so that the choice belongs to the machine and not to a model: it stands in
``environment.scan_backend`` and in no checkpoint. Like torch's number of threads it holds for the
whole process.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch

from panovlm.errors import ConfigError, MissingDependencyError

Backend = Literal["torch", "numba"]
Choice = Literal["auto", "torch", "numba"]

WORTH_COMPILING = 1 << 23
"""States of a scan (batch x width x length x n) from which ``auto`` takes numba: the first scan of
a machine compiles for some ten seconds, and every process loads the result for half a second."""

_choice: Choice = "auto"


def use(choice: Choice) -> None:
    """Choose the backend of every scan of this process from now on.

    Args:
        choice: ``torch``: anywhere; ``numba``: compiled loops for float32 on the CPU (float64 stays
            in torch); ``auto``: numba for large scans where it is installed and fits, else torch.

    Raises:
        MissingDependencyError: ``numba`` is asked for and not installed.
    """
    global _choice
    if choice == "numba" and not has_numba():
        raise MissingDependencyError(
            "environment.scan_backend is 'numba', but the package numba is not installed. Install "
            "it with: pip install 'panovlm[fast]'. Or set environment.scan_backend to auto or "
            "torch."
        )
    _choice = choice


def chosen() -> Choice:
    """Return what :func:`use` was last called with."""
    return _choice


@cache
def has_numba() -> bool:
    """Tell whether numba is installed, without importing it."""
    return find_spec("numba") is not None


def for_scan(device: torch.device, dtype: torch.dtype, states: int) -> Backend:
    """Return the backend for a scan over so many states, of this kind of tensors.

    Raises:
        ConfigError: the chosen one cannot work on this device.
    """
    if _choice == "torch" or dtype != torch.float32 or device.type == "meta":
        return "torch"
    if device.type == "cpu":
        wanted = _choice == "numba" or states >= WORTH_COMPILING
        return "numba" if wanted and has_numba() else "torch"
    if _choice == "numba":
        raise ConfigError(
            "environment.scan_backend is 'numba', which works on the CPU only, but the model is "
            f"on {device}. Set environment.scan_backend to auto or torch."
        )
    return "torch"
