"""Safetensors files: the safetensors library writes them and is the reference."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from panovlm.checkpoint.formats import (
    TensorInfo,
    load_tensors,
    read_attachments,
    read_header,
    safetensors,
)
from panovlm.checkpoint.formats.header import ITEMSIZE
from panovlm.checkpoint.formats.source import Source
from panovlm.errors import CheckpointError


def write(path, header, data=b"", pad=True):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8 if pad else 0)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("dtype", safetensors._DTYPES.values())
def test_every_dtype_equals_the_library(tmp_path, dtype):
    raw = torch.arange(ITEMSIZE[dtype] * 6).remainder(2).to(torch.uint8)
    tensor = raw.view(getattr(torch, dtype)).reshape(2, 3)
    path = tmp_path / "x.safetensors"
    try:
        save_file({"w": tensor, "empty": tensor[:0], "scalar": tensor[0, 0].clone()}, path)
        reference = load_file(path)
    except KeyError:
        pytest.skip(f"this safetensors cannot write {dtype}")
    ours = load_tensors(path)
    assert ours.keys() == reference.keys()
    for name, expected in reference.items():
        assert ours[name].dtype == expected.dtype
        assert ours[name].shape == expected.shape
        assert ours[name].stride() == expected.stride()
        assert bytes(ours[name].untyped_storage()) == bytes(expected.untyped_storage())
    assert read_header(path).tensors["w"] == TensorInfo((2, 3), dtype)


@settings(max_examples=50, deadline=None)
@given(
    tensors=st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
        st.lists(st.integers(0, 3), max_size=4),
        max_size=6,
    ).filter(lambda names: "__metadata__" not in names),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3),
)
def test_random_files_equal_the_library(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    save_file({name: torch.rand(shape) for name, shape in tensors.items()}, path, metadata or None)
    header = read_header(path)
    with safe_open(path, "pt") as reference:
        assert {n: t.shape for n, t in header.tensors.items()} == {
            n: tuple(reference.get_slice(n).get_shape())
            for n in reference.keys()  # noqa: SIM118
        }
        assert header.extras == (reference.metadata() or {})
    ours = load_tensors(path)
    for name, expected in load_file(path).items():
        assert torch.equal(ours[name], expected)


def test_metadata_and_attachments(tmp_path):
    path = tmp_path / "x.safetensors"
    files = {"tokenizer.json": b"{}", "a/b.txt": b"\x00\xff", "empty": b""}
    tensors = {
        f"panovlm_tokenizer/{n}": torch.tensor(list(b), dtype=torch.uint8) for n, b in files.items()
    }
    save_file({"w": torch.ones(3), **tensors}, path, {"panovlm_metadata": '{"a": 1}'})
    header = read_header(path)
    assert header.container == "safetensors"
    assert header.extras == {"panovlm_metadata": '{"a": 1}'}
    assert list(header.tensors) == ["w"]
    assert header.attachments["empty"] == TensorInfo((0,), "uint8")
    assert read_attachments(path) == files
    assert list(load_tensors(path)) == ["w"]


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "", "a\\b", "c:x", "."])
def test_attachment_names_cannot_leave_their_folder(tmp_path, name):
    path = tmp_path / "x.safetensors"
    save_file({f"panovlm_tokenizer/{name}": torch.ones(1, dtype=torch.uint8)}, path)
    with pytest.raises(CheckpointError, match="attachment"):
        read_header(path)


def test_writing_to_tensors_leaves_the_file_alone(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.zeros(1000), "v": torch.zeros(7)}, path)
    before = path.read_bytes()
    tensors = load_tensors(path)
    tensors["w"].add_(1)
    assert tensors["v"].sum() == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("shift", range(8))
def test_unaligned_file(tmp_path, shift):
    """The header's length is the writer's choice; the tensors must come out aligned anyway."""
    text = json.dumps({"w": entry("F64", (1,), (0, 8))}).encode()
    path = write(tmp_path / "x", text + b" " * shift, struct.pack("<d", 1.5), pad=False)
    tensor = load_tensors(path)["w"]
    assert tensor.item() == 1.5
    assert tensor.data_ptr() % 8 == 0


DAMAGED = {
    "gap": ({"a": entry(), "b": entry(offsets=(16, 24))}, 24, "starts at byte"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "starts at byte"),
    "shape": ({"a": entry(shape=(3,))}, 8, "12 bytes"),
    "order": ({"a": entry(offsets=(8, 0))}, 8, "data_offsets"),
    "negative": ({"a": entry(offsets=(-8, 0))}, 8, "no numbers"),
    "negative shape": ({"a": entry(shape=(-1, -2))}, 8, "no numbers"),
    "bool shape": ({"a": entry(shape=(True, 2))}, 8, "no numbers"),
    "float shape": ({"a": entry(shape=(2.0,))}, 8, "no numbers"),
    "huge shape": ({"a": entry(shape=(2**62, 4, 0, 2**64))}, 8, "no numbers"),
    "overflow": ({"a": entry(shape=(2**62, 4), offsets=(0, 0))}, 0, "data_offsets"),
    "three offsets": ({"a": entry(offsets=(0, 8, 8))}, 8, "data_offsets"),
    "missing field": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "lacks"),
    "extra field": ({"a": {**entry(), "x": 1}}, 8, "lacks"),
    "no object": ({"a": 3}, 8, "lacks"),
    "dtype": ({"a": entry("F7")}, 8, "'F7'"),
    "dtype list": ({"a": entry(["F32"])}, 8, "not supported"),
    "metadata": ({"__metadata__": {"a": 1}, "a": entry()}, 8, "__metadata__"),
    "metadata list": ({"__metadata__": [], "a": entry()}, 8, "__metadata__"),
    "trailing": ({"a": entry()}, 9, "1 bytes follow"),
    "duplicate": (b'{"a":%(e)s,"a":%(e)s}' % {b"e": json.dumps(entry()).encode()}, 8, "twice"),
    "json": (b'{"a":', 8, "damaged"),
    "nan": (b'{"a":NaN}', 8, "NaN"),
    "deep": (b'{"a":' + b"[" * 100_000, 8, "damaged"),
    "digits": (b'{"a":' + b"9" * 10_000 + b"}", 8, "damaged"),
    "utf8": (b'{"\xff":1}', 8, "damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_as_by_the_library(tmp_path, name):
    header, size, words = DAMAGED[name]
    path = write(tmp_path / "x.safetensors", header, b"\0" * size)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    # The library lets unknown fields of an entry, and names that occur twice, pass.
    if name not in ("extra field", "duplicate"):
        with pytest.raises((SafetensorError, OverflowError)), safe_open(path, "pt") as reference:
            list(reference.keys())


def test_truncated_files(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.zeros(1000)}, path)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=rf"truncated.*{len(data)} bytes.*{len(data) - 1}"):
        read_header(path)
    path.write_bytes(data[:40])
    with pytest.raises(CheckpointError, match=r"truncated.*40"):
        read_header(path)


def test_header_longer_than_allowed(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 10**9) + b'{"a":1}')
    with pytest.raises(CheckpointError, match="1000000000"):
        read_header(path)


def test_reads_do_not_grow_with_the_tensors(tmp_path, monkeypatch):
    reads = []
    original = Source.read
    monkeypatch.setattr(
        Source, "read", lambda self, at, n: reads.append(n) or original(self, at, n)
    )
    for width in (1, 1_000_000):
        reads.clear()
        path = tmp_path / f"{width}.safetensors"
        save_file({"w": torch.empty(width)}, path)
        read_header(path)
        assert sum(reads) < 2000
