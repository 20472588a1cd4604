"""From a panorama to the views of a model: against view libraries, and from files.

    python benchmarks/views.py [--runs 7] [--json views.json] [--update docs/performance.md]

First eight tiles of 90 degrees and 256 pixels from a panorama in memory, by this package and by
those libraries that are installed; ours must equal py360convert's in every pixel before anything is
timed. Then nine normalised views from the bytes of a JPEG file, as the original system made them
(tiles of 672 pixels, made small by its tower's processor) and in the three ways of
``image_processing.rendering``, beside what no loader can leave out: reading the file's Huffman
codes, which decoding it at an eighth of its size comes to. Errors are those of two tiles, one of
them over the seam, against the mean of 16 x 16 samples per pixel.

py360convert keeps the coordinates of its last eight kinds of tiles. A data set whose panoramas have
two sizes needs more, and it computes all of them again every time: both cases are measured. So are
both ways to make the original's tiles small: its processor averages areas, as Pillow does, and
torchvision of today; bilinear interpolation alone does not.

``good`` has two by two samples for each pixel of a view, in a panorama of two to four pixels for
each; rows below it have more samples, and a panorama that is decoded twice as finely.

The panorama is that of ``scenery.py``. ``--panorama`` takes a picture instead, which is enlarged
where it is too small.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from machine import spread
from PIL import Image
from scenery import scenery
from table import options, publish, take_turns
from transformers import SiglipImageProcessorPil

from panovlm.config.schema import ImageProcessing
from panovlm.panorama.geometry import Camera
from panovlm.panorama.image import read_panorama
from panovlm.panorama.picture import Picture
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.projection import maps_of, project, project_stack

WIDTHS = (2048, 4096, 8192)
SIDE, FOV = 256, 90
YAWS = tuple(range(0, 360, 45))
CAMERAS = tuple(Camera(yaw, 0, FOV, FOV) for yaw in YAWS)
LARGE = 672
"""Side of the original's tiles."""
FINE = 16
HALF = (0.5, 0.5, 0.5)
PROCESSOR = SiglipImageProcessorPil(
    size={"height": SIDE, "width": SIDE},
    resample=Image.Resampling.BILINEAR,
    image_mean=HALF,
    image_std=HALF,
)
"""That of SigLIP 2."""
ORIGINAL = "original's pipeline"
DECODING = ", decoding alone"
PEERS = ("py360convert", "pytorch360convert", "equilib")


def panoramas(file: Path | None) -> dict[int, np.ndarray]:
    """Return one panorama in every width."""
    whole = np.asarray(Image.open(file).convert("RGB")) if file else scenery(max(WIDTHS))
    return {
        width: cv2.resize(whole, (width, width // 2), interpolation=_filter(whole, width))
        for width in WIDTHS
    }


def _filter(whole: np.ndarray, width: int) -> int:
    return cv2.INTER_AREA if whole.shape[1] >= width else cv2.INTER_CUBIC


# ---------------------------------------------------------------------- tiles from memory


def py360convert(erp: np.ndarray) -> np.ndarray:
    """One call per tile, as its users do."""
    from py360convert import e2p

    return np.stack([e2p(erp, FOV, yaw, 0, (SIDE, SIDE)) for yaw in YAWS])


def without_its_cache(erp: np.ndarray) -> np.ndarray:
    """The same where more kinds of tiles are in use than it keeps."""
    forget()
    return py360convert(erp)


def forget() -> None:
    """Make py360convert compute its coordinates again."""
    from py360convert import utils

    for kept in vars(utils).values():
        if hasattr(kept, "cache_clear"):
            kept.cache_clear()
    for method in vars(utils.EquirecSampler).values():
        if hasattr(function := getattr(method, "__func__", method), "cache_clear"):
            function.cache_clear()


def pytorch360convert(erp: np.ndarray) -> torch.Tensor:
    """The same with torch's grid_sample; the panorama becomes float for that."""
    from pytorch360convert import e2p

    picture = torch.from_numpy(erp).float().permute(2, 0, 1)
    return torch.stack([e2p(picture, FOV, yaw, 0, (SIDE, SIDE)) for yaw in YAWS])


def equilib(erp: np.ndarray) -> Any:
    """All tiles in one call."""
    from equilib import equi2pers

    turns = [{"roll": 0.0, "pitch": 0.0, "yaw": np.deg2rad(yaw)} for yaw in YAWS]
    equi = np.repeat(erp.transpose(2, 0, 1)[None], len(YAWS), axis=0)
    return equi2pers(equi, rots=turns, height=SIDE, width=SIDE, fov_x=float(FOV), mode="bilinear")


def tiles(given: dict[int, np.ndarray], runs: int) -> list[dict[str, Any]]:
    """Time the tiles of every width."""
    rows: list[dict[str, Any]] = []
    for width, erp in given.items():
        work: dict[str, Callable[[], object]] = {
            "panovlm": partial(project, erp, CAMERAS, (SIDE, SIDE))
        }
        for name in PEERS:
            if find_spec(name):
                work[name] = partial(globals()[name], erp)
        work["py360convert, two sizes in use"] = partial(without_its_cache, erp)
        first, second, *_ = maps_of(CAMERAS, (SIDE, SIDE), "corner", 1, (width // 2, width))
        work["OpenCV's remap alone"] = partial(cv2.remap, erp, first, second, cv2.INTER_LINEAR)
        work["that without interpolation"] = partial(cv2.remap, erp, first, None, cv2.INTER_NEAREST)
        if not np.array_equal(project(erp, CAMERAS, (SIDE, SIDE)), py360convert(erp)):
            sys.exit(f"{width}: the tiles are not those of py360convert")
        times = take_turns(work, runs)
        ours = median(times["panovlm"])
        rows += [
            {"width": width, "candidate": name, "ms": found, "ratio": median(found) / ours}
            for name, found in times.items()
        ]
    return rows


# ---------------------------------------------------------------------- views from files


def original(data: bytes, *, averaged: bool = True) -> np.ndarray:
    """Make nine views as the original system does, from its contract.

    Args:
        data: A JPEG file.
        averaged: Whether making tiles small averages areas.
    """
    from py360convert import e2p

    erp = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    whole = Image.new("RGB", (336, 336))
    whole.paste(Image.fromarray(erp).resize((336, 168), Image.Resampling.BICUBIC), (0, 84))
    pictures = [whole]
    pictures += [Image.fromarray(e2p(erp, FOV, yaw, 0, (LARGE, LARGE))) for yaw in YAWS]
    if averaged:
        return np.asarray(PROCESSOR(images=pictures, return_tensors="np")["pixel_values"])
    small = [cv2.resize(np.asarray(each), (SIDE, SIDE)) for each in pictures]
    return (np.stack(small).astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)


def original_anew(data: bytes) -> np.ndarray:
    """The same where panoramas have two sizes."""
    forget()
    return original(data)


@dataclass(frozen=True)
class InMemory:
    """A picture that no disk slows down."""

    data: bytes

    def open(self) -> io.BytesIO:
        return io.BytesIO(self.data)


def load(pipeline: ViewPipeline, data: bytes) -> np.ndarray:
    """Make nine views as this package does."""
    return pipeline.load(Picture(InMemory(data)))


def sampled(pipeline: ViewPipeline, samples: int, finer: int, data: bytes) -> np.ndarray:
    """The same by ``samples`` points along each side of a pixel, which is no setting.

    Args:
        pipeline: That of ``good``.
        samples: Points along each side of a pixel.
        finer: How many times as finely the panorama is decoded.
        data: A JPEG file.
    """
    erp = read_panorama(Picture(InMemory(data)), lambda *size: pipeline.reduction(*size) // finer)
    stack = project_stack(erp, CAMERAS, (SIDE, SIDE), "corner", samples)
    whole = pipeline.cuts[0].take(erp)
    return pipeline.normalise(np.concatenate([whole[None], stack.reshape(-1, *whole.shape)]))


def with_more_samples(
    pipeline: ViewPipeline, data: bytes, width: int
) -> dict[str, Callable[[], np.ndarray]]:
    """Return ways to make views that take more work than ``good``."""
    work = {
        f"good, {count} x {count} samples": partial(sampled, pipeline, count, 1, data)
        for count in (3, 4)
    }
    if pipeline.reduction(width // 2, width) > 1:
        work["good, twice as fine, 3 x 3 samples"] = partial(sampled, pipeline, 3, 2, data)
    return work


def floor(data: bytes) -> None:
    """Decode at an eighth of the size."""
    picture = Image.open(io.BytesIO(data))
    picture.draft(None, (picture.width // 8, picture.height // 8))
    picture.load()


def truth(erp: np.ndarray, yaw: int, first: float, gap: float) -> np.ndarray:
    """Return the mean of each pixel of a tile [SIDE, SIDE, 3], by float64 geometry.

    Args:
        erp: The panorama.
        yaw: Where the tile looks.
        first: Outer edge of its first pixel on the plane at distance 1.
        gap: Width of a pixel there.
    """
    at = first + (np.arange(SIDE * FINE) + 0.5) / FINE * gap
    height, width = erp.shape[:2]
    around = cv2.copyMakeBorder(erp, 0, 0, 1, 1, cv2.BORDER_WRAP)
    tile = np.empty((SIDE, SIDE, 3))
    for row in range(SIDE):
        y = at[row * FINE : (row + 1) * FINE, None]
        longitude = np.arctan(at)[None] + np.deg2rad(yaw)
        latitude = np.arctan2(-y, np.hypot(at, 1)[None])
        u = (longitude / (2 * np.pi) + 0.5) % 1 * width - 0.5
        v = np.broadcast_to((0.5 - latitude / np.pi) * height - 0.5, (FINE, len(at)))
        u = np.broadcast_to(u, v.shape) + 1
        maps = u.astype(np.float32), v.astype(np.float32)
        seen = cv2.remap(around, *maps, cv2.INTER_LINEAR).astype(np.float64)
        tile[row] = seen.reshape(FINE, SIDE, FINE, 3).mean((0, 2))
    return tile


def psnr(values: np.ndarray, erp: np.ndarray, *, large: bool) -> float:
    """Return the error of the tiles to the front and to the back, in dB."""
    edge = np.tan(np.deg2rad(FOV) / 2)
    step = 2 * edge / ((LARGE if large else SIDE) - 1)
    gap = step * LARGE / SIDE if large else step
    squares = [
        np.mean(
            (values[1 + YAWS.index(yaw)].transpose(1, 2, 0) * 127.5 + 127.5
             - truth(erp, yaw, -edge - step / 2, gap)) ** 2
        )
        for yaw in (0, 180)
    ]  # fmt: skip
    return float(10 * np.log10(255**2 / np.mean(squares)))


def files(given: dict[int, np.ndarray], runs: int) -> list[dict[str, Any]]:
    """Time the way from JPEG bytes to views, and measure its errors."""
    rows: list[dict[str, Any]] = []
    settings = {"image_size": SIDE, "image_mean": HALF, "image_std": HALF}
    for width, erp in given.items():
        file = io.BytesIO()
        Image.fromarray(erp).save(file, "JPEG", quality=90)
        data = file.getvalue()
        decoded = np.array(Image.open(io.BytesIO(data)))
        work: dict[str, Callable[[], Any]] = {
            f"an eighth{DECODING}": partial(floor, data),
            ORIGINAL: partial(original, data),
            f"{ORIGINAL}, two sizes in use": partial(original_anew, data),
            f"{ORIGINAL}, tiles not averaged": partial(original, data, averaged=False),
        }
        for way in ("exact", "good", "fast"):
            pipeline = ViewPipeline(ImageProcessing.model_validate({**settings, "rendering": way}))
            work[way] = partial(load, pipeline, data)
            work[f"{way}{DECODING}"] = partial(
                read_panorama, Picture(InMemory(data)), pipeline.reduction
            )
            if way == "good":
                work |= with_more_samples(pipeline, data, width)
        errors = {
            name: psnr(made(), decoded, large=name.startswith(ORIGINAL))
            for name, made in work.items()
            if not name.endswith(DECODING)
        }
        times = take_turns(work, runs)
        least, most = (median(times[name]) for name in list(work)[:2])
        rows += [
            {
                "width": width,
                "candidate": name,
                "ms": found,
                "psnr": errors.get(name),
                "faster than the original": most / median(found),
                "times the least": median(found) / least,
                "bytes": len(data),
            }
            for name, found in times.items()
        ]
    return rows


def main() -> int:
    parser = options(__doc__.splitlines()[0], runs=7)
    parser.add_argument("--panorama", type=Path, help="picture to use instead of leaves")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    pictures = panoramas(given.panorama)
    made, loaded = tiles(pictures, given.runs), files(pictures, given.runs)
    missing = [name for name in PEERS if not find_spec(name)]
    lines = ["| panorama | eight tiles by | ms | times as long |", "|---|---|---|---|"]
    lines += [
        f"| {row['width']} | {row['candidate']} | {spread(row['ms'], 1)} | {row['ratio']:.1f} |"
        for row in made
    ]
    lines += ["", f"Not installed: {', '.join(missing)}."] if missing else []
    lines += ["", "| JPEG | nine views by | ms | original : this | this : least | PSNR, dB |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {row['width']} ({row['bytes'] / 1e6:.1f} MB) | {row['candidate']} "
        f"| {spread(row['ms'], 1)} | {row['faster than the original']:.1f} "
        f"| {row['times the least']:.2f} | {format(row['psnr'], '.1f') if row['psnr'] else ''} |"
        for row in loaded
    ]
    publish(given, "views.py", lines, [*made, *loaded])
    return 0


if __name__ == "__main__":
    sys.exit(main())
