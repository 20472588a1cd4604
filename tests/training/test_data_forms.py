"""Conversations of several turns, mixed by weight and turned, train like any other table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from panovlm.config.schema import Settings
from panovlm.data.samples import read_tables
from panovlm.errors import DataError
from panovlm.training.run import train

MakeSettings = Callable[..., Settings]


@pytest.fixture
def table(scenes: Path, tmp_path: Path) -> Path:
    """All questions about each training scene, as one conversation."""
    talks: dict[Path, list[dict[str, str]]] = {}
    for row in read_tables([scenes / "train.csv"]):
        [(question, answer)] = row.turns
        talk = talks.setdefault(row.image, [])
        talk += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    file = tmp_path / "talks.jsonl"
    rows = [{"image": str(image), "conversations": talk} for image, talk in talks.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_stage_trains_on_them(
    table: Path, scenes: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(
        tmp_path / "runs",
        f"data.csv_train=[{{path: {table}, weight: 1.5}}, {{path: {scenes}/val.csv, weight: 0.5}}]",
        "training.stages=[resampler]",
        "training.stage_configs.resampler.epochs=1",
        "training.yaw_turns=4",
    )
    folder = train(settings)
    document = json.loads((folder / "checkpoint_metadata.json").read_text())
    assert document["training"]["data"]["train_weights"] == [1.5, 0.5]
    # 8 talks, half as often again, and half of 4 rows: 14 samples, 5 batches of 3, 2 per step.
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3


def test_what_cannot_be_turned_stops_it_before_it_begins(
    table: Path, scenes: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    text = table.read_text().splitlines()
    talk = json.loads(text[1])
    talk["conversations"][1]["value"] = "on the left wall"
    table.write_text("\n".join([text[0], json.dumps(talk)]))
    runs = tmp_path / "runs"
    settings = make_settings(runs, f"data.csv_train={table}", "training.yaw_turns=4")
    with pytest.raises(DataError, match=r"would falsify 1 of 2 rows:\n  .*talks\.jsonl:2: 'left'"):
        train(settings)
    assert not runs.exists()
