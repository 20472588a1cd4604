"""Files of torch before 1.6: torch still writes and reads them, and is the reference here."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from collections import OrderedDict

import pytest
import torch

from panovlm.checkpoint.formats import TensorInfo, load_tensors, read_attachments, read_header
from panovlm.checkpoint.formats.header import ITEMSIZE
from panovlm.errors import CheckpointError


def save(saved, path, **options):
    torch.save(saved, path, _use_new_zipfile_serialization=False, **options)
    return path


def of_dtype(name):
    count = ITEMSIZE[name] * 15
    raw = torch.arange(count, dtype=torch.int64).remainder(2).to(torch.uint8)
    return raw.view(getattr(torch, name)).reshape(3, 5)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_lightning_checkpoint(tmp_path, protocol):
    table = torch.rand(5, 3)
    saved = {
        "epoch": 1,
        "state_dict": OrderedDict(
            a=table, tied=table, part=table[1:, ::2], scalar=torch.tensor(2.5), none=torch.empty(0)
        ),
        "hyper_parameters": {"lr": 1e-3, "sizes": [1, (2, 3)], "text": "全景"},
        "optimizer_states": [{"state": {0: torch.ones(9)}}],
        "panovlm_tokenizer": {"a/b.json": torch.tensor([1, 2, 3], dtype=torch.uint8)},
    }
    old = save(saved, tmp_path / "old.ckpt", pickle_protocol=protocol)
    torch.save(saved, tmp_path / "new.ckpt")
    header, new = read_header(old), read_header(tmp_path / "new.ckpt")
    assert (header.tensors, header.extras) == (new.tensors, new.extras)
    assert (header.attachments, header.skipped) == (new.attachments, new.skipped)
    assert header.container == "torch"
    assert read_attachments(old) == {"a/b.json": b"\x01\x02\x03"}
    ours, reference = load_tensors(old), saved["state_dict"]
    assert list(ours) == list(reference)
    for name, tensor in reference.items():
        assert torch.equal(ours[name], tensor)
        assert ours[name].stride() == tensor.stride()
    ours["a"][0, 0] = 42
    assert ours["tied"][0, 0] == 42


@pytest.mark.parametrize(
    "dtype",
    [
        "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32",
        "float64", "complex64", "complex128",
    ],
)  # fmt: skip
def test_dtypes(tmp_path, dtype):
    path = save({"w": of_dtype(dtype)}, tmp_path / "x.pt")
    assert read_header(path).tensors == {"w": TensorInfo((3, 5), dtype)}
    ours, reference = load_tensors(path)["w"], torch.load(path, weights_only=True)["w"]
    assert ours.dtype == reference.dtype
    assert torch.equal(ours, reference)


def test_a_description_longer_than_the_first_look(tmp_path):
    many = {f"layers.{i}.{'x' * 100}.weight": torch.full((1,), float(i)) for i in range(3000)}
    path = save(many, tmp_path / "x.pt")
    tensors = load_tensors(path)
    assert [tensor.item() for tensor in tensors.values()] == list(range(3000))


def test_only_the_description_is_read(tmp_path, monkeypatch):
    from panovlm.checkpoint.formats.source import Source

    path = save({"w": torch.ones(2_000_000)}, tmp_path / "x.pt")
    read, total = Source.read, []

    def counted(self, position, length):
        total.append(length)
        return read(self, position, length)

    monkeypatch.setattr(Source, "read", counted)
    assert read_header(path).tensors == {"w": TensorInfo((2_000_000,), "float32")}
    assert sum(total) < 300_000


def test_code_in_it_never_runs(tmp_path):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {canary}",))

    path = save({"state_dict": {"w": torch.ones(2)}, "x": Evil()}, tmp_path / "x.pt")
    assert load_tensors(path)["w"].tolist() == [1, 1]
    assert read_header(path).extras["x"].endswith(".system>")
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()


def test_a_whole_module_is_named(tmp_path):
    path = save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"linear\.Linear.*state_dict\(\)"):
        read_header(path)


@pytest.mark.filterwarnings("ignore")
def test_quantised_storages_are_refused(tmp_path):
    odd = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    path = save({"w": torch.ones(1), "odd": odd}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="quantised"):
        read_header(path)


def rewritten(path, change):
    """Replace one of the five pickles."""
    stream, parts = io.BytesIO(path.read_bytes()), []
    for _ in range(5):
        start = stream.tell()
        *_, (_, _, last) = pickletools.genops(stream)
        parts.append(stream.getvalue()[start : last + 1])
    rest = stream.read()
    change(parts)
    path.write_bytes(b"".join(parts) + rest)
    return path


@pytest.mark.parametrize(
    ("index", "value", "words"),
    [
        (1, 1002, "version is 1002"),
        (2, {"little_endian": False}, "big-endian"),
        (2, 3, "big-endian"),
        (4, {"a": 1}, "not named by texts"),
        (4, ["1"], "nothing describes its storage"),
        (4, [], "bytes follow its last storage"),
    ],
)
def test_other_parts_are_checked(tmp_path, index, value, words):
    path = save({"w": torch.ones(2)}, tmp_path / "x.pt")
    rewritten(path, lambda parts: parts.__setitem__(index, pickle.dumps(value, 2)))
    with pytest.raises(CheckpointError, match=words):
        read_header(path)


def test_lengths_are_checked(tmp_path):
    path = save({"w": torch.ones(8)}, tmp_path / "x.pt")
    data = path.read_bytes()
    path.write_bytes(data[:-40] + (9).to_bytes(8, "little") + data[-32:])
    with pytest.raises(CheckpointError, match="has 9 elements"):
        read_header(path)
    path.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="is truncated"):
        load_tensors(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError, match="1 bytes follow"):
        load_tensors(path)
