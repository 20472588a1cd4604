"""Choosing the reader by content, what is said about other files, and what is imported."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from panovlm.checkpoint.formats import (
    load_tensors,
    read_attachments,
    read_header,
    safetensors,
    torchzip,
)
from panovlm.errors import CheckpointError, PanoVLMError


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".safetensors", ".json", ""])
@pytest.mark.parametrize("container", ["torch", "safetensors"])
def test_content_decides_and_not_the_suffix(tmp_path, suffix, container):
    path = tmp_path / f"model{suffix}"
    (torch.save if container == "torch" else save_file)({"w": torch.ones(2)}, path)
    assert read_header(path).container == container
    assert read_header(str(path)).tensors == read_header(path).tensors


def torch_tar(path):
    """What torch wrote before version 0.1.10 starts with this member."""
    member = tarfile.TarInfo("sys_info")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)


def tar(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__)


LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 4913000000\n"
)
OTHERS = {
    "empty": (b"", "is empty (0 bytes)"),
    "text": (b"hello\nworld\n", "a text file that starts with 'hello'"),
    "accents": ("é全".encode() * 200, "a text file"),
    "blank": (b"\n\n\n", "blank text file"),
    "html": (b"\n<!DOCTYPE html>\n<html><head>", "web page"),
    "html tag": (b"<html lang='en'>", "web page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "web page"),
    "lfs": (LFS, "4913000000 bytes was not downloaded. Run `git lfs pull`"),
    "yaml": (b"models:\n  vision_name: x\n", "a text file that starts with 'models:'"),
    "json list": (b"[1, 2]", "a text file"),
    "pickle": (pickle.dumps({"a": 1}), "bare pickle"),
    "gzip": (gzip.compress(b"x"), "gzip-compressed"),
    "png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "PNG"),
    "gguf": (b"GGUF\x03\0\0\0", "GGUF"),
    "empty zip": (b"PK\x05\x06" + b"\0" * 18, "empty zip"),
    "random": (random.Random(3).randbytes(1000), "its first bytes are"),
    "zeros": (b"\0" * 1000, "its first bytes are 00 00"),
    "one byte": (b"P", "text file"),
    "torch tar": (torch_tar, "torch's tar format from before version 0.1.10"),
    "tar": (tar, "tar archive"),
    "numpy": (lambda path: np.save(path.open("wb"), np.ones(3)), "NumPy"),
    "npz": (lambda path: np.savez(path.open("wb"), a=np.ones(3)), "'a.npy'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_named(tmp_path, name):
    content, words = OTHERS[name]
    path = tmp_path / "model.ckpt"
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    for read in (read_header, load_tensors, read_attachments):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_paths_that_are_no_files(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"is a folder.*It holds: last\.ckpt"):
        read_header(tmp_path)
    with pytest.raises(CheckpointError, match=r"best\.ckpt does not exist.*last\.ckpt"):
        read_header(tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"does not exist.*folder .*absent"):
        read_header(tmp_path / "absent" / "best.ckpt")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_header(tmp_path / "a\0b")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_header(tmp_path / ("x" * 300))
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_header(tmp_path / "last.ckpt" / "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_header(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_header("/dev/zero")


@pytest.mark.parametrize(
    ("name", "words"),
    [("__0_0.distcp", "unfinished distributed checkpoint"), ("latest", "as DeepSpeed writes it")],
)
def test_folders_that_lack_a_part_are_named(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"global_step1")
    for read in (read_header, load_tensors, read_attachments):
        with pytest.raises(CheckpointError, match=words):
            read(tmp_path)


def test_names_that_are_no_text(tmp_path):
    """Such a one could be neither printed nor written down."""
    torch.save({"a\ud800b": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"is no text \('\\ud800'\)"):
        read_header(tmp_path / "x.pt")
    torch.save({"全景": torch.ones(1)}, tmp_path / "x.pt")
    assert list(read_header(tmp_path / "x.pt").tensors) == ["全景"]


def test_describing_needs_no_torch(tmp_path):
    saved = {"state_dict": {"w": torch.ones(1)}, "panovlm_tokenizer": {}}
    torch.save(saved, tmp_path / "x.ckpt")
    torch.save(saved, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    save_file({"w": torch.ones(1)}, tmp_path / "x.safetensors")
    program = (
        "import sys\n"
        "from panovlm.checkpoint.formats import read_attachments, read_header\n"
        "for path in sys.argv[1:]:\n"
        "    assert list(read_header(path).tensors) == ['w']\n"
        "    assert read_attachments(path) == {}\n"
        "heavy = {'torch', 'numpy', 'transformers', 'safetensors', 'pydantic', 'lightning'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr


def test_a_file_that_shrinks_under_the_reader(tmp_path):
    from panovlm.checkpoint.formats.source import Source

    path = tmp_path / "x"
    path.write_bytes(b"x" * 100)
    with Source(path) as source:
        path.write_bytes(b"x" * 10)
        with pytest.raises(CheckpointError, match="became shorter"):
            source.read(0, 50)


# Damage; test_fuzz.py has that at random ---------------------------------------------------------


def outcome(path) -> str:
    """Read everything; anything but success or a PanoVLMError escapes and fails the test."""
    try:
        header = read_header(path)
        tensors = load_tensors(path)
        read_attachments(path)
    except PanoVLMError as error:
        assert str(path) in str(error)
        return "refused"
    assert {n: tuple(t.shape) for n, t in tensors.items()} == {
        n: info.shape for n, info in header.tensors.items()
    }
    for tensor in tensors.values():
        if tensor.numel() < 10_000:
            tensor.clone()  # touches every byte
    return "read"


def torch_file(path, monkeypatch):
    saved = {
        "epoch": 3,
        "state_dict": {"a": torch.rand(4, 3), "b": torch.rand(5).half()[1:], "c": torch.ones(())},
        "hyper_parameters": {"lr": 0.1, "size": (2, 3), "names": ["x", None, True], "n": 70000},
        "panovlm_tokenizer": {"f": torch.ones(3, dtype=torch.uint8)},
    }
    try:
        # Without checksums, so that the damage gets past the first line of defence.
        torch.serialization.set_crc32_options(False)
        torch.save(saved, path)
    finally:
        torch.serialization.set_crc32_options(True)


def safetensors_file(path, monkeypatch):
    tensors = {"a": torch.rand(4, 3), "b": torch.rand(5).half(), "c": torch.ones(())}
    tensors["panovlm_tokenizer/f"] = torch.ones(3, dtype=torch.uint8)
    save_file(tensors, path, {"k": "v"})


def legacy_file(path, monkeypatch):
    saved = {
        "epoch": 3,
        "state_dict": {"a": torch.rand(4, 3), "b": torch.rand(5).half()[1:], "c": torch.ones(())},
        "hyper_parameters": {"lr": 0.1, "size": (2, 3), "names": ["x", None, True], "n": 70000},
        "panovlm_tokenizer": {"f": torch.ones(3, dtype=torch.uint8)},
    }
    torch.save(saved, path, _use_new_zipfile_serialization=False)


MAKERS = [torch_file, safetensors_file, legacy_file]


@pytest.mark.parametrize("make", MAKERS)
def test_every_truncation(tmp_path, monkeypatch, make):
    path = tmp_path / "model.ckpt"
    make(path, monkeypatch)
    data = path.read_bytes()
    for length in range(0, len(data), 11):
        path.write_bytes(data[:length])
        assert outcome(path) == "refused"


def unread(source):
    raise AssertionError(f"{source.path} was described a second time")


@pytest.mark.parametrize(
    ("name", "save", "reader"),
    [("w.ckpt", torch.save, torchzip), ("w.safetensors", save_file, safetensors)],
    ids=["torch", "safetensors"],
)
def test_what_was_read_is_not_read_again_until_the_file_changes(
    name, save, reader, tmp_path, monkeypatch
):
    path, later = tmp_path / name, tmp_path / "later"
    save({"a": torch.arange(3.0), "w": torch.ones(2)}, path)
    header = read_header(path)
    with monkeypatch.context() as once:
        once.setattr(reader, "read", unread)
        assert load_tensors(path, header=header)["w"].tolist() == [1, 1]
        assert read_attachments(path, header=header) == {}
        with pytest.raises(AssertionError, match="a second time"):
            load_tensors(path)
    os.utime(path, ns=(0, 0))  # touched, but the same
    assert load_tensors(path, header=header)["w"].tolist() == [1, 1]
    save({"w": torch.full((2,), 7.0), "a": torch.arange(4.0)}, later)
    later.replace(path)
    for read in (load_tensors, read_attachments):
        with pytest.raises(CheckpointError, match="replaced by another checkpoint"):
            read(path, header=header)
    again = load_tensors(path, header=read_header(path))
    assert again["w"].tolist() == [7, 7] and again["a"].tolist() == [0, 1, 2, 3]


def test_only_the_copy_that_was_meant_is_known(tmp_path):
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(2)}, "ema": {"w": torch.ones(2)}}, path)
    for weights, value in (("model", 0), ("ema", 1)):
        header = read_header(path, weights)
        assert load_tensors(path, weights, header)["w"].tolist() == [value] * 2
