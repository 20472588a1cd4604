"""Sharded checkpoints: an index and the files that it names."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file

from panovlm.checkpoint.formats import TensorInfo, load_tensors, read_attachments, read_header
from panovlm.errors import CheckpointError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write_index(folder, weight_map, **more):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map, **more}))
    return index


@pytest.fixture
def index(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / FIRST, {"format": "pt"})
    save_file(
        {"c": torch.full((4,), 2.0), "panovlm_tokenizer/f": torch.ones(1, dtype=torch.uint8)},
        tmp_path / SECOND,
        {"format": "pt", "panovlm_metadata": "{}"},
    )
    names = {"a": FIRST, "b": FIRST, "c": SECOND, "panovlm_tokenizer/f": SECOND}
    return write_index(tmp_path, names, metadata={"total_size": 37})


def test_shards_are_one_checkpoint(index):
    header = read_header(index)
    assert header.container == "sharded"
    assert header.path == index
    assert header.tensors == {
        n: TensorInfo((k,), "float32") for n, k in zip("abc", (2, 3, 4), strict=True)
    }
    assert header.extras == {"format": "pt", "panovlm_metadata": "{}", "total_size": 37}
    assert read_attachments(index) == {"f": b"\x01"}
    tensors = load_tensors(index)
    assert {n: t.sum().item() for n, t in tensors.items()} == {"a": 2, "b": 3, "c": 8}


def test_what_the_hub_library_writes(tmp_path):
    """``save_pretrained`` shards through the same function."""
    state = {f"layers.{i}.weight": torch.rand(30, 30) for i in range(9)}
    save_torch_state_dict(state, tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = load_tensors(tmp_path / "model.safetensors.index.json")
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in state.items())


def test_shards_of_torch_archives(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": torch.ones(3)}, tmp_path / "pytorch_model-2.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    names = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert {n: len(t) for n, t in load_tensors(index).items()} == {"a": 2, "b": 3}


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "x\0y", 3, None, ["a"]],
)
def test_shards_elsewhere_are_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    index = write_index(tmp_path / "folder", {"a": name})
    with pytest.raises(CheckpointError, match=r"index\.json"):
        read_header(index)


def test_links_out_of_the_folder_are_refused(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "secret")
    (folder / FIRST).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="outside of its folder"):
        read_header(write_index(folder, {"a": FIRST}))
    (folder / SECOND).symlink_to(folder / SECOND)
    with pytest.raises(CheckpointError, match="index"):
        read_header(write_index(folder, {"a": SECOND}))


def test_the_cache_of_a_model_hub(tmp_path):
    """There, the index and the shards are links into one folder of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file({"a": torch.ones(2)}, blobs / "1")
    write_index(blobs, {"a": FIRST}).rename(blobs / "2")
    (snapshot / FIRST).symlink_to("../../blobs/1")
    index = snapshot / "model.safetensors.index.json"
    index.symlink_to("../../blobs/2")
    assert load_tensors(index)["a"].tolist() == [1, 1]


def test_index_and_shards_that_do_not_match(index, tmp_path):
    names = {"a": FIRST, "b": FIRST, "c": SECOND}
    write_index(tmp_path, {**names, "d": SECOND})
    with pytest.raises(CheckpointError, match=r"'d'.*does not hold"):
        read_header(index)
    write_index(tmp_path, {**names, "c": FIRST, "x": SECOND})
    with pytest.raises(CheckpointError, match=r"'c'.*does not hold"):
        load_tensors(index)
    write_index(tmp_path, {"a": FIRST, "c": "absent.safetensors"})
    with pytest.raises(CheckpointError, match=r"absent\.safetensors does not exist"):
        read_header(index)


def test_a_tensor_in_two_shards(index, tmp_path):
    save_file({"c": torch.ones(4), "a": torch.ones(2)}, tmp_path / SECOND, {"format": "pt"})
    write_index(tmp_path, {"a": FIRST, "b": FIRST, "c": SECOND})
    for read in (read_header, load_tensors):
        with pytest.raises(CheckpointError, match=r"'a' is in .* and in another"):
            read(index)


def test_tensors_that_the_index_does_not_list_are_not_lost(index, tmp_path):
    write_index(tmp_path, {"a": FIRST, "c": SECOND})
    assert set(read_header(index).tensors) == set(load_tensors(index)) == {"a", "b", "c"}


def test_shards_of_different_checkpoints(index, tmp_path):
    save_file(
        {"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / FIRST, {"panovlm_metadata": "[]"}
    )
    with pytest.raises(CheckpointError, match=r"disagree about 'panovlm_metadata'"):
        read_header(index)


@pytest.mark.parametrize(
    "text",
    ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": "b"}, "metadata": 1}',
     '{"a": 1', '{"weight_map": {"a": "x", "a": "y"}}', "{" * 500],
)  # fmt: skip
def test_json_that_is_no_index(tmp_path, text):
    index = tmp_path / "config.json"
    index.write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_header(index)


def test_an_index_cannot_name_itself(tmp_path):
    index = write_index(tmp_path, {"a": "model.safetensors.index.json"})
    with pytest.raises(CheckpointError, match=r"is a text file"):
        read_header(index)
