"""How the cost of a panorama grows with its views, its resolution and the length of its scan.

    python benchmarks/growth.py [--runs 5] [--json FILE] [--update PAGE]

Each line doubles what must be touched; "per unit" divides by it, so that a cost which grows in
proportion keeps that figure. For the growth with the size of a checkpoint see headers.py.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import cv2
import scan
import torch
import views
from machine import spread
from PIL import Image
from scenery import noise
from small_model import TOWER, small_model
from table import options, publish, take_turns

from panovlm.config.schema import ImageProcessing
from panovlm.models.mamba import backends
from panovlm.models.model import PanoramaVLM
from panovlm.panorama.geometry import Camera
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.projection import project

SIDE = 256


class Series(NamedTuple):
    """Work of growing size.

    Attributes:
        name: what grows.
        unit: what must be touched.
        works: the work for every number of units.
    """

    name: str
    unit: str
    works: Mapping[int, Callable[[], object]]


def tiles() -> Series:
    """Cut more and more tiles from one panorama."""
    erp = noise(4096)
    works = {}
    for count in (8, 16, 32, 64):
        cameras = tuple(Camera(360 * i / count, 0, 90, 90) for i in range(count))
        works[count] = partial(project, erp, cameras, (SIDE, SIDE))
    return Series("tiles of 256 pixels from 4096 x 2048", "tiles", works)


def resolutions() -> Series:
    """Read larger and larger files into the same nine views."""
    settings = {"image_size": SIDE, "image_mean": views.HALF, "image_std": views.HALF}
    pipeline = ViewPipeline(ImageProcessing.model_validate({**settings, "rendering": "good"}))
    whole = noise(16384)
    works = {}
    for width in (2048, 4096, 8192, 16384):
        erp = cv2.resize(whole, (width, width // 2), interpolation=cv2.INTER_AREA)
        file = io.BytesIO()
        Image.fromarray(erp).save(file, "JPEG", quality=90)
        works[width * width // 2 // 10**6] = partial(views.load, pipeline, file.getvalue())
    return Series("nine views of a JPEG, 2048 to 16384 wide, `good`", "megapixels", works)


def seen() -> Series:
    """Take more and more views through tower, resampler and projector."""
    model = small_model(vision_config={**TOWER, "image_size": 64}).eval()
    works = {
        count: partial(encode, model, torch.randn(1, count, 3, 64, 64)) for count in (8, 16, 32, 64)
    }
    return Series("views through tower, BiMamba and projector", "views", works)


@torch.no_grad()
def encode(model: PanoramaVLM, pixels: torch.Tensor) -> torch.Tensor:
    """Return the vision tokens of a panorama."""
    return model.vision_tokens(pixels)


def lengths() -> Series:
    """Scan longer and longer sequences."""
    run = scan.ours("numba" if backends.has_numba() else "torch")
    works = {}
    for length in (256, 512, 1024, 2048, 4096):
        works[length] = partial(scanned, run, scan.arguments(1, length, 512, 16))
    return Series("a scan of width 512, state 16", "time steps", works)


@torch.no_grad()
def scanned(run: Callable[..., torch.Tensor], given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Scan once."""
    return run(**given)


def measured(runs: int) -> Iterator[dict[str, Any]]:
    """Time every series."""
    for series in (tiles(), resolutions(), seen(), lengths()):
        times = take_turns({str(units): work for units, work in series.works.items()}, runs)
        first = None
        for units in series.works:
            found = times[str(units)]
            each = median(found) / units
            first = first or each
            yield {
                "series": series.name,
                "unit": series.unit,
                "units": units,
                "ms": found,
                "per unit": each,
                "against the first": each / first,
            }


def main() -> int:
    given = options(__doc__.splitlines()[0], runs=5).parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    lines = [
        "| what grows | units | ms | ms per unit | against the first |",
        "|---|---|---|---|---|",
    ]
    rows = list(measured(given.runs))
    lines += [
        f"| {row['series']} | {row['units']} {row['unit']} "
        f"| {spread(row['ms'], 1)} | {row['per unit']:.4g} | {row['against the first']:.2f} |"
        for row in rows
    ]
    publish(given, "growth.py", lines, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
