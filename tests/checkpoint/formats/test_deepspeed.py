"""Folders of DeepSpeed, written by an independent writer of its layout (``zero_writer``)."""

from __future__ import annotations

import os
import re
import shutil

import pytest
import torch

from panovlm.checkpoint.formats import (
    TensorInfo,
    fault_of,
    is_checkpoint_folder,
    load_tensors,
    read_attachments,
    read_header,
)
from panovlm.errors import CheckpointError

SHAPES = {
    "a.weight": (5, 3),
    "a.bias": (5,),
    "b.weight": (7, 2, 2),
    "scale": (),
    "one": (1,),
    "b.bias": (3,),
    "still.weight": (4, 3),
    "still.bias": (1,),
}
FROZEN = ("still.weight", "still.bias")
GROUPS = [["a.weight", "one", "scale"], ["b.weight", "a.bias", "b.bias"]]
BUFFERS = {"count": torch.tensor(2**40), "table": torch.tensor([0.1, 0.2]), "none": torch.empty(0)}
SHARED = {"head.weight": "a.weight"}


@pytest.fixture
def parameters():
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def check(folder, parameters, frozen=FROZEN, dtype="float32"):
    """Compare a folder with what was written into it."""
    header, tensors = read_header(folder), load_tensors(folder)
    assert header.container == "deepspeed"
    assert header.path == folder
    expected = dict(parameters) | {name: parameters[first] for name, first in SHARED.items()}
    expected = {n: t.bfloat16() if n in frozen else t for n, t in expected.items()} | BUFFERS
    assert set(tensors) == set(expected) == set(header.tensors)
    assert list(tensors) == list(header.tensors)
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name
        assert header.tensors[name] == TensorInfo(
            tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        )
        assert not tensors[name].requires_grad
    assert tensors["head.weight"].data_ptr() == tensors["a.weight"].data_ptr()
    return tensors


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("strip", [True, False])
def test_stages_1_and_2(zero, tmp_path, parameters, processes, groups, strip):
    folder = zero.write(
        tmp_path / "x",
        parameters,
        stage=2,
        processes=processes,
        groups=groups,
        strip=strip,
        frozen=FROZEN,
        buffers=BUFFERS,
        shared=SHARED,
    )
    check(folder, parameters)
    check(folder / "global_step7", parameters)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("subgroups", [1, 3])
def test_stage_3(zero, tmp_path, parameters, processes, groups, subgroups):
    folder = zero.write(
        tmp_path / "x",
        parameters,
        stage=3,
        processes=processes,
        groups=groups,
        subgroups=subgroups,
        frozen=FROZEN,
        buffers=BUFFERS,
        shared=SHARED,
    )
    check(folder, parameters)


def test_frozen_parameters_that_were_not_cut(zero, tmp_path, parameters):
    """A parameter that was made outside of ZeRO's watch is kept whole by every process."""
    folder = zero.write(tmp_path / "x", parameters, stage=3, processes=2, frozen=FROZEN)
    for path in folder.glob("*/*_model_states.pt"):
        states = torch.load(path, weights_only=False)
        states["frozen_param_fragments"]["still.weight"] = parameters["still.weight"].bfloat16()
        torch.save(states, path)
    assert torch.equal(load_tensors(folder)["still.weight"], parameters["still.weight"].bfloat16())


def test_what_lies_in_one_place_is_mapped(zero, tmp_path, parameters):
    folder = zero.write(tmp_path / "x", parameters, stage=2, processes=1)
    file = next(folder.glob("*/*optim_states.pt"))
    before = file.read_bytes()
    tensors = load_tensors(folder)
    shared = tensors["a.weight"].untyped_storage()
    assert tensors["b.bias"].untyped_storage().data_ptr() == shared.data_ptr()
    tensors["a.weight"].add_(1)
    assert file.read_bytes() == before
    assert torch.equal(tensors["a.bias"], parameters["a.bias"])


def test_a_module_in_single_precision_is_taken_as_it_is(zero, tmp_path, parameters):
    """It is what the shares hold, and needs no putting together."""
    options = {"stage": 2, "processes": 3, "buffers": BUFFERS, "shared": SHARED}
    folder = zero.write(tmp_path / "x", parameters, dtype=torch.float32, **options)
    check(folder, parameters, frozen=())
    for path in folder.glob("*/*optim_states.pt"):
        path.unlink()
    check(folder, parameters, frozen=())


def test_without_shares_the_module_is_taken(zero, tmp_path, parameters):
    folder = zero.write(tmp_path / "x", parameters, stage=2, processes=2, shares=False)
    tensors = load_tensors(folder)
    assert all(torch.equal(tensors[n], t.bfloat16()) for n, t in parameters.items())


def test_without_zero(zero, tmp_path, parameters):
    """Stage 0 lists no shapes, and only the module counts."""
    folder = zero.write(tmp_path / "x", parameters, stage=0, processes=1, shares=False)
    path = folder / "global_step7" / "mp_rank_00_model_states.pt"
    states = torch.load(path, weights_only=True)
    states |= {"param_shapes": None, "shared_params": None, "optimizer": {"state": {}}}
    torch.save(states, path)
    assert load_tensors(folder).keys() == parameters.keys()
    assert "optimizer" in read_header(folder).skipped


def test_older_versions(zero, tmp_path, parameters):
    """They do not tell second names; in stages 1 and 2 the module shows them."""
    options = {"frozen": FROZEN, "buffers": BUFFERS, "shared": SHARED, "older": True}
    folder = zero.write(tmp_path / "2", parameters, stage=2, processes=2, **options)
    check(folder, parameters)
    del options["frozen"]
    folder = zero.write(tmp_path / "3", parameters, stage=3, processes=2, **options)
    tensors = load_tensors(folder)
    assert set(tensors) == {*parameters, *BUFFERS}


def test_as_lightning_writes_it(zero, tmp_path, parameters):
    client = {
        "epoch": 2,
        "global_step": 7,
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"x": 1},
        "loops": {},
        "panovlm_metadata": "{}",
        "panovlm_tokenizer": {"t.json": torch.tensor([1, 2], dtype=torch.uint8)},
    }
    for stage, prefix in ((1, "bf16_"), (3, "")):
        folder = zero.write(
            tmp_path / f"{stage}.ckpt",
            parameters,
            stage=stage,
            processes=2,
            tag="checkpoint",
            prefix=prefix,
            client=client,
        )
        header = read_header(folder)
        assert header.extras["epoch"] == 2
        assert header.extras["hyper_parameters"] == {"lr": 0.1}
        assert header.extras["panovlm_metadata"] == "{}"
        assert header.extras["ds_version"] == "0.16.5"
        assert not {"module", "param_shapes", "callbacks", "lr_scheduler"} & header.extras.keys()
        assert {"callbacks", "loops", "lr_scheduler", "optimizer_states"} == set(header.skipped)
        assert read_attachments(folder) == {"t.json": b"\x01\x02"}
        assert header.attachments == {"t.json": TensorInfo((2,), "uint8")}


def test_describing_reads_no_shares(zero, tmp_path, monkeypatch):
    from panovlm.checkpoint.formats.source import Source

    big = {"w": torch.zeros(500_000)}
    folder = zero.write(tmp_path / "x", big, stage=3, processes=2)
    read, total = Source.read, []

    def counted(self, position, length):
        total.append(length)
        return read(self, position, length)

    monkeypatch.setattr(Source, "read", counted)
    assert read_header(folder).tensors == {"w": TensorInfo((500_000,), "float32")}
    assert sum(total) < 100_000


def test_code_in_it_never_runs(zero, tmp_path, parameters):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {canary}",))

    for stage in (2, 3):
        folder = zero.write(
            tmp_path / f"{stage}", parameters, stage=stage, processes=2, client={"x": Evil()}
        )
        for path in folder.glob("*/*optim_states.pt"):
            states = torch.load(path, weights_only=False)
            states["optimizer_state_dict"]["loss_scaler"] = Evil()
            torch.save(states, path)
        canary.unlink(missing_ok=True)
        assert "w" not in load_tensors(folder)
        assert read_header(folder).extras["x"].endswith(".system>")
        assert not canary.exists()
        torch.load(path, weights_only=False)
        assert canary.exists()
        canary.unlink()


# What cannot be read is named ----------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in (folder / "global_step7").iterdir())


def remove(pattern):
    def change(folder):
        for path in folder.glob(f"global_step7/{pattern}"):
            path.unlink()

    return change


def add(name):
    return lambda folder: torch.save({}, folder / "global_step7" / name)


def edit(pattern, **entries):
    def change(folder):
        for path in folder.glob(f"global_step7/{pattern}"):
            states = torch.load(path, weights_only=False)
            inner = states.get("optimizer_state_dict", states)
            for name, value in entries.items():
                inner[name] = value(inner[name]) if callable(value) else value
            torch.save(states, path)

    return change


def shorter(rows):
    return [rows[0][:-1], *rows[1:]]


MODEL, MODELS = "mp_rank_00_model_states.pt", "*_rank_00_model_states.pt"
SHARES, SHARE_1 = "*optim_states.pt", "*rank_1_*optim_states.pt"
FLAT = "fp32_flat_groups"
ROWS = "single_partition_of_fp32_groups"
FAULTS = {
    "a share is missing": (2, remove(SHARE_1), "2 processes, and 1 have left"),
    "the first share is missing": (2, remove("*rank_0_*optim*"), "from 0 on"),
    "all shares are missing": (3, remove(SHARES), "shares of 0"),
    "a state is missing": (3, remove("*rank_1_*model*"), "shares of 2"),
    "two of one process": (2, add("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"), "there once"),
    "tensor parallel": (2, add("mp_rank_01_model_states.pt"), "mp_rank_01"),
    "pipeline": (2, add("layer_00-model_00-model_states.pt"), "layer_00.*zero_to_fp32"),
    "experts": (2, add("layer_0_expert_0_mp_rank_00_model_states.pt"), "expert_0"),
    "two trainings": (3, add(MODEL), "two trainings"),
    "no module": (2, edit(MODEL, module=None), "holds no module"),
    "module of another kind": (2, edit(MODEL, module=[1]), "module does not map names"),
    "no shapes": (2, edit(MODEL, param_shapes=[3]), "names to shapes"),
    "strange shapes": (2, edit(MODEL, param_shapes=[{"a.bias": (-5,)}]), "names to shapes"),
    "huge shapes": (3, edit(MODELS, param_shapes=[{"x": (2**40, 2**40)}]), "names to shapes"),
    "twice": (2, edit(MODEL, param_shapes=[{"one": (1,)}, {"one": (1,)}]), "twice"),
    "other shapes": (2, edit(MODEL, param_shapes=[{"one": (2,)}]), "in the module and"),
    "less is trained": (2, edit(MODEL, param_shapes=[{"one": (1,)}]), "has 1 elements, and the"),
    "other groups": (2, edit(MODEL, param_shapes=[{"one": (1,)}, {"a.bias": (5,)}]), "2 groups"),
    "more is trained": (3, edit(MODELS, param_shapes=[{"a.weight": (50, 3)}]), "this process'"),
    "a share is short": (3, edit(SHARE_1, **{FLAT: shorter}), "this process'"),
    "a row is short": (2, edit(SHARES, **{ROWS: lambda rows: [rows[0][:9]]}), "have left 18"),
    "rows of two axes": (2, edit(SHARES, **{ROWS: lambda r: [r[0][None]]}), "in a row|row was"),
    "other dtypes": (2, edit(SHARE_1, **{ROWS: lambda r: [r[0].double()]}), "float64"),
    "rows that are none": (3, edit(SHARES, **{FLAT: [None, None]}), "is no tensor"),
    "an old version": (2, edit(SHARES, **{ROWS: None}), "zero_to_fp32"),
    "counts of experts": (2, edit(SHARES, partition_count=[2, 1]), "experts"),
    "strange counts": (2, edit(SHARES, partition_count=[[]]), "unknown number"),
    "other steps": (3, edit("*rank_1_*model*", global_steps=8), "different checkpoints"),
    "shared with nothing": (2, edit(MODEL, shared_params={"x": 3}), "names to names"),
    "no fragment": (3, edit("*rank_1_*model*", frozen_param_fragments={}), "is no tensor"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(zero, tmp_path, parameters, fault):
    stage, change, words = FAULTS[fault]
    folder = zero.write(tmp_path / "x", parameters, stage=stage, processes=2, frozen=FROZEN)
    load_tensors(folder)
    change(folder)
    for read in (read_header, load_tensors, read_attachments):
        with pytest.raises(CheckpointError) as caught:
            read(folder)
        assert str(folder) in str(caught.value)
        assert re.search(words, str(caught.value).replace(str(tmp_path), ""))  # names the fault too
        assert "\n" not in str(caught.value)


def test_a_stale_latest(zero, tmp_path, parameters):
    folder = zero.write(tmp_path / "x", parameters, stage=2, processes=1)
    for tag, words in (("global_step9", "no such one"), ("../x", "plain names"), ("", "plain")):
        (folder / "latest").write_text(tag + "\n")
        assert is_checkpoint_folder(folder)
        with pytest.raises(CheckpointError, match=words):
            read_header(folder)


def test_links_out_of_the_folder_are_refused(zero, tmp_path, parameters):
    zero.write(tmp_path / "secret", parameters, stage=2, processes=1)
    folder = zero.write(tmp_path / "x", parameters, stage=2, processes=1, tag="other")
    (folder / "latest").write_text("global_step7")
    (folder / "global_step7").symlink_to(tmp_path / "secret" / "global_step7")
    with pytest.raises(CheckpointError, match="outside of its folder"):
        read_header(folder)
    (folder / "latest").write_text("other")
    share = next(folder.glob("other/*optim_states.pt"))
    share.unlink()
    share.symlink_to(tmp_path / "secret" / "global_step7" / share.name)
    with pytest.raises(CheckpointError, match="outside of its folder"):
        load_tensors(folder)


def test_the_cache_of_a_model_hub(zero, tmp_path, parameters):
    """There, every file is a link into one folder of blobs."""
    folder = zero.write(tmp_path / "x", parameters, stage=3, processes=2)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for index, path in enumerate(folder.glob("global_step7/*")):
        shutil.move(path, blobs / str(index))
        path.symlink_to(blobs / str(index))
    assert torch.equal(load_tensors(folder)["a.weight"], parameters["a.weight"])


def test_rows_that_stand_for_more_than_there_is(zero, tmp_path):
    """A few bytes that are listed many times over would fill any memory."""
    folder = zero.write(tmp_path / "x", {"w": torch.ones(4)}, stage=3, processes=2)
    for path in folder.glob("global_step7/*"):
        states = torch.load(path, weights_only=False)
        if "optim" in path.name:
            rows = states["optimizer_state_dict"]
            rows["fp32_flat_groups"] = [torch.ones(997)] * 800
        else:
            states["param_shapes"] = [{f"w{i}": (1600,) for i in range(997)}]
        torch.save(states, path)
    with pytest.raises(CheckpointError, match="6380800 bytes, and its files hold"):
        load_tensors(folder)


@pytest.mark.parametrize("stage", [2, 3])
def test_an_average_beside_the_module(zero, tmp_path, parameters, stage):
    average = {name: tensor + 1 for name, tensor in parameters.items()}
    folder = zero.write(
        tmp_path / "x", parameters, stage=stage, processes=2, client={"ema": average, "epoch": 1}
    )
    with pytest.raises(CheckpointError, match=r"two ways.*'module'.*'ema'.*--weights ema"):
        read_header(folder)
    assert fault_of(folder) is None
    for weights, state in (("model", parameters), ("ema", average)):
        header, tensors = read_header(folder, weights), load_tensors(folder, weights)
        assert header.averaged == (weights == "ema") and header.extras["epoch"] == 1
        assert set(tensors) == set(state)
        assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())
