"""A progress bar for commands that go through many files."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def tracked(items: Iterable[Item], *, total: int, doing: str) -> Iterator[Item]:
    """Yield ``items`` while a bar on the terminal shows how many of ``total`` are done.

    There is no bar for a single item, or where the errors do not go to a terminal. What is printed
    in the meantime stands above the bar.
    """
    if total < 2 or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(items, total=total)
