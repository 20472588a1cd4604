"""Panoramas turned about the vertical axis, and what is said about them turned with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panovlm.data.directions import fault, turned
from panovlm.data.rows import Turn
from panovlm.data.samples import Sample
from panovlm.errors import DataError
from panovlm.panorama.image import panorama_size

_SHOWN = 5
_TOLERANCE = 0.01
"""Part of the width by which a whole panorama may miss twice its height."""


def rolled(erp: NDArray[Any], number: int, turns: int) -> NDArray[Any]:
    """Turn a panorama [H, W, 3] clockwise by ``number / turns`` of a circle, in whole pixels.

    What was in front is to the right after one of four turns.

    Raises:
        DataError: it is not twice as wide as high, so that it may not go round the whole circle.
    """
    height, width = erp.shape[:2]
    if not _is_whole(width, height):
        raise DataError(f"{_not_whole(width, height)} and cannot be turned (training.yaw_turns)")
    return np.roll(erp, round(width * number / turns), axis=1)


def turned_conversation(turns: Sequence[Turn], number: int, of: int) -> tuple[Turn, ...]:
    """Return what is said about a panorama that was turned ``number`` times ``of`` a circle.

    Raises:
        DataError: a text cannot be turned.
    """
    return tuple(
        (turned(question, number, of), turned(answer, number, of)) for question, answer in turns
    )


def all_turned(sample: Sample, turns: int) -> Iterator[tuple[Turn, ...]]:
    """Yield a sample's conversation for every turn of its panorama."""
    if turns == 1:
        yield sample.turns
        return
    for number in range(turns):
        yield turned_conversation(sample.turns, number, turns)


def require_turnable(samples: Sequence[Sample], turns: int, *, reads_text: bool) -> None:
    """Refuse rows whose panorama or texts cannot be turned, before anything is trained.

    Images that cannot be read are left to those who read them.

    Raises:
        DataError: there are such rows; the first ones are named.
    """
    faults = [*_image_faults(samples), *(_text_faults(samples, turns) if reads_text else ())]
    if not faults:
        return
    more = f"\n  and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    listed = "\n  ".join(faults[:_SHOWN])
    raise DataError(
        f"training.yaw_turns is {turns}, but turning would falsify {len(faults)} of {len(samples)} "
        f"rows:\n  {listed}{more}\nMend or remove these rows, or set training.yaw_turns to 1"
    )


def _text_faults(samples: Sequence[Sample], turns: int) -> Iterator[str]:
    for sample in samples:
        whys = (fault(text, turns) for turn in sample.turns for text in turn)
        why = next(filter(None, whys), "")
        if why:
            yield f"{sample.source}: {why}"


def _image_faults(samples: Sequence[Sample]) -> Iterator[str]:
    for sample in {sample.image: sample for sample in reversed(samples)}.values():
        try:
            width, height = panorama_size(sample.image)
        except DataError:
            continue
        if not _is_whole(width, height):
            yield f"{sample.source}: {sample.image}: {_not_whole(width, height)}"


def _is_whole(width: int, height: int) -> bool:
    return abs(width - 2 * height) <= _TOLERANCE * width


def _not_whole(width: int, height: int) -> str:
    return f"the panorama has {width} x {height} pixels, is not twice as wide as high"
