"""From a path to the file that it means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from panovlm.checkpoint.find.locate import locate
from panovlm.checkpoint.resolve import resolve
from panovlm.errors import CheckpointError


@pytest.fixture
def touch(tmp_path):
    """Make files of increasing age-of-writing."""

    def made(*names):
        for second, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".ckpt":
                torch.save({"state_dict": {"w": torch.ones(1)}}, path)
            else:
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


def test_incomplete_files_are_passed_over_and_named(touch):
    folder = touch("epoch1.ckpt", "epoch2.ckpt", "epoch3.ckpt")
    for name, kept in (("epoch3.ckpt", 0.5), ("epoch2.ckpt", 0.0)):
        path = folder / name
        age = path.stat().st_mtime_ns
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        os.utime(path, ns=(age, age))
    found = locate(folder)
    assert found.checkpoint.name == "epoch1.ckpt"
    assert found.why == "newest complete of 3 .ckpt"
    assert [Path(note.split()[0]).name for note in found.passed_over] == [
        "epoch3.ckpt",
        "epoch2.ckpt",
    ]
    (folder / "epoch1.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"(?s)no complete checkpoint.*epoch1.*epoch3"):
        locate(folder)


def test_a_damaged_best_is_not_replaced(touch):
    """It is an error when it is read; the message names what else there is."""
    folder = touch("last.ckpt", "best.ckpt")
    (folder / "best.ckpt").write_bytes(b"PK")
    found = locate(folder)
    assert found.checkpoint.name == "best.ckpt" and found.others() == ["last.ckpt"]
    assert locate(folder / "best.ckpt").others() == []
    with pytest.raises(CheckpointError, match=r"best\.ckpt comes first.*also holds last\.ckpt"):
        resolve(folder)


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
        (
            ["adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"],
            "non_lora_trainables.bin",
        ),
        (["lora_weights/adapter_config.json", "mm_projector.bin"], "mm_projector.bin"),
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


def folders(*paths):
    """Make distributed checkpoints of increasing age-of-writing."""
    for second, path in enumerate(paths):
        dcp.save({"state_dict": {"w": torch.ones(1)}}, checkpoint_id=path, no_dist=True)
        os.utime(path, (second, second))


def test_folders_that_are_checkpoints(touch, tmp_path):
    folders(tmp_path / "best.ckpt")
    folder = touch("checkpoint_metadata.json", "tokenizer/tokenizer.json")
    assert locate(folder).checkpoint == folder / "best.ckpt"
    for path in (folder, folder / "best.ckpt"):
        found = locate(path)
        assert (found.checkpoint, found.folder) == (folder / "best.ckpt", folder)
        assert found.sidecar == folder / "checkpoint_metadata.json"
        assert found.tokenizer == folder / "tokenizer"


def test_the_newest_folder_that_is_complete(tmp_path, dcp_writer):
    weights = {"model.w": (torch.ones(2), [((0,), (2,))])}
    for second, name in enumerate(("epoch=1.ckpt", "epoch=2.ckpt")):
        os.utime(dcp_writer.write(tmp_path / name, weights, files=1), (second, second))
    found = locate(tmp_path)
    assert (found.checkpoint.name, found.why) == ("epoch=2.ckpt", "newest of 2 .ckpt")
    (tmp_path / "epoch=2.ckpt" / "__0_0.distcp").write_bytes(b"x")
    os.utime(tmp_path / "epoch=2.ckpt", (5, 5))
    found = locate(tmp_path)
    assert (found.checkpoint.name, found.why) == ("epoch=1.ckpt", "newest complete of 2 .ckpt")
    assert "epoch=2.ckpt/__0_0.distcp is truncated" in found.passed_over[0]


def test_a_folder_that_is_a_checkpoint_holds_its_companions(touch, tmp_path):
    folders(tmp_path / "step-9")
    touch("checkpoint_metadata.json", "step-9/config.yaml")
    found = locate(tmp_path / "step-9")
    assert found.checkpoint == found.folder == tmp_path / "step-9"
    assert found.sidecar is None
    assert found.config == tmp_path / "step-9" / "config.yaml"
    assert locate(tmp_path).checkpoint == tmp_path / "step-9"
    assert locate(tmp_path).sidecar == tmp_path / "checkpoint_metadata.json"


def test_what_other_trainers_write(touch, tmp_path):
    folders(tmp_path / "fsdp" / "pytorch_model_fsdp_0", tmp_path / "fsdp" / "optimizer_0")
    assert locate(tmp_path / "fsdp").checkpoint.name == "pytorch_model_fsdp_0"
    touch("zero/global_step5/mp_rank_00_model_states.pt", "zero/pytorch_model.bin")
    (tmp_path / "zero" / "latest").write_text("global_step5")
    assert locate(tmp_path / "zero").checkpoint == tmp_path / "zero"
    folders(tmp_path / "step-1", tmp_path / "step-2")
    with pytest.raises(CheckpointError, match=r"several checkpoints \(step-1, step-2, zero\)"):
        locate(tmp_path)


def test_an_unfinished_folder(touch):
    folder = touch("last.ckpt/__0_0.distcp")
    with pytest.raises(CheckpointError, match=r"\.metadata, which is written last, is missing"):
        locate(folder / "last.ckpt")
    assert locate(folder).checkpoint == folder / "last.ckpt"  # reading it says what is missing


def test_nothing_else_is_taken_for_a_companion(touch):
    found = locate(touch("last.ckpt", "checkpoint_metadata.json/x", "config.yaml/x"))
    assert found.sidecar is found.config is found.tokenizer is found.adapters is None


def test_no_choice_between_several(touch):
    with pytest.raises(
        CheckpointError, match=r"several checkpoints \(a\.pt, b\.pt\).*--checkpoint"
    ):
        locate(touch("a.pt", "b.pt"))


def test_adapters_alone(touch):
    folder = touch("lora_weights/adapter_config.json", "lora_weights/adapter_model.bin")
    for path in (folder / "lora_weights", folder / "lora_weights" / "adapter_model.bin"):
        with pytest.raises(CheckpointError, match="PEFT adapters of a language model, and no res"):
            locate(path)
    touch("last.ckpt")
    with pytest.raises(CheckpointError, match=r"holds last\.ckpt; give that"):
        locate(folder / "lora_weights")


def test_nothing_there(touch, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        locate(tmp_path / "none")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        locate(touch("config.yaml"))
    with pytest.raises(CheckpointError, match=r"folders below it do: .*vision"):
        locate(touch("vision/last.ckpt", "vision/.half.ckpt"))


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_link_to_nothing_is_not_passed_over(tmp_path, name):
    (tmp_path / "epoch1.ckpt").write_bytes(b"x")
    (tmp_path / name).symlink_to(tmp_path / "gone.ckpt")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to .*gone\.ckpt, which is not"):
        locate(tmp_path)
