"""What a measurement was made on, and how its numbers are summed up."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median


def machine() -> str:
    """Return one line about processor, memory, system and libraries."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, torch {version('torch')}, "
        f"transformers {version('transformers')}"
    )


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return the median with the smallest and the largest value."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} [{low:.{digits}f} .. {high:.{digits}f}]"
