"""From a path to the file that it means."""

from __future__ import annotations

import os

import pytest

from panovlm.checkpoint.locate import locate
from panovlm.errors import CheckpointError


@pytest.fixture
def touch(tmp_path):
    """Make files of increasing age-of-writing."""

    def made(*names):
        for second, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
            os.utime(path, (second, second))
        return tmp_path

    return made


def test_order_in_a_folder(touch):
    folder = touch("last.ckpt", "best.ckpt", "epoch3.ckpt", "last-v1.ckpt")
    assert locate(folder).checkpoint.name == "best.ckpt"
    assert locate(folder, "resume").checkpoint.name == "last.ckpt"
    (folder / "best.ckpt").unlink()
    assert locate(folder).checkpoint.name == "last.ckpt"
    (folder / "last.ckpt").unlink()
    found = locate(folder)
    assert found.checkpoint.name == "last-v1.ckpt" and found.why == "newest of 2 .ckpt"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "config.json"], "model.safetensors"),
        (["pytorch_model.bin", "config.json"], "pytorch_model.bin"),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
            "model.safetensors.index.json",
        ),
        (
            ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
            "pytorch_model.bin.index.json",
        ),
        (["weights.pt", "notes.txt"], "weights.pt"),
        (["a.safetensors", "epoch.ckpt"], "epoch.ckpt"),
        ([".last.ckpt.1234.tmp", ".hidden.ckpt", "old.ckpt"], "old.ckpt"),
    ],
)
def test_other_files(names, chosen, touch):
    assert locate(touch(*names)).checkpoint.name == chosen


def test_companions(touch):
    folder = touch(
        "last.ckpt",
        "checkpoint_metadata.json",
        "config.yaml",
        "config.json",
        "model_config.json",
        "tokenizer/tokenizer.json",
        "lora_weights/adapter_config.json",
    )
    for path in (folder, folder / "last.ckpt"):
        found = locate(path)
        assert found.sidecar == folder / "checkpoint_metadata.json"
        assert found.config == folder / "config.yaml"
        assert found.model_config == folder / "model_config.json"
        assert found.tokenizer == folder / "tokenizer"
        assert found.adapters == folder / "lora_weights"
    assert locate(folder / "last.ckpt").why == "named"


def test_a_tokenizer_saved_beside_the_weights(touch):
    folder = touch("model.safetensors", "tokenizer_config.json", "tokenizer.json")
    assert locate(folder).tokenizer == folder


def test_nothing_else_is_taken_for_a_companion(touch):
    found = locate(touch("last.ckpt", "checkpoint_metadata.json/x", "config.yaml/x"))
    assert found.sidecar is found.config is found.tokenizer is found.adapters is None


def test_no_choice_between_several(touch):
    with pytest.raises(
        CheckpointError, match=r"several checkpoints \(a\.pt, b\.pt\).*--checkpoint"
    ):
        locate(touch("a.pt", "b.pt"))


def test_nothing_there(touch, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        locate(tmp_path / "none")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        locate(touch("config.yaml"))
    with pytest.raises(CheckpointError, match=r"folders below it do: .*vision"):
        locate(touch("vision/last.ckpt", "vision/.half.ckpt"))
