"""Torch archives: torch.save writes them, torch.load is the reference for what they hold."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import enum
import json
import pathlib
import shutil
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.checkpoint.formats import (
    TensorInfo,
    load_tensors,
    read_attachments,
    read_header,
    torchzip,
)
from panovlm.checkpoint.formats.header import ITEMSIZE
from panovlm.errors import CheckpointError

DTYPES = [name for name in ITEMSIZE if hasattr(torch, name)]


@dataclasses.dataclass
class ForeignConfig:
    """A class of some training script: known here, unknown to a reader elsewhere."""

    hidden_dim: int = 8


class ForeignDict(dict):
    pass


class Mode(enum.Enum):
    A = "a"


def of_dtype(name: str, shape: tuple[int, ...] = (3, 5)) -> torch.Tensor:
    """Arbitrary bytes (0 or 1, valid for bool) seen as a tensor of the dtype."""
    count = ITEMSIZE[name]
    for length in shape:
        count *= length
    raw = torch.arange(count, dtype=torch.int64).remainder(2).to(torch.uint8)
    return raw.view(getattr(torch, name)).reshape(shape)


def same(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.dtype == reference.dtype
    assert ours.shape == reference.shape
    assert ours.stride() == reference.stride()
    assert ours.storage_offset() == reference.storage_offset()
    assert bytes(ours.untyped_storage()) == bytes(reference.untyped_storage())


def lightning(state: dict, **more: object) -> dict:
    return {
        "epoch": 1,
        "global_step": 17,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}}},
        "hparams_name": None,
        "hyper_parameters": {"lr": 1e-3, "stage": "finetune", "use_lora": True},
        "datamodule_hparams_name": "kwargs",
        "datamodule_hyper_parameters": {"image_size": (256, 256), "csv_train": ["a", "b"]},
        **more,
    }


def test_lightning_checkpoint(tmp_path):
    linear = torch.nn.Linear(4, 3)
    path = tmp_path / "last.ckpt"
    state = {f"model.{k}": v for k, v in linear.state_dict().items()}
    torch.save(
        lightning(state, callbacks={"x": torch.ones(3)}, optimizer_states=[{"state": {}}]), path
    )
    header = read_header(path)
    assert header.path == path
    assert header.container == "torch"
    assert header.tensors == {
        "model.weight": TensorInfo((3, 4), "float32"),
        "model.bias": TensorInfo((3,), "float32"),
    }
    assert header.extras == {
        "epoch": 1,
        "global_step": 17,
        "pytorch-lightning_version": "2.6.6",
        "hparams_name": None,
        "hyper_parameters": {"lr": 1e-3, "stage": "finetune", "use_lora": True},
        "datamodule_hparams_name": "kwargs",
        "datamodule_hyper_parameters": {"image_size": (256, 256), "csv_train": ["a", "b"]},
    }
    assert sorted(header.skipped) == ["callbacks", "loops", "optimizer_states"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_dtype_equals_torch_load(tmp_path, dtype, protocol):
    path = tmp_path / "x.pt"
    torch.save({"w": of_dtype(dtype)}, path, pickle_protocol=protocol)
    assert read_header(path).tensors == {"w": TensorInfo((3, 5), dtype)}
    reference = of_dtype(dtype) if protocol > 2 else torch.load(path, weights_only=True)["w"]
    same(load_tensors(path)["w"], reference)


def test_views_equal_torch_load(tmp_path):
    base = torch.arange(60, dtype=torch.float64).reshape(3, 4, 5)
    path = tmp_path / "x.pt"
    torch.save(
        {
            "base": base,
            "transposed": base.transpose(0, 2),
            "sliced": base[1:, ::2, 3],
            "scalar": base[2, 3, 4],
            "expanded": torch.ones(1).expand(7, 9),
            "empty": torch.empty(0, 4),
            "empty_slice": base[3:],
            "own_scalar": torch.tensor(2.5),
            "parameter": torch.nn.Parameter(torch.ones(2)),
            "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        },
        path,
    )
    reference = torch.load(path, weights_only=True)
    ours = load_tensors(path)
    assert list(ours) == list(reference) == list(read_header(path).tensors)
    for name, tensor in reference.items():
        same(ours[name], tensor)
        assert read_header(path).tensors[name].shape == tuple(tensor.shape)
        assert not ours[name].requires_grad


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_views_equal_torch_load(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("views") / "x.pt"
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    base = torch.rand(shape)
    for axis in range(base.dim()):
        start = data.draw(st.integers(0, 2))
        step = data.draw(st.integers(1, 3))
        base = base[(slice(None),) * axis + (slice(start, None, step),)]
    base = base.permute(data.draw(st.permutations(range(base.dim()))))
    torch.save({"x": base}, path)
    same(load_tensors(path)["x"], torch.load(path, weights_only=True)["x"])


def test_tied_weights_share_memory(tmp_path):
    table = torch.rand(5, 3)
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"embed.weight": table, "head.weight": table}}, path)
    assert list(read_header(path).tensors) == ["embed.weight", "head.weight"]
    tensors = load_tensors(path)
    tensors["embed.weight"][0, 0] = 42
    assert tensors["head.weight"][0, 0] == 42


def test_writing_to_tensors_leaves_the_file_alone(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    before = path.read_bytes()
    path.chmod(0o444)
    tensors = load_tensors(path)
    tensors["w"].add_(1)
    del tensors
    assert path.read_bytes() == before


def test_tensors_outlive_a_replaced_file(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.full((5000,), 3.0)}, path)
    tensors = load_tensors(path)
    other = tmp_path / "y.pt"
    torch.save({"w": torch.zeros(5000)}, other)
    other.replace(path)
    assert tensors["w"].sum() == 15000


def test_loaded_tensors_are_saved_alone(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"small": torch.zeros(4), "large": torch.zeros(100_000)}, path)
    torch.save({"small": load_tensors(path)["small"]}, tmp_path / "y.pt")
    assert (tmp_path / "y.pt").stat().st_size < 5000


def test_foreign_objects_are_named_and_do_not_hinder(tmp_path):
    path = tmp_path / "x.ckpt"
    hyper = {
        "config": ForeignConfig(),
        "class": ForeignConfig,
        "namespace": argparse.Namespace(a=1),
        "path": pathlib.PurePosixPath("/a/b"),
        "mode": Mode.A,
        "dict": ForeignDict(a=1, b=ForeignDict()),
        "default": collections.defaultdict(int, {"n": 2}),
        "counter": collections.Counter("aab"),
        "set": {1},
        "frozen": frozenset({2}),
        "bytes": b"abc",
        "dtype": torch.bfloat16,
        "size": torch.Size([2, 3]),
        "tensor": torch.zeros(2, 3, dtype=torch.int16),
        "big": 2**70,
        "negative": -(2**40),
        "float": 0.1,
        "nan": float("inf"),
        "text": "360° 全景",
        "nested": [({"k": (None, True, False)},)],
        (224, 224): "tuple key",
        7: "int key",
    }
    torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": hyper}, path)
    with pytest.raises(Exception, match=r"Weights only load failed"):
        torch.load(path, weights_only=True)
    header = read_header(path)
    module = __name__
    found = dict(header.extras["hyper_parameters"])
    assert found == {
        "config": f"<{module}.ForeignConfig>",
        "class": f"<{module}.ForeignConfig>",
        "namespace": "<argparse.Namespace>",
        "path": found["path"],
        "mode": found["mode"],
        "dict": {"a": 1, "b": f"<{module}.ForeignDict>"},
        "default": {"n": 2},
        "counter": {"a": 2, "b": 1},
        "set": [1],
        "frozen": [2],
        "bytes": "<builtins.bytes>",
        "dtype": "torch.bfloat16",
        "size": (2, 3),
        "tensor": TensorInfo((2, 3), "int16"),
        "big": 2**70,
        "negative": -(2**40),
        "float": 0.1,
        "nan": float("inf"),
        "text": "360° 全景",
        "nested": [({"k": (None, True, False)},)],
        (224, 224): "tuple key",
        7: "int key",
    }
    assert found["path"].startswith("<pathlib")
    assert found["mode"].startswith("<")
    assert load_tensors(path)["w"].tolist() == [1, 1]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols_agree(tmp_path, protocol):
    saved = lightning({"w": torch.ones(2)}, more={"s": {1, 2}, "n": [1.5, None, -70000, 2**33]})
    torch.save(saved, tmp_path / "2.pt")
    torch.save(saved, tmp_path / "n.pt", pickle_protocol=protocol)
    expected, found = read_header(tmp_path / "2.pt"), read_header(tmp_path / "n.pt")
    assert (found.tensors, found.extras) == (expected.tensors, expected.extras)


def test_tensor_with_attributes_and_large_memo(tmp_path):
    marked = torch.ones(3)
    marked.note = "x"
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.note = "y"
    many = {f"w{i}": torch.zeros(1) for i in range(300)}
    path = tmp_path / "x.pt"
    torch.save({"marked": marked, "parameter": parameter, **many}, path)
    header = read_header(path)
    assert header.tensors["marked"] == TensorInfo((3,), "float32")
    assert header.tensors["parameter"] == TensorInfo((2,), "float32")
    assert len(header.tensors) == 302


# Which part holds the weights ------------------------------------------------------------------


@pytest.mark.parametrize(
    "saved",
    [
        {"w": torch.ones(2)},
        {"state_dict": {"w": torch.ones(2)}},
        {"model": {"w": torch.ones(2)}},
        {"module": {"w": torch.ones(2)}},
        {"weights": {"w": torch.ones(2)}},
        {"model": {"w": torch.ones(2)}, "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
        {"state_dict": {"w": torch.ones(2)}, "other": {"w": torch.zeros(2)}},
        {"state_dict": ForeignDict(w=torch.ones(2))},
        {"state_dict": {}, "model": {"w": torch.ones(2)}},
    ],
)
def test_weights_are_found(tmp_path, saved):
    path = tmp_path / "x.pt"
    torch.save(saved, path)
    assert read_header(path).tensors == {"w": TensorInfo((2,), "float32")}
    assert load_tensors(path)["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"model": {"w": torch.ones(2)}, "net": {"w": torch.ones(2)}}, ["'model', 'net'"]),
        ({"w": torch.ones(2), "model": {"w": torch.ones(2)}}, ["'model'", "top level"]),
        ({"epoch": 3, "loops": {}}, ["no weights", "'epoch', 'loops'"]),
        ({}, ["no weights"]),
        (torch.ones(2), ["single tensor"]),
        ([torch.ones(2)], ["a list"]),
        (torch.nn.Linear(1, 1), ["torch.nn.modules.linear.Linear", "state_dict()"]),
        ({1: torch.ones(2)}, ["tensor 1", "int"]),
    ],
)
def test_ambiguous_or_absent_weights_are_an_error(tmp_path, saved, words):
    path = tmp_path / "x.pt"
    torch.save(saved, path)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_other_values_of_a_state_dict_are_kept(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"state_dict": {"w": torch.ones(1), "_extra_state": {"n": 1}}, "epoch": 2}, path)
    assert read_header(path).extras == {"state_dict": {"_extra_state": {"n": 1}}, "epoch": 2}
    torch.save({"w": torch.ones(1), "epoch": 2, "panovlm_metadata": "{}"}, path)
    assert read_header(path).extras == {"epoch": 2, "panovlm_metadata": "{}"}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.complex64).conj(),
    ],
    ids=["coo", "csr", "quantised", "meta", "conjugated"],
)
@pytest.mark.parametrize("with_others", [True, False])
def test_tensors_that_cannot_be_mapped_are_refused_by_name(tmp_path, tensor, with_others):
    path = tmp_path / "x.pt"
    others = {"w": torch.ones(1)} if with_others else {}
    torch.save({"state_dict": {**others, "odd.weight": tensor}}, path)
    with pytest.raises(CheckpointError, match=r"odd\.weight.*before saving"):
        read_header(path)


# Damage ----------------------------------------------------------------------------------------


def rezip(source, target, *, drop=(), replace=None, rename=None, method=zipfile.ZIP_STORED):
    replace = replace or {}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            if name not in drop:
                data = replace.get(name, old.read(name))
                new.writestr(rename(name) if rename else name, data)


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a.weight": torch.ones(10), "b.weight": torch.ones(20)}, path)
    return path


def test_rezipped_archive_under_another_name(tmp_path, archive):
    other = tmp_path / "y.pt"
    rezip(archive, other, rename=lambda name: name.replace("x/", "some archive/", 1))
    assert read_header(other).tensors == read_header(archive).tensors
    tensors = load_tensors(other)
    assert tensors["b.weight"].tolist() == [1.0] * 20


def test_unaligned_storages_are_copied(tmp_path, archive):
    other = tmp_path / "y.pt"
    for pad in range(1, 5):
        folder = "f" * pad
        rezip(archive, other, rename=lambda name, f=folder: name.replace("x/", f"{f}/", 1))
        for tensor in load_tensors(other).values():
            assert tensor.data_ptr() % 4 == 0
            assert tensor.unique().tolist() == [1.0]


def test_records_that_share_bytes(archive):
    """A few bytes could stand for any number of tensors, each copied where it is unaligned."""
    data = archive.read_bytes()
    directory = data.rindex(b"PK\x01\x02", 0, data.rindex(b"x/data/1"))
    first = data.rindex(b"PK\x01\x02", 0, data.rindex(b"x/data/0"))
    start = struct.unpack_from("<L", data, first + 42)[0]
    moved = bytearray(data)
    struct.pack_into("<L", moved, directory + 42, start)
    archive.write_bytes(moved)
    with pytest.raises(CheckpointError, match="share bytes"):
        read_header(archive)


@pytest.mark.parametrize("cut", [1, 10, 300, 700])
def test_truncated_archive(archive, cut):
    data = archive.read_bytes()
    archive.write_bytes(data[:-cut])
    with pytest.raises(CheckpointError, match=rf"is truncated.*{len(data) - cut} bytes"):
        read_header(archive)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drop": ["x/data/1"]}, ["'b.weight' is truncated", "absent", "80 bytes"]),
        ({"replace": {"x/data/1": b"1234"}}, ["'b.weight' is truncated", "4 bytes long"]),
        ({"drop": ["x/data.pkl"]}, ["none of torch.save", "data.pkl"]),
        ({"replace": {"x/byteorder": b"big"}}, ["big-endian", "safetensors"]),
        ({"method": zipfile.ZIP_DEFLATED}, ["compressed", "zip -0"]),
    ],
)
def test_damaged_archive(tmp_path, archive, change, words):
    other = tmp_path / "y.pt"
    rezip(archive, other, **change)
    for read in (read_header, load_tensors):
        with pytest.raises(CheckpointError) as caught:
            read(other)
        assert all(word in str(caught.value) for word in [str(other), *words])


def test_archive_without_byteorder_and_version(tmp_path, archive):
    other = tmp_path / "y.pt"
    rezip(archive, other, drop=["x/byteorder", "x/version", "x/.format_version"])
    assert len(read_header(other).tensors) == 2


def test_big_endian_archive_of_torch(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("x/data.pkl", b"")
        new.writestr("x/byteorder", b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_header(path)


def test_a_flipped_bit_in_the_description_is_noticed(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save(lightning({"w": torch.ones(2)}, marker="hidden_dim=1024"), path)
    data = path.read_bytes()
    assert data.count(b"hidden_dim=1024") == 1
    path.write_bytes(data.replace(b"hidden_dim=1024", b"hidden_dim=1025"))
    with pytest.raises(CheckpointError, match="checksum"):
        read_header(path)


def test_archive_without_checksums(tmp_path):
    path = tmp_path / "x.pt"
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"w": torch.ones(2)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_tensors(path)["w"].tolist() == [1, 1]


def test_two_records_of_one_name(tmp_path, archive):
    with zipfile.ZipFile(archive, "a") as new, pytest.warns(UserWarning, match="Duplicate"):
        new.writestr("x/data/1", b"\0" * 80)
    with pytest.raises(CheckpointError, match="different records"):
        read_header(archive)


def test_torchscript_is_named(tmp_path):
    path = tmp_path / "x.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)), path)
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_header(path)


def test_sizes_beyond_32_bits(tmp_path, monkeypatch):
    """A 5 GB archive with zip64 sizes, positions and count, as a sparse file."""
    path = tmp_path / "x.ckpt"
    size = 5 << 30
    torch.save({"w": torch.ones(3), "big": torch.empty(0)}, path)
    with zipfile.ZipFile(path) as old:
        pickled = old.read("x/data.pkl")
    # The empty storage "1" is given the size of a real one.
    empty = b"X\x01\x00\x00\x001"
    assert pickled.count(empty) == 1
    count = b"\x8a\x05" + (size // 4).to_bytes(5, "little")
    at = pickled.index(empty)
    tail = pickled[at:].replace(b"K\x00", count, 1)
    pickled = pickled[:at] + tail
    # Bytes after the end align the large record, which is copied otherwise.
    pickled += b"." * (-(30 + len("x/data.pkl") + len(pickled) + 30 + len("x/data/1") + 20) % 64)
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as new:
        new.writestr("x/data.pkl", pickled)
        record = zipfile.ZipInfo("x/data/1")
        record.file_size = size
        with new.open(record, "w", force_zip64=True):
            pass
        # Leave a hole instead of writing zeros.
        record.file_size = record.compress_size = size
        file.seek(size, 1)
        new.start_dir = file.tell()
        new.writestr("x/data/0", struct.pack("<3f", 1, 2, 3))
    reads = count_reads(monkeypatch)
    header = read_header(path)
    assert header.tensors["w"] == TensorInfo((3,), "float32")
    assert sum(reads) < 10_000
    assert load_tensors(path)["w"].tolist() == [1, 2, 3]
    assert load_tensors(path)["big"].untyped_storage().nbytes() == size


def count_reads(monkeypatch) -> list[int]:
    reads: list[int] = []
    original = torchzip.Source.read

    def read(self, position, length):
        reads.append(length)
        return original(self, position, length)

    monkeypatch.setattr(torchzip.Source, "read", read)
    return reads


@pytest.mark.parametrize("width", [10, 100_000])
def test_reads_do_not_grow_with_the_tensors(tmp_path, monkeypatch, width):
    path = tmp_path / "x.ckpt"
    torch.save(lightning({f"model.layer.{i}.weight": torch.empty(width) for i in range(20)}), path)
    reads = count_reads(monkeypatch)
    read_header(path)
    assert sum(reads) < 10_000


# Attachments -----------------------------------------------------------------------------------


def as_tensor(data: bytes) -> torch.Tensor:
    return (
        torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if data
        else torch.empty(0, dtype=torch.uint8)
    )


def test_attachments(tmp_path):
    files = {
        "tokenizer.json": json.dumps({"a": "全"}).encode(),
        "empty.txt": b"",
        "additional_chat_templates/tool.jinja": b"\x00\xff{{ x }}",
    }
    path = tmp_path / "x.ckpt"
    tensors = {name: as_tensor(data) for name, data in files.items()}
    torch.save(lightning({"w": torch.ones(1)}, panovlm_tokenizer=tensors), path)
    header = read_header(path)
    assert header.attachments["tokenizer.json"] == TensorInfo(
        (len(files["tokenizer.json"]),), "uint8"
    )
    assert list(header.tensors) == ["w"]
    assert "panovlm_tokenizer" not in header.extras
    assert read_attachments(path) == files
    assert list(load_tensors(path)) == ["w"]


def test_attachment_that_is_a_slice(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(1), "panovlm_tokenizer": {"f": as_tensor(b"abcdef")[2:4]}}, path)
    assert read_attachments(path) == {"f": b"cd"}


def test_no_attachments(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(1)}, path)
    assert read_attachments(path) == {}


@pytest.mark.parametrize(
    "value",
    [
        {"../evil": as_tensor(b"x")},
        {"/etc/passwd": as_tensor(b"x")},
        {"a\\b": as_tensor(b"x")},
        {"c:x": as_tensor(b"x")},
        {"": as_tensor(b"x")},
        {"f": torch.ones(3)},
        {"f": as_tensor(b"abcdef")[::2]},
        {"f": as_tensor(b"abcd").reshape(2, 2)},
        {"f": "text"},
        "text",
        None,
    ],
)
def test_attachments_that_are_refused(tmp_path, value):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(1), "panovlm_tokenizer": value}, path)
    with pytest.raises(CheckpointError, match=r"attachment|panovlm_tokenizer"):
        read_header(path)


def test_copy_of_a_checkpoint_reads_the_same(tmp_path, archive):
    """The archive's inner name is that of the first file, not of the copy."""
    copy = tmp_path / "renamed.anything"
    shutil.copyfile(archive, copy)
    assert read_header(copy).tensors == read_header(archive).tensors
