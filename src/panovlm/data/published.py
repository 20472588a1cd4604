"""The file layouts of published data sets, read into rows of our own form.

Nothing of these layouts is known to the reading of training data: ``panovlm data convert`` writes a
table of conversations once. Only layouts that are certain are here.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from panovlm.data.csv_rows import QUERY_TEMPLATE
from panovlm.data.rows import Turn, read_text
from panovlm.errors import DataError


@dataclass(frozen=True)
class Found:
    """A panorama of a data set, with what is said about it."""

    source: str
    """Where it stands."""
    image: Path
    turns: tuple[Turn, ...] = ()
    """None for data sets of panoramas alone."""
    columns: dict[str, str] = field(default_factory=dict[str, str])


Reader = Callable[[Path, Path | None], Iterator[Found | DataError]]
"""Reads a data set (its path, and the folder of its images if that is apart)."""


def quic360(source: Path, images: Path | None) -> Iterator[Found | DataError]:
    """Read a split of QuIC-360: ``train.tsv`` and its kind, with url, query and annotation.

    The addresses are those of the photographs on the web; each is looked for under the last part of
    its path in the folder of images.
    """
    if images is None:
        raise DataError(
            f"{source} gives addresses of photographs; say with --images in which folder you put "
            "them, under their own names"
        )
    for place, row in _cells(source, "\t", ("url", "query", "annotation")):
        if isinstance(row, DataError):
            yield row
            continue
        name = Path(urlsplit(row["url"]).path).name
        question = QUERY_TEMPLATE.format(query=row["query"])
        turn = (question, row["annotation"])
        yield Found(place, images / name, (turn,), {"query": row["query"]})


def osr_bench(source: Path, images: Path | None) -> Iterator[Found | DataError]:
    """Read OSR-Bench: ``qa.csv`` in its folder, where ``image_id`` is a path below that folder."""
    table = source / "qa.csv" if source.is_dir() else source
    folder = images or table.parent
    for place, row in _cells(table, ",", ("image_id", "question", "answer")):
        if isinstance(row, DataError):
            yield row
            continue
        path = PurePosixPath(row["image_id"])
        if path.is_absolute() or ".." in path.parts:
            yield DataError(f"{place}: image_id {row['image_id']!r} leads out of the folder")
            continue
        yield Found(place, folder / path, ((row["question"], row["answer"]),))


def _cells(
    file: Path, delimiter: str, needed: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, str] | DataError]]:
    """Yield the place of every row and its cells, or why it has none."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""), delimiter=delimiter, strict=True)
    header = next(reader, [])
    missing = set(needed) - set(header)
    if missing:
        raise DataError(
            f"{file} is no such data set: it has no column {', '.join(sorted(missing))}; its "
            f"columns are {header}"
        )
    while True:
        place = f"{file}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield place, DataError(f"{place}: no valid row: {error}")
            continue
        if cells is None:
            return
        if len(cells) == len(header):
            yield place, dict(zip(header, cells, strict=True))
        elif cells:
            fault = f"{place}: {len(cells)} cells, expected {len(header)}"
            yield place, DataError(fault)


def _panoramas(*patterns: str) -> Reader:
    """Return the reader of a data set of panoramas alone.

    Args:
        patterns: where they lie below its folder, or below folders of its folder.
    """

    def read(source: Path, images: Path | None) -> Iterator[Found | DataError]:
        if images is not None:
            raise DataError("--images is for data sets whose images are apart; leave it out here")
        if not source.is_dir():
            raise DataError(f"{source} is no folder; name that of the data set")
        found = {path for pattern in patterns for path in source.glob(pattern)}
        for path in sorted(found):
            yield Found(str(path), path)

    return read


LAYOUTS: dict[str, Reader] = {
    "quic360": quic360,
    "osr_bench": osr_bench,
    # The layout of 2D-3D-S: area_1/pano/rgb/camera_..._domain_rgb.png
    "stanford2d3d": _panoramas(
        "area_*/pano/rgb/camera_*_frame_equirectangular_domain_rgb.png",
        "pano/rgb/camera_*_frame_equirectangular_domain_rgb.png",
    ),
    # 0000/panos/floor_01_partial_room_02_pano_3.jpg
    "zind": _panoramas("*/panos/floor_*_pano_*.jpg", "panos/floor_*_pano_*.jpg"),
    # scene_00000/2D_rendering/485142/panorama/full/rgb_rawlight.png; the other lights and the
    # rooms without furniture show the same places again.
    "structured3d": _panoramas("**/scene_*/2D_rendering/*/panorama/full/rgb_rawlight.png"),
}
"""Name of a data set → what reads it."""
