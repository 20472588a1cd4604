"""Conversations of several turns, mixed by weight and turned, train like any other table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import py360convert
import pytest
import torch
from PIL import Image
from tests.data.forms import write_form
from tests.training.test_resume import StoppedError, same, stop_at

from panovlm.cli.main import main
from panovlm.config.schema import Settings
from panovlm.data.samples import one_per_image, read_tables
from panovlm.errors import DataError
from panovlm.evaluation.session import default_tables
from panovlm.models.model import PanoramaVLM
from panovlm.training.run import train

MakeSettings = Callable[..., Settings]
ONE_EPOCH = ("training.stages=[resampler]", "training.stage_configs.resampler.epochs=1")


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


@pytest.mark.parametrize("form", ["shard", "parquet", "saved"])
def test_every_form_trains_as_the_csv_does(
    form: str, scenes: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    samples = read_tables([scenes / "train.csv"])
    table = write_form(form, samples, tmp_path / "form")
    ends: list[dict[str, torch.Tensor]] = []
    for number, name in enumerate((scenes / "train.csv", table)):
        settings = make_settings(tmp_path / str(number), f"data.csv_train='{name}'", *ONE_EPOCH)
        ends.append(torch.load(train(settings) / "last.ckpt", weights_only=True)["state_dict"])
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][key]) for key, tensor in ends[0].items())


@pytest.mark.parametrize("form", ["shard", "parquet"])
def test_blocks_continue_exactly(
    form: str,
    scenes: Path,
    make_settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = write_form(form, read_tables([scenes / "train.csv"]), tmp_path / "form")
    given = (f"data.csv_train='{table}'", "data.stream_blocks=2", *ONE_EPOCH)
    if form == "parquet":  # processes that were forked from one that has read it
        given += ("training.num_workers=2",)
    whole = train(make_settings(tmp_path / "whole", *given))
    settings = make_settings(tmp_path / "stopped", *given)
    with monkeypatch.context() as patch:
        stop_at(patch, "on_train_batch_start", 4)
        with pytest.raises(StoppedError):
            train(settings)
    ends = [
        torch.load(folder / "last.ckpt", weights_only=True)
        for folder in (whole, train(settings, resume=True))
    ]
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert same(ends[0][part], ends[1][part]), part


def test_panoramas_alone_are_for_stage_vision(
    scenes: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    images = [sample.image for sample in one_per_image(read_tables([scenes / "train.csv"]))]
    file = tmp_path / "alone.jsonl"
    rows = [{"image": str(image), "conversations": []} for image in images]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"alone\.jsonl:1: it has no conversation \(8 of \d+ rows"):
        train(make_settings(tmp_path / "no", f"data.csv_train={file}"))
    vision = f"training.stage_configs.vision.data.csv_train={file}"
    only = ("training.stages=[vision]", "training.stage_configs.vision.epochs=1")
    settings = make_settings(tmp_path / "yes", vision, *only)
    last = torch.load(train(settings) / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3  # 8 panoramas in batches of 3


def test_cubes_train_and_the_checkpoint_says_so(
    scenes: Path,
    make_settings: MakeSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = (scenes / "train.csv").read_text().splitlines()
    for sample in one_per_image(read_tables([scenes / "train.csv"])):
        erp = np.asarray(Image.open(Path(str(sample.image))))
        (tmp_path / "images").mkdir(exist_ok=True)
        cube = py360convert.e2c(erp, face_w=64, cube_format="horizon")
        Image.fromarray(cube).save(tmp_path / "images" / Path(str(sample.image)).name)
    (tmp_path / "train.csv").write_text("\n".join(lines))
    cube = ("data.input.layout=cubemap_row", f"data.csv_train={tmp_path}/train.csv")
    settings = make_settings(tmp_path / "runs", *cube, "data.csv_val=[]", *ONE_EPOCH)
    folder = train(settings)
    document = json.loads((folder / "checkpoint_metadata.json").read_text())
    assert document["training"]["data"]["input"] == {"layout": "cubemap_row"}
    plain = make_settings(tmp_path / "other", cube[1], "data.csv_val=[]", *ONE_EPOCH)
    other = torch.load(train(plain) / "last.ckpt", weights_only=True)["state_dict"]
    own = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert any(not torch.equal(tensor, other[key]) for key, tensor in own.items())
    # An evaluation takes the checkpoint's word for the tables of its run, and asks about others.
    asked = ["eval", "--checkpoint-dir", str(folder), "--device", "cpu", "--no-probe"]
    asked += ["--output-dir", str(tmp_path / "results"), "--csv-input", f"{tmp_path}/train.csv"]
    assert main(asked) == 2
    assert "say of those of --csv-input what they are" in capsys.readouterr().err
    model = PanoramaVLM.from_checkpoint(folder, device="cpu", probe=False)
    assert default_tables(model).image_input == settings.data.input
