"""Training and evaluation with views that the device cuts are those with the loaders' views."""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.training.test_features import assert_same_run
from tests.training.test_resume import StoppedError, read, run, same, stop_at

from panovlm.cli import eval as eval_command
from panovlm.data.kept_views import OnDisk
from panovlm.errors import ConfigError
from panovlm.evaluation.session import run_evaluation
from panovlm.models.model import PanoramaVLM
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.training.rundir import LAST

DEVICE = "training.views_on=device"
ALONE = "training.stages=[resampler]"


@pytest.fixture(scope="module")
def mixed(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The scenes with every third panorama larger, as an override of where they are."""
    root = tmp_path_factory.mktemp("mixed")
    shutil.copytree(scenes, root, dirs_exist_ok=True)
    for file in sorted((root / "images").glob("*"))[::3]:
        picture = Image.open(file)
        picture.resize((3 * picture.width, 3 * picture.height)).save(file)
    tables = (f"data.csv_{split}={root}/{split}.csv" for split in ("train", "val"))
    return " ".join(["data.synthetic=null", *tables])


def no_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no loader cut or normalise views."""
    monkeypatch.setattr("panovlm.data.dataset.load_views", lambda *_: pytest.fail("cut"))


def test_three_stages_to_the_last_bit(
    make_settings: Any, tmp_path: Path, mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colours jitter, questions share views, panoramas of a batch differ in size."""
    plain, _ = run(make_settings(tmp_path / "plain", *mixed.split()))
    no_views(monkeypatch)
    device, _ = run(make_settings(tmp_path / "device", *mixed.split(), DEVICE))
    for stage in ("vision", "resampler", "finetune"):
        folders = (run_.parents[1] / stage / run_.name for run_ in (device, plain))
        assert_same_run(*folders)
    assert b"views_on" not in (device / LAST).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        ("image_processing.rendering=good", "training.num_workers=1", "training.yaw_turns=4"),
        (
            "image_processing={crop_strategy: e2p, image_size: 16, overlap_ratio: 0.2}",
            "environment.precision=bf16-true",
        ),
    ],
)
def test_with_other_options(
    make_settings: Any, tmp_path: Path, changes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = (ALONE, "training.stage_configs.resampler.epochs=1")
    plain, _ = run(make_settings(tmp_path / "plain", *short, *changes))
    no_views(monkeypatch)
    device, _ = run(make_settings(tmp_path / "device", *short, *changes, DEVICE))
    assert_same_run(device, plain)


def test_continued_with_the_other(
    make_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no setting of the data: a run may go on without it."""
    whole, _ = run(make_settings(tmp_path / "whole", ALONE))
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_at(patch, "on_train_batch_end", 4)
        run(make_settings(tmp_path / "run", ALONE, DEVICE))
    continued, _ = run(make_settings(tmp_path / "run", ALONE), resume=True)
    assert same(read(continued / LAST)["state_dict"], read(whole / LAST)["state_dict"])


def test_evaluation(
    make_settings: Any, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model is given is the same to the last bit, and so is what it answers.

    A panorama that cannot be read fails its own questions, as ever.
    """
    table = tmp_path / "test.csv"
    with (scenes / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    with table.open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "url": scenes / row["url"]} for row in rows)
        writer.writerow({**rows[0], "url": tmp_path / "gone.png"})
    folder, _ = run(make_settings(tmp_path / "run", ALONE))
    model = PanoramaVLM.from_checkpoint(folder, probe=False)
    given: list[torch.Tensor] = []
    generate = model.generate

    def watched(**inputs: Any) -> torch.Tensor:
        given.append(inputs["pixel_values"])
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", watched)
    asked = {
        "tables": [str(table)],
        "data_dir": "",
        "generation": model.recipe.generation,
        "prefix": "small",
        "batch_size": 4,
        "progress": False,
        "metrics": {},
    }
    loader = run_evaluation(model, **asked, folder=tmp_path / "loader")
    expected, given[:] = given[:], []
    monkeypatch.setattr(ViewPipeline, "load", lambda *_: pytest.fail("cut"))
    device = run_evaluation(model, **asked, folder=tmp_path / "device", views_on="device")
    assert len(given) == len(expected) > 1
    assert same(given, expected)
    assert device.answers == loader.answers
    assert [answer.is_error for answer in device.answers] == [False] * len(rows) + [True]
    kept = OnDisk(tmp_path / "cache", 1)
    with pytest.raises(ConfigError, match="views_on device has nothing to cut"):
        run_evaluation(model, **asked, folder=tmp_path / "no", cache_views=kept, views_on="device")
    assert not (tmp_path / "no").exists()


def test_what_the_command_line_and_the_file_say(make_settings: Any, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    eval_command.add_arguments(parser)
    plain, named = (parser.parse_args(said) for said in ([], ["--views-on", "loader"]))
    settings = make_settings(tmp_path, DEVICE)
    assert eval_command.views_on(plain, None) == "loader"
    assert eval_command.views_on(plain, settings) == "device"
    assert eval_command.views_on(named, settings) == "loader"


class TestRefused:
    @pytest.mark.parametrize(
        "kept", ["cache_views=true", "cache_views=disk", "cache_features=true"]
    )
    def test_what_is_kept(self, make_settings: Any, tmp_path: Path, kept: str) -> None:
        name = kept.partition("=")[0]
        with pytest.raises(ConfigError, match=rf"{name} keeps .*views_on"):
            make_settings(tmp_path, "training.augment=false", f"training.{kept}", DEVICE)

    def test_views_that_a_device_cannot_cut(self, make_settings: Any, tmp_path: Path) -> None:
        """Before anything is written."""
        views = "image_processing={crop_strategy: resize, image_size: 16}"
        settings = make_settings(tmp_path / "runs", ALONE, DEVICE, views)
        with pytest.raises(ConfigError, match="with crop_strategy resize no view is perspective"):
            run(settings)
        assert not (tmp_path / "runs").exists()
