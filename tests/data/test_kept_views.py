"""Views from the disk are those that would be rendered, in every split and process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from panovlm.config.schema import ImageProcessing, SyntheticScenes
from panovlm.data.kept_views import KeptViews, OnDisk
from panovlm.data.module import PanoramaData
from panovlm.data.samples import Sample, read_tables
from panovlm.data.synthetic import write_scenes
from panovlm.errors import ConfigError, DataError
from panovlm.panorama.pipeline import ViewPipeline

SETTINGS: dict[str, Any] = {"crop_strategy": "e2p", "image_size": 16}
PIPELINE = ViewPipeline(ImageProcessing.model_validate(SETTINGS))


def picture(file: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (480, 960, 3), np.uint8)
    Image.fromarray(pixels).save(file, quality=90)
    return file


@contextmanager
def nothing_is_decoded() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ViewPipeline, "render", lambda *_: pytest.fail("views were rendered"))
        yield


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_strategy": "anyres_e2p"},
        {"crop_strategy": "anyres_max"},
        {"crop_strategy": "erp", "image_size": (24, 48)},
        {"rendering": "fast"},
        {"rendering": "good"},
    ],
)
def test_the_pixels_of_the_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    pipeline = ViewPipeline(ImageProcessing.model_validate({**SETTINGS, **changes}))
    image = picture(tmp_path / "a.jpg")
    expected = pipeline.load(image)
    first = KeptViews(tmp_path / "cache", pipeline).load(image)
    with nothing_is_decoded():
        later = KeptViews(tmp_path / "cache", pipeline).load(image)
    assert np.array_equal(first, expected)
    assert np.array_equal(later, expected)


def test_other_settings_have_other_entries(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.jpg")
    ways: list[dict[str, Any]] = [
        {},
        {"rendering": "fast"},
        {"fov_deg": 80},
        {"overlap_ratio": 0.25},
        {"image_size": 17},
    ]
    for way in ways:
        pipeline = ViewPipeline(ImageProcessing.model_validate({**SETTINGS, **way}))
        assert np.array_equal(KeptViews(tmp_path, pipeline).load(image), pipeline.load(image))
    assert len(entries(tmp_path)) == len(ways)


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "views").rglob("*") if path.is_file())


def test_a_picture_that_was_replaced(tmp_path: Path) -> None:
    """Neither its name nor its date tells."""
    image = picture(tmp_path / "a.bmp")
    kept = KeptViews(tmp_path, PIPELINE)
    old, before = kept.load(image), image.stat()
    picture(image, seed=1)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert image.stat().st_size == before.st_size
    new = kept.load(image)
    assert np.array_equal(new, PIPELINE.load(image))
    assert not np.array_equal(new, old)


def test_damage_is_told_and_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = picture(tmp_path / "a.jpg")
    kept = KeptViews(tmp_path, PIPELINE)
    expected = kept.load(image)
    (entry,) = entries(tmp_path)
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(kept.load(image), expected)
    assert f"{entry} was damaged and has been removed; the views are rendered anew" in caplog.text
    assert entry.read_bytes() == whole


def test_a_picture_that_changes_while_it_is_read_is_not_kept(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.bmp")
    pipeline = ViewPipeline(ImageProcessing.model_validate(SETTINGS))
    read = pipeline.read

    def replaced_meanwhile(source: Any) -> Any:
        picture(image, seed=1)
        return read(source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "read", replaced_meanwhile)
        KeptViews(tmp_path, pipeline).load(image)
    assert not (tmp_path / "views").exists()


def test_the_row_is_named(tmp_path: Path) -> None:
    gone = Sample(tmp_path / "gone.png", (), "t.csv:2")
    with pytest.raises(DataError, match=r"^t\.csv:2: cannot read .*gone\.png.* Mend or remove"):
        KeptViews(tmp_path, PIPELINE).views(gone)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Sample]]:
    root = tmp_path_factory.mktemp("scenes") / "scenes"
    scenes = SyntheticScenes(root=str(root), train_scenes=4, val_scenes=2, test_scenes=1, width=128)
    write_scenes(scenes)
    return {split: read_tables([root / f"{split}.csv"]) for split in ("train", "val")}


def batches(tables: dict[str, list[Sample]], **options: Any) -> dict[str, list[Any]]:
    data = PanoramaData(
        tables["train"], tables["val"], pipeline=PIPELINE, chat=None, batch_size=3, **options
    )
    data.setup("fit")
    return {"train": list(data.train_dataloader()), "val": list(data.val_dataloader())}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_every_split(
    tables: dict[str, list[Sample]], tmp_path: Path, workers: int
) -> None:
    expected = batches(tables, augment=True)
    options = {"augment": True, "num_workers": workers, "cache_views": OnDisk(tmp_path, 1)}
    for _ in range(2):
        found = batches(tables, **options)
        for split, own in expected.items():
            assert [batch["source"] for batch in found[split]] == [b["source"] for b in own]
            pixels = [batch["pixel_values"] for batch in found[split]]
            assert all(map(torch.equal, pixels, [batch["pixel_values"] for batch in own]))
    assert len(entries(tmp_path)) == 6


def test_the_limit(tables: dict[str, list[Sample]], tmp_path: Path) -> None:
    size = PIPELINE.read(tables["train"][0].image).nbytes
    batches(tables, cache_views=OnDisk(tmp_path / "a", 4 * size / 2**30))
    with pytest.raises(ConfigError, match=r"views of 4 panoramas take .* training\.cache_limit"):
        batches(tables, cache_views=OnDisk(tmp_path / "b", 3.9 * size / 2**30))
    assert not (tmp_path / "b").exists()


def test_a_worker_that_cannot_write_says_so_in_one_sentence(
    tables: dict[str, list[Sample]], tmp_path: Path
) -> None:
    (tmp_path / "views").write_text("in the way")
    with pytest.raises(ConfigError, match=r"^views cannot be kept: ") as error:
        batches(tables, num_workers=1, cache_views=OnDisk(tmp_path, 1))
    assert "Traceback" not in str(error.value)
