"""What a stage is put together from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from panovlm.config.schema import Settings
from panovlm.errors import ConfigError, DataError
from panovlm.training.run import train
from panovlm.training.stage import (
    _precision,
    optimizer_steps,
    stage_data,
    stage_model,
    training_processes,
)
from panovlm.training.tables import Tables

MakeSettings = Callable[..., Settings]


class Properties(NamedTuple):
    """Of a GPU."""

    major: int


@pytest.mark.parametrize(
    ("major", "environment", "expected"),
    [
        (8, "accelerator=auto", "bf16-mixed"),
        (7, "accelerator=auto", "32-true"),  # bfloat16 would be emulated
        (8, "accelerator=cpu", "32-true"),
        (7, "precision=16-mixed", "16-mixed"),
    ],
)
def test_the_precision_of_a_gpu(
    major: int,
    environment: str,
    expected: str,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties(major))
    assert _precision(make_settings(Path("runs"), f"environment.{environment}")) == expected


def table(file: Path, scenes: Path, *texts: str) -> Path:
    image = scenes / "images" / "train-000001.jpg"
    rows = [f"{image},{text},{text}" for text in texts]
    file.write_text("\n".join(["url,instruction,response", *rows]) + "\n")
    return file


def test_a_stage_reads_its_own_tables_first(
    scenes: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    own = table(tmp_path / "own.csv", scenes, "one", "two")
    place = "training.stage_configs.finetune.data"
    tables = Tables(make_settings(tmp_path, f"{place}={{csv_train: {own}}}"))
    finetune, vision = tables.of("finetune"), tables.of("vision")
    assert finetune.train_files == (str(own),)
    assert [sample.turns for sample in finetune.train] == [(("one", "one"),), (("two", "two"),)]
    assert vision.train_files == (str(scenes / "train.csv"),)
    assert finetune.val_files == vision.val_files
    assert finetune.val is vision.val  # each file is read once


def test_the_vocabulary_is_that_of_all_stages(
    scenes: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Also when the first stage is run alone: later ones go on with its tokenizer."""
    own = table(tmp_path / "own.csv", scenes, "zebra")
    place = "training.stage_configs.finetune.data"
    settings = make_settings(tmp_path, f"{place}={{csv_train: {own}}}")
    model = stage_model(settings, "vision", Tables(settings), None)
    assert model.tokenizer is not None
    words = ("zebra", "What", "helpful", "panoramic")
    assert all(model.tokenizer.encode(w) != model.tokenizer.encode("<unk>") for w in words)


def test_an_overlap_stage_sees_each_panorama_once(make_settings: MakeSettings) -> None:
    settings = make_settings(Path("runs"))
    tables = Tables(settings)
    model = stage_model(settings, "vision", tables, None)
    for stage, rows in (("vision", 8), ("resampler", 16), ("finetune", 8)):
        data = stage_data(settings, stage, model, tables.of(stage))
        batches = list(data.train_dataloader())
        assert sum(len(batch["source"]) for batch in batches) == rows
        assert ("input_ids" in batches[0]) == (stage != "vision")


@pytest.mark.parametrize(("own", "limit", "longest"), [(200, 150, 150), (150, 200, 150)])
def test_text_is_cut_where_the_model_would_cut_it(
    own: int, limit: int, longest: int, scenes: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    rows = table(tmp_path / "own.csv", scenes, "word " * 90)
    place = "training.stage_configs.finetune"
    settings = make_settings(
        tmp_path,
        f"{place}.data={{csv_train: {rows}}}",
        f"{place}.max_text_length={own}",
        f"models.fusion_text_limit={limit}",
    )
    tables = Tables(settings)
    model = stage_model(settings, "finetune", tables, None)
    [batch] = stage_data(settings, "finetune", model, tables.of("finetune")).train_dataloader()
    assert batch["input_ids"].shape[1] == longest


@pytest.mark.parametrize(
    ("rows", "batch", "accumulate", "epochs", "processes", "expected"),
    [(16, 4, 1, 1, 1, 4), (16, 3, 2, 2, 1, 6), (16, 3, 2, 1, 2, 2), (16, 99, 5, 3, 4, 3)],
)
def test_optimizer_steps(
    rows: int,
    batch: int,
    accumulate: int,
    epochs: int,
    processes: int,
    expected: int,
    make_settings: MakeSettings,
) -> None:
    place = "training.stage_configs.resampler"
    changes = {"batch_size": batch, "accumulate_grad_batches": accumulate, "epochs": epochs}
    settings = make_settings(
        Path("runs"),
        f"{place}.val_check_interval=1.0",
        *(f"{place}.{name}={value}" for name, value in changes.items()),
    )
    tables = Tables(settings)
    model = stage_model(settings, "resampler", tables, None)
    data = stage_data(settings, "resampler", model, tables.of("resampler"))
    stage = settings.training.stage_configs["resampler"]
    assert len(tables.of("resampler").train) == rows
    assert optimizer_steps("resampler", stage, data, processes) == expected


def test_an_interval_that_no_epoch_reaches(make_settings: MakeSettings) -> None:
    place = "training.stage_configs.resampler.val_check_interval"
    settings = make_settings(Path("runs"), f"{place}=7")
    tables = Tables(settings)
    model = stage_model(settings, "resampler", tables, None)
    data = stage_data(settings, "resampler", model, tables.of("resampler"))
    stage = settings.training.stage_configs["resampler"]
    with pytest.raises(ConfigError, match=f"{place} is 7, but an epoch has 6 batches"):
        optimizer_steps("resampler", stage, data, 1)


def test_processes(make_settings: MakeSettings) -> None:
    assert training_processes(make_settings(Path("runs"))) == 1
    two = make_settings(Path("runs"), "environment.devices=2", "environment.strategy=ddp")
    assert training_processes(two) == 2


def test_devices_that_a_machine_cannot_have(make_settings: MakeSettings) -> None:
    settings = make_settings(Path("runs"), "environment.devices=-1")
    with pytest.raises(ConfigError, match=r"cannot train with .*environment\.devices -1"):
        training_processes(settings)


def test_an_experiment_without_stages(make_settings: MakeSettings) -> None:
    settings = make_settings(Path("runs"), "training.stages=[]")
    with pytest.raises(ConfigError, match=r"^training\.stages is empty; name some of vision, res"):
        train(settings)


def test_a_stage_without_table(make_settings: MakeSettings) -> None:
    settings: Any = make_settings(Path("runs"), "data.csv_train=[]")
    with pytest.raises(DataError, match=r"stage finetune has no training table; set data"):
        Tables(settings).of("finetune")


def test_tables_are_mixed_by_weight(
    tmp_path: Path, scenes: Path, make_settings: MakeSettings
) -> None:
    mixed = f"[{{path: {scenes}/train.csv, weight: 2.5}}, {scenes}/val.csv]"
    settings = make_settings(tmp_path, f"data.csv_train={mixed}")
    tables = Tables(settings)
    rows = tables.of("finetune")
    assert rows.train_files == (f"{scenes}/train.csv", f"{scenes}/val.csv")
    assert Counter(row.weight for row in rows.train) == {2.5: 16, 1.0: 4}
    model = stage_model(settings, "finetune", tables, None)
    # Packed in pairs: 8 groups of weight 2.5, 2 of weight 1.
    data = stage_data(settings, "finetune", model, rows)
    assert len(data.train_dataloader().sampler) == 22  # type: ignore[arg-type]
    data = stage_data(settings, "vision", model, rows)
    assert len(data.train_dataloader().sampler) == 22  # type: ignore[arg-type]
