"""How numba compiles the functions of the scan, and where it keeps them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def digest_of_sources(folder: Path) -> str:
    """Return a name for what stands in the modules of a folder."""
    sources = (path.read_bytes() for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(b"".join(sources)).hexdigest()[:12]


SOURCES = digest_of_sources(Path(__file__).parent)


def jit(function: Function, *, inlined: bool = False) -> Function:
    """Compile at the first call; keep the result on disk where numba finds a place for it.

    numba looks for changes in the file of the function alone, not of those that it calls. The
    result is named after the function, hence also after all these sources.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": inlined}
    if not inlined:
        function.__qualname__ += f"_{SOURCES}"
    try:
        return cast("Function", numba.njit(cache=not inlined, **options)(function))
    except RuntimeError:  # no folder to write to: every process compiles for itself
        return cast("Function", numba.njit(**options)(function))


def inlined(function: Function) -> Function:
    """Compile as a part of the functions that call this one."""
    return jit(function, inlined=True)
