"""The data of a stage, from synthetic scenes on disk to batches in a trainer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from panovlm.config.schema import ImageProcessing, SyntheticScenes
from panovlm.data.module import PanoramaData
from panovlm.data.samples import Sample, read_tables
from panovlm.data.synthetic import write_scenes
from panovlm.errors import DataError
from panovlm.models.language.chat import ChatFormat
from panovlm.models.language.tokenizer import prepare_tokenizer, word_tokenizer
from panovlm.panorama.pipeline import ViewPipeline


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Sample]]:
    root = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(
        SyntheticScenes(root=str(root), train_scenes=5, val_scenes=2, test_scenes=1, width=128)
    )
    return {split: read_tables([root / f"{split}.csv"]) for split in ("train", "val")}


def make(tables: dict[str, list[Sample]], **changes: Any) -> PanoramaData:
    texts = [t for rows in tables.values() for row in rows for turn in row.turns for t in turn]
    tokenizer = word_tokenizer(texts)
    prepare_tokenizer(tokenizer)
    arguments: dict[str, Any] = {
        "pipeline": ViewPipeline(ImageProcessing(crop_strategy="cubemap", image_size=(16, 16))),
        "chat": ChatFormat(
            tokenizer, model_name="tiny", system_message="", training_placeholder=True
        ),
        "batch_size": 4,
        "seed": 3,
        "questions_per_sample": 4,
    }
    return PanoramaData(tables["train"], tables["val"], **{**arguments, **changes})


def batches(data: PanoramaData, split: str = "train") -> list[Any]:
    data.setup("fit")
    return list(data.train_dataloader() if split == "train" else data.val_dataloader())


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        one["source"] == other["source"]
        and all(torch.equal(one[k], other[k]) for k in one if k != "source")
        for one, other in zip(first, second, strict=True)
    )


def test_batches(tables: dict[str, list[Sample]]) -> None:
    found = batches(make(tables))
    assert [len(batch["source"]) for batch in found] == [4, 4, 2]
    first = found[0]
    assert first["pixel_values"].shape == (4, 4, 3, 16, 16)
    assert first["pixel_values"].dtype == torch.float32
    length = first["input_ids"].shape[1]
    assert first["attention_mask"].shape == first["labels"].shape == (4, length)
    assert (first["labels"] != -100).any(1).all()
    assert ((first["labels"] == -100) | (first["labels"] == first["input_ids"])).all()
    padding = first["attention_mask"] == 0
    assert (first["labels"][padding] == -100).all()
    sources = [s for batch in found for joined in batch["source"] for s in joined.split(", ")]
    assert sorted(sources) == sorted(sample.source for sample in tables["train"])


@pytest.mark.parametrize(
    "changes", [{"num_workers": 2}, {"cache_views": True}, {"num_workers": 2, "cache_views": True}]
)
def test_workers_and_cache_change_nothing(
    tables: dict[str, list[Sample]], changes: dict[str, Any]
) -> None:
    plain = batches(make(tables, augment=True))
    assert same(plain, batches(make(tables, augment=True, **changes)))


def test_validation_is_always_the_same_and_never_jittered(
    tables: dict[str, list[Sample]],
) -> None:
    data = make(tables, augment=True)
    first = batches(data, "val")
    loader = data.val_dataloader()
    loader.sampler.set_epoch(5)
    assert same(first, list(loader))
    assert same(first, batches(make(tables), "val"))


def test_no_validation_rows(tables: dict[str, list[Sample]]) -> None:
    data = make({**tables, "val": []})
    data.setup("fit")
    assert data.val_dataloader() == []


def test_nothing_to_train_on(tables: dict[str, list[Sample]]) -> None:
    with pytest.raises(DataError, match=r"data\.csv_train"):
        make({**tables, "train": []})


def test_unreadable_images_are_left_out_on_request(
    tables: dict[str, list[Sample]], tmp_path: Path
) -> None:
    bad = Sample(tmp_path / "gone.jpg", (("What?", "nothing"),), "t.csv:2")
    damaged = {**tables, "train": [bad, *tables["train"]]}
    with pytest.raises(DataError, match=r"t\.csv:2"):
        batches(make(damaged))
    found = batches(make(damaged, skip_unreadable=True))
    assert "t.csv:2" not in [source for batch in found for source in batch["source"]]


class Counts(LightningModule):
    """Counts what arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": 0, "val": 0}

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        self.seen["train"] += len(batch["source"])
        return self.weight * batch["pixel_values"].mean()

    def validation_step(self, batch: Any, _: int) -> None:
        self.seen["val"] += len(batch["source"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_in_a_trainer(tables: dict[str, list[Sample]], tmp_path: Path) -> None:
    module = Counts()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, make(tables))
    assert module.seen == {"train": 20, "val": 8}
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["length"] == 10


@pytest.mark.parametrize(("device", "pinned"), [("cuda", True), ("cpu", False), ("mps", False)])
def test_pages_are_locked_for_a_gpu_that_trains(
    device: str, pinned: bool, tables: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for one that is merely there: locking them would begin to use it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = make(tables)
    data.setup("fit")
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)
    assert data.train_dataloader().pin_memory is pinned
