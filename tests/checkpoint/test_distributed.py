"""Checkpoints that several processes wrote open on one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import (
    describe_model,
    embedded_entries,
    save_checkpoint,
    without_record,
)
from panovlm.cli.main import main
from panovlm.errors import CheckpointError
from panovlm.models.model import PanoramaVLM

PROGRAM = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 12, (2, 6), generator=generator)
    return {
        "pixel_values": torch.randn(2, 3, 3, 16, 16, generator=generator),
        "input_ids": ids,
        "labels": ids,
    }


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@pytest.fixture(scope="module")
def written(own, batch, tmp_path_factory):
    """A folder with what two processes wrote."""
    folder = tmp_path_factory.mktemp("two")
    save_checkpoint(own(), folder / "base.ckpt")
    torch.save(batch, folder / "batch.pt")
    done = subprocess.run(
        [sys.executable, PROGRAM, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize(
    ("path", "name", "container"),
    [
        ("ddp.ckpt", "ddp", "torch"),
        ("fsdp", "fsdp", "dcp"),
        ("fsdp1", "fsdp1", "dcp"),
        ("fsdp1.ckpt", "fsdp1_full", "torch"),
        ("run", "lightning", "dcp"),
        ("run/last.ckpt", "lightning", "dcp"),
    ],
)
def test_they_open_on_one_process(written, batch, path, name, container):
    model = PanoramaVLM.from_checkpoint(written / path, strict=True)
    assert model.resolution is not None
    assert model.resolution.header.container == container
    expected = torch.load(written / f"{name}.pt", weights_only=True)
    state = model.state_dict()
    assert set(expected["state"]) <= set(state)
    assert all(torch.equal(state[n], t) for n, t in expected["state"].items())
    base = PanoramaVLM.from_checkpoint(written / "base.ckpt").state_dict()
    assert any(not torch.equal(state[n], t) for n, t in base.items())
    assert torch.equal(logits(model, batch), expected["logits"])
    assert model.tokenizer is not None


@pytest.fixture(scope="module")
def zero_folder(own, zero, tmp_path_factory):
    """Write a model as DeepSpeed under Lightning does."""

    def write(*, stage, describe=True, kept=True, name="last.ckpt", **options):
        model = own()
        parameters = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
        state = {f"model.{n}": t for n, t in model.state_dict().items()}
        state = state if kept else without_record(state)
        first = {t.data_ptr(): n for n, t in parameters.items()}
        shared = {
            n: first[t.data_ptr()]
            for n, t in state.items()
            if n not in parameters and t.data_ptr() in first
        }
        entries = embedded_entries(model, describe_model(model)) if describe else {}
        return zero.write(
            tmp_path_factory.mktemp("zero") / name,
            parameters,
            stage=stage,
            processes=2,
            shared=shared,
            buffers={n: t for n, t in state.items() if n not in {*parameters, *shared}},
            client={"epoch": 1, **entries},
            tag="checkpoint",
            **options,
        )

    return write


@pytest.mark.parametrize("stage", [2, 3])
def test_a_folder_of_deepspeed(own, zero_folder, batch, stage):
    folder = zero_folder(stage=stage)
    for path in (folder, folder.parent):
        model = PanoramaVLM.from_checkpoint(path, strict=True)
        assert model.resolution is not None
        assert model.resolution.path == folder
        assert model.dtype == torch.float32
        assert torch.equal(logits(model, batch), logits(own(), batch))
        assert model.tokenizer is not None


@pytest.mark.parametrize("name", ["last.ckpt", "checkpoint-500"])
def test_a_folder_is_given_its_metadata(own, zero_folder, batch, name, capsys):
    """Beside it where it is named like a file, in it otherwise."""
    folder = zero_folder(stage=3, describe=False, name=name)
    assert resolve(folder).assumed == []  # the weights keep the settings
    folder = zero_folder(stage=3, describe=False, kept=False, name=name)
    assert main(["inspect", str(folder)]) == 0
    assert f"{folder}  (deepspeed, named)" in capsys.readouterr().out
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["container"] == "deepspeed"
    with pytest.raises(CheckpointError, match="strict"):
        PanoramaVLM.from_checkpoint(folder, strict=True)
    given = [f"--set=models.{field}" for field in ("overlap_ratio=0.5",)]
    assert main(["add-metadata", "--checkpoint", str(folder), *given]) == 0
    home = folder.parent if name == "last.ckpt" else folder
    assert (home / "checkpoint_metadata.json").is_file()
    assert torch.equal(logits(PanoramaVLM.from_checkpoint(folder), batch), logits(own(), batch))
    resolved = resolve(folder)
    assert resolved.sources["models.overlap_ratio"].kind == "metadata"


def test_a_shell_names_the_folder_with_the_weights(zero_folder):
    folder = zero_folder(stage=3, describe=False, name="checkpoint-500")
    states = torch.load(
        folder / "checkpoint" / "zero_pp_rank_0_mp_rank_00_model_states.pt", weights_only=False
    )
    shell = {n.removeprefix("model."): t for n, t in states["module"].items()}
    (folder.parent / "final").mkdir()
    for path in (folder / "pytorch_model.bin", folder.parent / "final" / "pytorch_model.bin"):
        torch.save(shell, path)
        with pytest.raises(CheckpointError, match=r"is a shell: \d+ of its \d+ tensors") as caught:
            PanoramaVLM.from_checkpoint(path)
        assert f"The weights are in {folder}: give that folder" in str(caught.value)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="No folder with the shares"):
        PanoramaVLM.from_checkpoint(path)
