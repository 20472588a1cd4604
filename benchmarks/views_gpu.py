"""Views that loaders cut against views that a CUDA device cuts.

    python benchmarks/views_gpu.py [--runs 20] [--batch 8] [--side 256] [--json views_gpu.json]
        [--update docs/performance.md]

Batches of JPEG panoramas become normalised views on the device in both ways of
``training.views_on``, which must agree in every bit before anything is timed. "ms of a loader" is
the processor time of one thread for one panorama: reading the file, and cutting or not. "MB" is
what crosses the bus for it. "ms to copy" and "ms to cut" are those of the device, from page-locked
memory; where cutting takes less than the device's own work on a panorama, loaders are all that
counts. The pictures are those of ``scenery.py``.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from machine import machine, spread
from PIL import Image
from scan_gpu import milliseconds
from scenery import scenery
from table import options, take_turns, write
from torch import Tensor
from views import HALF, InMemory

from panovlm.config.schema import ImageProcessing
from panovlm.panorama.device import DeviceViews
from panovlm.panorama.picture import Picture
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.uncut import Uncut, read_uncut, together

WIDTHS = (2048, 4096, 8192)
WAYS = ("exact", "good", "fast")


def pinned(group: Uncut) -> Uncut:
    """Return the same in page-locked memory."""
    return group._replace(panoramas=group.panoramas.pin_memory(), others=group.others.pin_memory())


def size_of(group: Uncut) -> int:
    """Return its bytes."""
    return group.panoramas.nbytes + group.others.nbytes


def on_device(work: Callable[[], object], runs: int) -> list[float]:
    """Return the device's milliseconds of some runs; the first warms up and is not counted."""
    return [milliseconds(work) for _ in range(runs + 1)][1:]


def measure(width: int, way: str, given: Any) -> list[dict[str, Any]]:
    """Compare both ways on a batch of one picture."""
    device, batch = torch.device("cuda"), given.batch
    settings = {"image_size": given.side, "image_mean": HALF, "image_std": HALF, "rendering": way}
    pipeline = ViewPipeline(ImageProcessing.model_validate(settings))
    file = io.BytesIO()
    Image.fromarray(scenery(width)).save(file, "JPEG", quality=90)
    picture = Picture(InMemory(file.getvalue()))
    loading = {
        "loader": partial(pipeline.load, picture),
        "device": partial(read_uncut, picture, pipeline),
    }
    loaders = take_turns(loading, given.runs)
    views = torch.from_numpy(np.stack([pipeline.load(picture)] * batch)).pin_memory()
    (group,) = map(pinned, together([read_uncut(picture, pipeline)] * batch))
    cutting, there = DeviceViews(pipeline), group.on(device)

    def cut() -> Tensor:
        return cutting.normalise(cutting.cut([there]))

    if not torch.equal(cut().cpu(), views):
        sys.exit(f"{width}, {way}: the device's views are not the loader's")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    timed = on_device(cut, given.runs)
    peak = torch.cuda.max_memory_allocated() - before
    copies = {
        "loader": on_device(lambda: views.to(device, non_blocking=True), given.runs),
        "device": on_device(lambda: group.on(device), given.runs),
    }
    moved = {"loader": views.nbytes, "device": size_of(group)}
    none = [0.0] * given.runs
    return [
        {
            "width": width,
            "rendering": way,
            "views on": place,
            "loader ms": loaders[place],
            "MB": moved[place] / batch / 1e6,
            "copy ms": [time / batch for time in copies[place]],
            "cut ms": [time / batch for time in (timed if place == "device" else none)],
            "peak MiB": peak / 2**20 if place == "device" else 0.0,
            "less for a loader": median(loaders["loader"]) / median(loaders[place]),
        }
        for place in ("loader", "device")
    ]


def main() -> int:
    parser = options(__doc__.splitlines()[0], runs=20)
    parser.add_argument("--batch", type=int, default=8, help="panoramas of a batch")
    parser.add_argument("--side", type=int, default=256, help="height and width of a view")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: there is nothing to compare the loaders with")
        return 0
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    where = f"{torch.cuda.get_device_name()}, {machine()}"
    lines = [
        f"On {where}; nine views of {given.side} pixels, batches of {given.batch}, all figures for "
        f"one panorama; medians of {given.runs} runs [smallest .. largest].",
        "",
        "| panorama | rendering | views on | ms of a loader | less | MB | ms to copy | ms to cut "
        "| MiB meanwhile |",
        "|---" * 9 + "|",
    ]
    rows = [row for width in WIDTHS for way in WAYS for row in measure(width, way, given)]
    lines += [
        f"| {row['width']} | {row['rendering']} | {row['views on']} "
        f"| {spread(row['loader ms'], 1)} | {row['less for a loader']:.1f} | {row['MB']:.1f} "
        f"| {spread(row['copy ms'])} | {spread(row['cut ms'])} | {row['peak MiB']:.0f} |"
        for row in rows
    ]
    write(given, "views_gpu.py", lines, rows, where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
