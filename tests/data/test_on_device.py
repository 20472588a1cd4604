"""Batches whose views come into being on the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from panovlm.config.schema import ImageProcessing
from panovlm.data import on_device
from panovlm.data.augment import Tint, jitter
from panovlm.data.collate import collate
from panovlm.data.dataset import PanoramaDataset
from panovlm.data.loader import Draw, ResumableLoader
from panovlm.data.on_device import jitter_each, with_views
from panovlm.data.samples import Sample
from panovlm.errors import ConfigError, DataError
from panovlm.panorama.device import DeviceViews
from panovlm.panorama.pipeline import ViewPipeline

PIPELINE = ViewPipeline(ImageProcessing(image_size=16, rendering="good"))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Panoramas of two sizes."""
    rng = np.random.default_rng(4)
    made: list[Sample] = []
    for number, height in enumerate((64, 80, 64, 64)):
        file = tmp_path / f"{number}.png"
        pixels = rng.integers(0, 256, (height, 2 * height, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
        made.append(Sample(file, (), f"t.csv:{number + 2}"))
    return made


def test_jitter_is_that_of_the_loaders() -> None:
    """That of the loaders is compared with Pillow's filters elsewhere."""
    rng = np.random.default_rng(2)
    for _ in range(30):
        views = rng.integers(0, 256, (3, 4, 9, 7, 3), dtype=np.uint8)
        tints = [Tint.drawn(rng) for _ in views]
        found = jitter_each(torch.from_numpy(views), tints)
        expected = [jitter(each, tint) for each, tint in zip(views, tints, strict=True)]
        assert np.array_equal(found.numpy(), np.stack(expected))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("options", [{}, {"augment": True}, {"augment": True, "yaw_turns": 4}])
def test_batches_are_those_of_the_loaders(
    samples: list[Sample], options: dict[str, object], workers: int
) -> None:
    """In every order, and what crosses the bus are bytes."""
    views = DeviceViews(PIPELINE)

    def batches(*, cut: bool) -> list[dict[str, object]]:
        dataset = PanoramaDataset(samples, PIPELINE, None, cut=cut, **options)
        return list(
            ResumableLoader(
                dataset,
                batch_size=3,
                seed=1,
                shuffle=True,
                collate=lambda items: collate(items, 0),
                num_workers=workers,
            )
        )

    for batch, expected in zip(batches(cut=False), batches(cut=True), strict=True):
        assert "pixel_values" not in batch
        tensors = [t for group in batch["uncut"] for t in (group.panoramas, group.others)]
        assert {tensor.dtype for tensor in tensors} == {torch.uint8}
        made = with_views(batch, views)
        assert made.keys() == expected.keys()
        assert made["source"] == expected["source"]
        assert torch.equal(made["pixel_values"], expected["pixel_values"])


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    dataset = PanoramaDataset(
        [Sample(tmp_path / "gone.png", (), "t.csv:2")], PIPELINE, None, cut=False
    )
    with pytest.raises(DataError, match=r"^t\.csv:2: cannot read the panorama .*gone\.png"):
        dataset[Draw(0, 0)]


def test_other_rounding_is_refused(monkeypatch):
    monkeypatch.setattr(on_device, "BITS", 9)
    on_device._prove_jitter.cache_clear()
    with pytest.raises(ConfigError, match="use views_on loader, or no augment"):
        on_device._prove_jitter(torch.device("cpu"))
