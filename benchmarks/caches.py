"""A pass over panoramas in training: nothing kept, views kept on disk, the tower's features kept.

    python benchmarks/caches.py [--runs 5] [--json caches.json] [--update docs/performance.md]

A model with a frozen tower of 11 million parameters learns from nine views of 224 pixels, one
question about each panorama, with gradients of all that stage finetune trains. Panoramas are JPEG
files of noise with the spectrum of photographs. Losses and gradients of all ways must be equal in
every bit before anything is timed. Files are in the page cache.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import torch
from machine import spread
from PIL import Image
from scenery import noise
from small_model import LANGUAGE, TOWER, small_model
from table import options, publish, take_turns

from panovlm.config.schema import ImageProcessing
from panovlm.data.features import KeptFeatures, write_features
from panovlm.data.kept_views import OnDisk
from panovlm.data.module import PanoramaData
from panovlm.data.samples import Sample
from panovlm.data.store import Store, key_of, picture_identity
from panovlm.models.model import PanoramaVLM
from panovlm.models.vision.seen import SeenViews
from panovlm.panorama.pipeline import ViewPipeline

PANORAMAS = 2
SIDE = 224
WAYS = ("nothing", "views", "features")
TURN = ("what is left of the red ball ?", "the red house")


def model_with_tower() -> PanoramaVLM:
    """Return the model; its tower is frozen."""
    tower = {
        **TOWER,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "image_size": SIDE,
        "patch_size": 16,
    }
    model = small_model(vision_config=tower, language_config={**LANGUAGE, "num_hidden_layers": 4})
    model.vision_backbone.requires_grad_(False)
    return model


def pictures(folder: Path, width: int) -> list[Sample]:
    """Write panoramas; return a row about each."""
    erp, rows = noise(width), []
    for number in range(PANORAMAS):
        file = folder / f"{width}-{number}.jpg"
        Image.fromarray(cv2.flip(erp, number - 1)).save(file, quality=90)
        rows.append(Sample(file, (TURN,), f"rows:{number}"))
    return rows


def loaders(model: PanoramaVLM, rows: list[Sample], folder: Path) -> dict[str, PanoramaData]:
    """Return the data of every way, with what it keeps in its place."""
    pipeline = ViewPipeline(ImageProcessing(image_size=(SIDE, SIDE)))

    def data(**kept: Any) -> PanoramaData:
        made = PanoramaData(
            rows, [], pipeline=pipeline, chat=model.chat(), batch_size=1, seed=0, **kept
        )
        made.setup("fit")
        return made

    ways = {"nothing": data(), "views": data(cache_views=OnDisk(folder, 1)), "features": data()}
    store, keys = Store(folder, "features"), {}
    for row in rows:
        keys[row.image] = key_of(picture_identity(row.image))
        with torch.no_grad():
            seen = model.seen(torch.from_numpy(pipeline.load(row.image))[None])
        write_features(store, keys[row.image], seen.features[0], seen.size)
    ways["features"].give_features(KeptFeatures(store, keys))
    return ways


def train(model: PanoramaVLM, data: PanoramaData) -> list[torch.Tensor]:
    """Take the loss and gradients of every panorama once; return them."""
    found: list[torch.Tensor] = []
    for batch in data.train_dataloader():
        model.zero_grad()
        views = batch.get("pixel_values")
        if views is None:
            views = SeenViews(batch["features"], batch["view_size"])
        loss = model(views, batch["input_ids"], labels=batch["labels"]).loss
        loss.backward()
        found += [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    return found


def measured(model: PanoramaVLM, width: int, runs: int, folder: Path) -> list[dict[str, Any]]:
    """Time all ways for panoramas of one width."""
    ways = loaders(model, pictures(folder, width), folder / str(width))
    expected = train(model, ways["nothing"])
    for name in WAYS[1:]:
        for _ in range(2):  # the first pass writes views
            found = train(model, ways[name])
        if len(found) != len(expected) or not all(map(torch.equal, found, expected)):
            sys.exit(f"{width}: losses or gradients differ with {name} kept")
    loads: dict[str, Callable[[], object]] = {
        name: lambda data=data: list(data.train_dataloader()) for name, data in ways.items()
    }
    steps: dict[str, Callable[[], object]] = {
        name: lambda data=data: train(model, data) for name, data in ways.items()
    }
    loaded, trained = take_turns(loads, runs), take_turns(steps, runs)
    return [
        {
            "width": width,
            "kept": name,
            "load": [ms / PANORAMAS for ms in loaded[name]],
            "step": [ms / PANORAMAS for ms in trained[name]],
            "load ratio": median(loaded["nothing"]) / median(loaded[name]),
            "step ratio": median(trained["nothing"]) / median(trained[name]),
            "bytes": _size(folder / str(width) / name) / PANORAMAS,
        }
        for name in WAYS
    ]


def _size(folder: Path) -> int:
    """Return the bytes of all files in a folder; none where it is not there."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> int:
    given = options(__doc__.splitlines()[0], runs=5).parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model = model_with_tower()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for width in (2048, 4096):
            rows += measured(model, width, given.runs, Path(folder))
    lines = [
        "| panorama | kept | MiB each | ms to load one | times faster | ms to load and learn | "
        "times faster |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['width']} | {row['kept']} | {row['bytes'] / 2**20:.1f} | {spread(row['load'], 1)} "
        f"| {row['load ratio']:.1f} | {spread(row['step'], 0)} | {row['step ratio']:.1f} |"
        for row in rows
    ]
    publish(given, "caches.py", lines, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
