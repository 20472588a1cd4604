"""safetensors files: what the format's own library reads is what was meant."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from panovlm.checkpoint.formats import load_tensors, read_header
from panovlm.checkpoint.saving import weight_files
from panovlm.checkpoint.saving.weight_files import Stored, write_safetensors, write_shards

TYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def stored(tensors):
    return {name: Stored(tensor, tensor.dtype) for name, tensor in tensors.items()}


def same_bytes(one, other):
    views = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*views)


@pytest.fixture
def written(tmp_path):
    def of(weights, metadata=None):
        path = tmp_path / "a.safetensors"
        with path.open("wb") as file:
            write_safetensors(file, weights, metadata or {"format": "pt"})
        return path

    return of


def test_every_type_and_shape(written, monkeypatch):
    monkeypatch.setattr(weight_files, "PIECE", 5)
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for dtype in TYPES:
        for shape in ((), (1,), (0,), (3, 7), (2, 3, 0)):
            values = torch.randint(0, 2, shape, generator=generator).to(dtype)
            tensors[f"{dtype}{list(shape)}"] = values
    path = written(stored(tensors))
    again = load_file(path)
    assert again.keys() == tensors.keys()
    ours = load_tensors(path)
    for name, tensor in tensors.items():
        assert same_bytes(again[name], tensor) and same_bytes(ours[name], tensor), name


def test_views_of_other_tensors(written):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"transposed": base.t(), "step": base[:, ::2], "part": base[1:3], "one": base[0, 0]}
    again = load_file(written(stored(tensors)))
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_the_type_changes_on_the_way(written, monkeypatch):
    monkeypatch.setattr(weight_files, "PIECE", 3)
    tensor = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    again = load_file(written({"a": Stored(tensor, torch.bfloat16)}))
    assert torch.equal(again["a"], tensor.detach().bfloat16())


def test_metadata_and_alignment(written):
    tensors = {"b": torch.ones(3, dtype=torch.uint8), "a": torch.ones(5), "ä": torch.ones(2).half()}
    path = written(stored(tensors), {"format": "pt", "text": '{"ü": "\n"}'})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "text": '{"ü": "\n"}'}
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0


@pytest.mark.parametrize(("size", "count"), [(1, 4), (16, 4), (17, 4), (32, 2), (100, 1)])
def test_shards(size, count, tmp_path):
    tensors = {name: torch.full((4,), float(i)) for i, name in enumerate("dbca")}
    index = write_shards(tmp_path, stored(tensors), {"format": "pt"}, max_size=size)
    listed = json.loads(index.read_text())
    assert listed["metadata"] == {"total_size": 64}
    assert len(set(listed["weight_map"].values())) == count
    assert list(read_header(index).tensors) == list(tensors)  # neighbours stay neighbours
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / listed["weight_map"][name])[name], tensor)
        assert torch.equal(load_tensors(index)[name], tensor)


def test_one_tensor_larger_than_a_shard(tmp_path):
    tensors = {"a": torch.ones(1), "large": torch.ones(100), "b": torch.ones(1)}
    index = write_shards(tmp_path, stored(tensors), {}, max_size=64)
    assert len(set(json.loads(index.read_text())["weight_map"].values())) == 3
