"""Everything that is wrong with tables and their images, found before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from panovlm.config.image_input import PLAIN, ImageInput
from panovlm.data.rows import Row
from panovlm.data.samples import Sample, samples_of
from panovlm.data.tables import expanded, table_rows
from panovlm.errors import DataError
from panovlm.panorama.image import read_panorama
from panovlm.panorama.picture import Image, is_there

Kind = Literal[
    "table", "row", "missing", "unreadable", "aspect", "empty", "alone", "duplicate", "long"
]

MEANINGS: dict[Kind, str] = {
    "table": "tables that cannot be read",
    "row": "rows that cannot be read",
    "missing": "rows whose image does not exist",
    "unreadable": "images that cannot be read",
    "aspect": "images that are not twice as wide as high",
    "empty": "rows with an empty question or answer",
    "alone": "rows without a conversation, which only stage vision reads",
    "duplicate": "rows that repeat another one",
    "long": "rows whose text is cut off",
}
"""What each kind of finding counts; training refuses the first four."""

_TOLERANCE = 0.01
"""Part of the width by which a panorama may miss twice its height."""

Item = TypeVar("Item")


class Track(Protocol):
    """Passes items on and shows how many of them are done."""

    def __call__(self, items: Iterable[Item], *, total: int, doing: str) -> Iterable[Item]:
        """Yield the items."""
        ...


Measure = Callable[[Path, Sample], str]
"""Says by how much the text of a row of a table is too long; empty: it is not."""


@dataclass(frozen=True)
class Finding:
    """Something wrong at one place."""

    kind: Kind
    source: str
    """The row, or the table."""
    detail: str


@dataclass(frozen=True)
class Check:
    """What was read and what is wrong with it."""

    tables: int
    rows: int
    """Those that could be read and those that could not."""
    images: int
    """Different ones that are there."""
    findings: tuple[Finding, ...]

    @property
    def counts(self) -> dict[Kind, int]:
        """Findings by kind, without those that did not occur."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in MEANINGS if found[kind]}

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            **asdict(self),
            "findings": [asdict(f) for f in self.findings],
            "counts": self.counts,
        }


def check_tables(
    files: Sequence[Path],
    *,
    data_dir: str,
    measure: Measure | None,
    track: Track,
    threads: int,
    image_input: ImageInput = PLAIN,
    alone: Collection[Path] = (),
    stream_blocks: int | None = None,
) -> Check:
    """Read tables and all their images to the end.

    Args:
        files: tables of any form.
        data_dir: base of relative image paths; empty: as :func:`read_tables` finds it.
        measure: judges the length of texts; ``None``: nobody does.
        track: shows the progress.
        threads: images that are decoded at a time.
        image_input: how pictures show the sphere of which the row says nothing.
        alone: tables whose rows need no conversation.
        stream_blocks: as for :func:`read_tables`.
    """
    rows = 0
    samples: dict[Path, list[Sample]] = {}
    findings: list[Finding] = []
    for file in files:
        read, faults = _read(file, data_dir, image_input, stream_blocks)
        samples[file] = read
        if file not in alone:
            bare = [sample for sample in read if not sample.turns]
            findings += [Finding("alone", s.source, "it has no conversation") for s in bare]
        findings += faults
        rows += len(read) + sum(fault.kind == "row" for fault in faults)
    everything = [sample for read in samples.values() for sample in read]
    findings += _faults_of_texts(everything)
    if measure is not None:
        told = [(file, sample) for file, read in samples.items() for sample in read if sample.turns]
        for file, sample in track(told, total=len(told), doing="texts"):
            if fault := measure(file, sample):
                findings.append(Finding("long", sample.source, fault))
    first: dict[Image, Sample] = {}
    for sample in everything:
        if is_there(first.setdefault(sample.image, sample).image):
            continue
        findings.append(Finding("missing", sample.source, f"{sample.image} does not exist"))
    there = [sample for image, sample in first.items() if is_there(image)]
    with ThreadPoolExecutor(threads) as pool:
        faults = pool.map(_fault_of_image, there)
        findings += filter(None, track(faults, total=len(there), doing="images"))
    return Check(len(files), rows, len(there), tuple(findings))


def _read(
    name: Path, data_dir: str, image_input: ImageInput, stream_blocks: int | None
) -> tuple[list[Sample], list[Finding]]:
    """Return the rows of a table that can be used, and what is wrong with the others."""
    samples: list[Sample] = []
    faults: list[Finding] = []
    try:
        files = expanded(name)
    except DataError as error:
        return [], [_told("table", str(name), error)]
    for file in files:
        rows: list[Row] = []
        try:
            for row in table_rows(file, image_input, stream_blocks):
                if isinstance(row, DataError):
                    faults.append(_told("row", str(file), row))
                else:
                    rows.append(row)
        except DataError as error:
            faults.append(_told("table", str(file), error))
        samples += samples_of(file, rows, data_dir)
    return samples, faults


def _told(kind: Kind, file: str, error: DataError) -> Finding:
    """Return an error as a finding; its message begins with its place."""
    text = str(error)
    place, colon, detail = text.partition(": ")
    return (
        Finding(kind, place, detail)
        if colon and place.startswith(file)
        else Finding(kind, file, text)
    )


def _faults_of_texts(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Yield rows with empty texts, and rows that say what another one says."""
    seen: dict[tuple[object, ...], str] = {}
    for sample in samples:
        for number, turn in enumerate(sample.turns, 1):
            empty = [
                w for w, text in zip(("question", "answer"), turn, strict=True) if not text.strip()
            ]
            if empty:
                where = f" (turn {number})" if len(sample.turns) > 1 else ""
                yield Finding("empty", sample.source, f"no {' and no '.join(empty)}{where}")
        before = seen.setdefault((sample.image, sample.turns), sample.source)
        if before != sample.source:
            yield Finding("duplicate", sample.source, f"the same as {before}")


def _fault_of_image(sample: Sample) -> Finding | None:
    try:
        height, width = read_panorama(sample.image).shape[:2]
    except DataError as error:
        return Finding("unreadable", sample.source, str(error))
    if abs(width - 2 * height) > _TOLERANCE * width:
        return Finding("aspect", sample.source, f"{sample.image} has {width} x {height} pixels")
    return None
