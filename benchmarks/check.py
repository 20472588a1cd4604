"""A few seconds that show whether something became slower by a factor.

    python benchmarks/check.py

Counts are exact: positions that the language model reads, views that the tower sees, pixels that
are decoded. Times are compared within this process, with margins far below what benchmarks/ finds.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import cv2
import generation
import numpy as np
import scan
import torch
import training_step
import views
from PIL import Image
from table import take_turns

from panovlm.config.schema import ImageProcessing
from panovlm.models.model import PanoramaVLM
from panovlm.panorama.image import read_panorama
from panovlm.panorama.picture import Picture
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.projection import project

Found = tuple[str, float, float]
"""What is compared, how many times as much the other way takes, and how many it must be."""


def positions(model: PanoramaVLM, work: Callable[[], object]) -> int:
    """Return how many positions the language model's layers read."""
    read: list[int] = []

    def count(_: Any, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        hidden = given[0] if given else options["hidden_states"]
        read.append(hidden.shape[0] * hidden.shape[1])

    layer = model.language_model.get_decoder().layers[0]
    hook = layer.register_forward_pre_hook(count, with_kwargs=True)
    work()
    hook.remove()
    return sum(read)


def questions() -> Iterator[Found]:
    """Sixteen questions read once what they share."""
    model, *given = generation.model_and_questions()
    together, batch, _ = generation.ways(model, *given).values()
    ratio = positions(model, batch) / positions(model, together)
    yield "positions read for 16 questions about a panorama", ratio, 10


def packing() -> Iterator[Found]:
    """Four questions in a training step read the panorama once."""
    model = training_step.small()
    packed, single = training_step.steps(model, torch.zeros(1, 9, 3, 64, 64)).values()
    ratio = positions(model, single) / positions(model, packed)
    yield "positions read for 4 questions in a training step", ratio, 2.5


def panoramas() -> Iterator[Found]:
    """Tiles come from one remap, files are decoded no finer than needed."""
    erp = np.random.default_rng(0).integers(0, 256, (1024, 2048, 3), np.uint8)
    ours = lambda: project(erp, views.CAMERAS, (views.SIDE, views.SIDE))  # noqa: E731
    times = take_turns({"ours": ours, "theirs": lambda: views.py360convert(erp)}, 5)
    yield "tiles, against py360convert", median(times["theirs"]) / median(times["ours"]), 2
    file = io.BytesIO()
    Image.fromarray(erp).save(file, "JPEG", quality=90)
    picture = Picture(views.InMemory(file.getvalue()))
    fast = ViewPipeline(ImageProcessing(image_size=64, rendering="fast"))
    yield (
        "pixels decoded for views of 64",
        erp.size / read_panorama(picture, fast.reduction).size,
        60,
    )


def scans() -> Iterator[Found]:
    """The scan in plain torch is faster than a loop over time."""
    args = scan.arguments(4, 64, 112, 16)
    work = {"ours": lambda: scan.ours("torch")(**args), "loop": lambda: scan.loop(**args)}
    with torch.no_grad():
        times = take_turns(work, 5)
    yield "scan in plain torch, against a loop", median(times["loop"]) / median(times["ours"]), 1.0


def main() -> int:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    slow = 0
    for check in (questions, packing, panoramas, scans):
        for what, ratio, least in check():
            slow += ratio < least
            verdict = "ok" if ratio >= least else f"TOO SLOW, at least {least:g} is expected"
            print(f"{what}: {ratio:.1f} times, {verdict}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
