"""Panoramas read ahead of training: which cannot be read, and the views of all that can."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panovlm.data.hub_rows import StreamedCell
from panovlm.data.samples import Sample
from panovlm.data.turns import rolled
from panovlm.errors import DataError
from panovlm.panorama.image import check_panorama, read_panorama
from panovlm.panorama.picture import Image, Picture
from panovlm.panorama.pipeline import ViewPipeline

_logger = logging.getLogger(__name__)

_MEND = (
    "Mend or remove the row, or set data.skip_unreadable_images to leave out rows whose image "
    "cannot be read"
)
_SHOWN = 5
"""How many faults an error spells out."""

T = TypeVar("T")
R = TypeVar("R")


class KnownViews(Protocol):
    """Views that need not be rendered whenever they are asked for."""

    def views(self, sample: Sample) -> NDArray[np.uint8]:
        """Return the views [V, h, w, 3] of a sample's panorama; do not write to them.

        Raises:
            DataError: They cannot be had; the message names the row.
        """
        ...


class ViewCache:
    """Rendered views of panoramas, in one tensor.

    Loader processes read it without a copy: a forked process shares the memory of its parent, and
    torch moves a tensor to shared memory when it is sent to a spawned one. Each training process
    of a distributed run fills its own.

    Args:
        samples: Their images are rendered, each once.
        pipeline: Renders them.
        threads: Threads that read and render.

    Raises:
        DataError: An image cannot be read; the row that names it first stands in the message.
    """

    def __init__(self, samples: Sequence[Sample], pipeline: ViewPipeline, threads: int) -> None:
        first = first_rows(samples)
        self._rows = {image: row for row, image in enumerate(first)}

        def load(sample: Sample) -> NDArray[np.uint8]:
            return load_views(sample, pipeline)

        self._views = _stack(len(first), in_parallel(load, list(first.values()), threads))
        size = self._views.nbytes / 2**20
        _logger.info("keeping the views of %d panoramas in memory (%.0f MiB)", len(first), size)

    def views(self, sample: Sample) -> NDArray[np.uint8]:
        """Return the views [V, h, w, 3] of a sample, without a copy; do not write to them."""
        return self._views[self._rows[sample.image]].numpy()


def load_views(
    sample: Sample, pipeline: ViewPipeline, turn: tuple[int, int] = (0, 1)
) -> NDArray[np.uint8]:
    """Read and render the panorama of a sample: uint8 [V, h, w, 3]; see :func:`load_panorama`."""
    return load_panorama(sample, pipeline, turn, pipeline.render)


def load_panorama(
    sample: Sample,
    pipeline: ViewPipeline,
    turn: tuple[int, int],
    use: Callable[[NDArray[np.uint8]], R],
) -> R:
    """Read the panorama of a sample, and return what is made of it.

    Args:
        sample: Names the image.
        pipeline: Knows how finely it is read.
        turn: How far the panorama is turned first: so many times one so-manieth of a circle.
        use: Makes something of the panorama [H, W, 3].

    Raises:
        DataError: The image cannot be read, turned or used; the message names the row.
    """
    with naming(sample):
        erp = read_panorama(sample.image, pipeline.reduction)
        return use(rolled(erp, *turn) if turn[0] else erp)


@contextmanager
def naming(sample: Sample) -> Generator[None]:
    """Name the row in an error about its image, and say how to mend it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{sample.source}: {error}. {_MEND}") from error


def readable(samples: Sequence[Sample], threads: int) -> list[Sample]:
    """Leave out the samples whose image cannot be read; every one of them is logged.

    All images are decoded once for this.

    Raises:
        DataError: No image can be read.
    """
    first = first_rows(samples)
    faults = in_parallel(partial(_fault, read_panorama), list(first), threads)
    bad = {image: fault for image, fault in zip(first, faults, strict=True) if fault}
    kept = [sample for sample in samples if sample.image not in bad]
    if not bad:
        return kept
    listed = "".join(f"\n  {first[image].source}: {fault}" for image, fault in bad.items())
    text = (
        f"{len(samples) - len(kept)} of {len(samples)} rows are left out, because "
        f"{len(bad)} of {len(first)} images cannot be read:{listed}"
    )
    if not kept:
        raise DataError(text)
    _logger.warning("%s", text)
    return kept


def require_readable(samples: Sequence[Sample], threads: int) -> None:
    """Refuse images that cannot be read before anything is done with the others.

    Files are looked at, not decoded (see :func:`~panovlm.panorama.image.check_panorama`); pictures
    that are streamed are not looked at.

    Raises:
        DataError: An image cannot be read; the rows that name it first stand in the message.
    """
    # A streamed picture would be read with all its row group, only to be looked at.
    first = {
        image: sample
        for image, sample in first_rows(samples).items()
        if not (isinstance(image, Picture) and isinstance(image.file, StreamedCell))
    }
    faults = in_parallel(partial(_fault, check_panorama), list(first), threads)
    told = zip(first.values(), faults, strict=True)
    bad = [f"{sample.source}: {fault}" for sample, fault in told if fault]
    if len(bad) == 1:
        raise DataError(f"{bad[0]}. {_MEND}")
    if bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        listed = "\n  ".join(bad[:_SHOWN])
        raise DataError(
            f"{len(bad)} of {len(first)} images cannot be read:\n  {listed}{more}\n{_MEND}"
        )


def first_rows(samples: Sequence[Sample]) -> dict[Image, Sample]:
    """Return the images, each with the first sample about it."""
    first: dict[Image, Sample] = {}
    for sample in samples:
        first.setdefault(sample.image, sample)
    return first


def _fault(read: Callable[[Image], object], image: Image) -> str:
    """Return why an image cannot be read; empty when it can."""
    try:
        read(image)
    except DataError as error:
        return str(error)
    return ""


def in_parallel(function: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """Map in order; decoding and cutting release the interpreter lock."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        yield from pool.map(function, items)


def _stack(count: int, pictures: Iterator[NDArray[np.uint8]]) -> Tensor:
    """Collect ``count`` arrays of one shape in a tensor, holding few of them twice."""
    stacked = torch.empty(0)
    for row, views in enumerate(pictures):
        if row == 0:
            stacked = torch.empty((count, *views.shape), dtype=torch.uint8)
        stacked[row] = torch.from_numpy(views)
    return stacked
