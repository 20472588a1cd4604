"""Items hold the views and texts of their row, whoever makes them, and faults name the row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import panovlm.data.cache as cache_module
from panovlm.config.schema import ImageProcessing
from panovlm.data.cache import ViewCache, readable, require_readable
from panovlm.data.dataset import PanoramaDataset
from panovlm.data.loader import Draw
from panovlm.data.samples import Sample, read_tables
from panovlm.errors import DataError
from panovlm.models.language.chat import ChatFormat
from panovlm.models.language.tokenizer import prepare_tokenizer, word_tokenizer
from panovlm.panorama.image import read_panorama
from panovlm.panorama.pipeline import ViewPipeline

PIPELINE = ViewPipeline(ImageProcessing(crop_strategy="e2p", image_size=(16, 16)))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Four images with three rows each."""
    rng = np.random.default_rng(0)
    lines = ["url,instruction,response"]
    for number in range(4):
        pixels = rng.integers(0, 256, (60, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines += [f"{number}.png,question {number} {row} ?,answer {row} ." for row in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return read_tables([tmp_path / "t.csv"])


@pytest.fixture
def chat(samples: list[Sample]) -> ChatFormat:
    tokenizer = word_tokenizer(text for sample in samples for turn in sample.turns for text in turn)
    prepare_tokenizer(tokenizer)
    return ChatFormat(tokenizer, model_name="tiny", system_message="", training_placeholder=True)


def views_of(image: Path) -> torch.Tensor:
    return torch.from_numpy(PIPELINE(read_panorama(image)))


def same(first: Any, second: Any) -> bool:
    return torch.equal(first["pixel_values"], second["pixel_values"]) and all(
        first[name] == second[name] for name in ("source", "input_ids", "labels")
    )


class TestItems:
    def test_an_item_is_its_row(self, samples: list[Sample], chat: ChatFormat) -> None:
        dataset = PanoramaDataset(samples, PIPELINE, chat)
        assert len(dataset) == 12
        item = dataset[Draw(3, 7)]
        assert item["pixel_values"].shape == (8, 3, 16, 16)
        assert torch.equal(item["pixel_values"], views_of(samples[7].image))
        assert item["source"] == samples[7].source
        assert (item["input_ids"], item["labels"]) == chat.training_example(samples[7].turns, None)

    def test_without_chat_there_are_only_views(self, samples: list[Sample]) -> None:
        item = PanoramaDataset(samples, PIPELINE, None)[Draw(0, 0)]
        assert set(item) == {"pixel_values", "source"}

    def test_conversations_change_with_the_epoch_and_come_back(
        self, samples: list[Sample], chat: ChatFormat
    ) -> None:
        dataset = PanoramaDataset(samples, PIPELINE, chat, questions_per_sample=3)
        assert len(dataset) == 4
        sources = {epoch: dataset[Draw(epoch, 1)]["source"] for epoch in range(5)}
        assert len(set(sources.values())) > 1
        assert all("t.csv:5" in source for source in sources.values())
        other = PanoramaDataset(samples, PIPELINE, chat, questions_per_sample=3)
        for epoch in (4, 0, 2):
            assert same(other[Draw(epoch, 1)], dataset[Draw(epoch, 1)])
            assert dataset[Draw(epoch, 1)]["source"] == sources[epoch]

    def test_jitter_follows_from_the_draw(self, samples: list[Sample], chat: ChatFormat) -> None:
        plain = PanoramaDataset(samples, PIPELINE, chat)[Draw(0, 2)]
        first = PanoramaDataset(samples, PIPELINE, chat, augment=True)
        second = PanoramaDataset(samples, PIPELINE, chat, augment=True)
        second[Draw(0, 0)]
        assert same(first[Draw(0, 2)], second[Draw(0, 2)])
        assert not same(first[Draw(0, 2)], plain)
        assert not same(first[Draw(0, 2)], first[Draw(1, 2)])
        reseeded = PanoramaDataset(samples, PIPELINE, chat, augment=True, seed=1)
        assert not same(first[Draw(0, 2)], reseeded[Draw(0, 2)])

    def test_an_answer_that_is_cut_off_is_an_error(
        self, samples: list[Sample], chat: ChatFormat
    ) -> None:
        ids, labels = chat.training_example(samples[4].turns, None)
        answer_starts = next(i for i, label in enumerate(labels) if label != -100)
        kept = PanoramaDataset(samples, PIPELINE, chat, max_length=answer_starts + 1)
        assert kept[Draw(0, 4)]["input_ids"] == ids[: answer_starts + 1]
        cut = PanoramaDataset(samples, PIPELINE, chat, max_length=answer_starts)
        with pytest.raises(DataError, match=rf"t\.csv:6: max_text_length {answer_starts} cuts"):
            cut[Draw(0, 4)]


class TestCache:
    def test_the_same_items_without_the_files(
        self, samples: list[Sample], chat: ChatFormat
    ) -> None:
        from_disk = PanoramaDataset(samples, PIPELINE, chat, augment=True)
        expected = [from_disk[Draw(1, number)] for number in range(12)]
        for threads in (1, 3):
            cache = ViewCache(samples, PIPELINE, threads)
            cached = PanoramaDataset(samples, PIPELINE, chat, augment=True, cache=cache)
            assert all(same(cached[Draw(1, number)], expected[number]) for number in range(12))
        for image in {sample.image for sample in samples}:
            image.unlink()
        assert same(cached[Draw(1, 3)], expected[3])

    def test_every_image_is_read_once(
        self, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[Path] = []

        def counting(path: Path, *options: Any) -> np.ndarray:
            read.append(path)
            return read_panorama(path, *options)

        monkeypatch.setattr(cache_module, "read_panorama", counting)
        ViewCache(samples, PIPELINE, 2)
        assert sorted(read) == sorted({sample.image for sample in samples})


class TestUnreadableImages:
    @pytest.fixture(params=["cut", "gone", "tiny", "text"])
    def broken(self, samples: list[Sample], request: pytest.FixtureRequest) -> list[Sample]:
        image = samples[3].image
        if request.param == "cut":
            image.write_bytes(image.read_bytes()[:3000])
        elif request.param == "gone":
            image.unlink()
        elif request.param == "tiny":
            Image.new("RGB", (10, 5)).save(image)
        else:
            image.write_text("not an image")
        return samples

    def test_an_item_names_file_and_row(self, broken: list[Sample], chat: ChatFormat) -> None:
        dataset = PanoramaDataset(broken, PIPELINE, chat)
        with pytest.raises(DataError, match=r"t\.csv:7: .*1\.png.*skip_unreadable_images"):
            dataset[Draw(0, 5)]

    def test_so_does_the_cache(self, broken: list[Sample]) -> None:
        with pytest.raises(DataError, match=r"t\.csv:5: .*1\.png.*skip_unreadable_images"):
            ViewCache(broken, PIPELINE, 2)

    def test_rows_are_left_out_counted_and_listed(
        self, broken: list[Sample], caplog: pytest.LogCaptureFixture
    ) -> None:
        kept = readable(broken, 2)
        assert kept == [sample for sample in broken if sample.image.name != "1.png"]
        assert "3 of 12 rows are left out, because 1 of 4 images" in caplog.text
        assert "t.csv:5: " in caplog.text
        assert "1.png" in caplog.text

    def test_nothing_is_said_when_all_can_be_read(
        self, samples: list[Sample], caplog: pytest.LogCaptureFixture
    ) -> None:
        assert readable(samples, 2) == samples
        require_readable(samples, 2)
        assert not caplog.records

    def test_they_are_told_before_training(self, broken: list[Sample]) -> None:
        with pytest.raises(DataError, match=r"t\.csv:5: .*1\.png.*skip_unreadable_images"):
            require_readable(broken, 2)
        gone = [Sample(Path(f"{n}.png"), (("q", "a"),), f"t.csv:{n}") for n in range(7)]
        with pytest.raises(DataError, match=r"^7 of 7 images (.|\n)*4\.png(.|\n)*and 2 more\nMend"):
            require_readable(gone, 2)

    def test_no_readable_image_at_all(self, samples: list[Sample]) -> None:
        gone = [replace(sample, image=Path("nowhere.png")) for sample in samples]
        with pytest.raises(DataError, match="12 of 12 rows"):
            readable(gone, 2)
