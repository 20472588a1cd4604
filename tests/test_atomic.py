"""Atomic writes: after any failure the old file is whole and nothing else is left."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm import atomic
from panovlm.atomic import (
    atomic_write,
    link_or_copy,
    remove_leftovers,
    write_bytes,
    write_json,
)
from panovlm.errors import CheckpointError


def entries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_replaces_the_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        (temporary,) = [name for name in entries(tmp_path) if name != "a.bin"]
        assert temporary.startswith(".a.bin.")
        assert temporary.endswith(".tmp")
    assert path.read_bytes() == b"new"
    assert entries(tmp_path) == ["a.bin"]


def test_the_file_can_be_sought_in(tmp_path):
    with atomic_write(str(tmp_path / "a")) as file:
        file.write(b"....")
        file.seek(1)
        file.write(b"x")
        assert file.tell() == 2
    assert (tmp_path / "a").read_bytes() == b".x.."


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_in_the_block_passes_and_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_write(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert entries(tmp_path) == ["a"]


def test_other_runtime_errors_pass(tmp_path):
    with pytest.raises(RuntimeError, match=r"^mine$"), atomic_write(tmp_path / "a"):
        raise RuntimeError("mine")
    with pytest.raises(RuntimeError, match=r"^mine$"), atomic_write(tmp_path / "a"):
        try:
            (tmp_path / "absent").read_bytes()
        except OSError as error:
            raise RuntimeError("mine") from error


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["x" * 255, "全" * 85, ".hidden", "a b\n"])
def test_any_legal_name(tmp_path, name):
    write_bytes(tmp_path / name, b"1")
    assert entries(tmp_path) == [name]


def test_missing_folder_and_folder_in_place(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot write .*folder .*absent does not exist"):
        write_bytes(tmp_path / "absent" / "a", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        write_bytes(tmp_path / "folder", b"x")
    assert entries(tmp_path) == ["folder"]


def test_order_of_the_steps(tmp_path, monkeypatch):
    """Data to the disk, then the name, then the folder: any other order can lose the file."""
    steps = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (
            steps.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file") or fsync(fd)
        ),
    )
    monkeypatch.setattr(Path, "replace", lambda a, b: steps.append("rename") or replace(a, b))
    write_bytes(tmp_path / "a", b"x")
    assert steps == ["file", "rename", "folder"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failing_disk(tmp_path, monkeypatch, step):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert entries(tmp_path) == ["a"]


FULL_DISK = """
    import resource, signal, sys
    from panovlm.atomic import atomic_write, write_bytes
    from panovlm.errors import CheckpointError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        if sys.argv[2] == "bytes":
            write_bytes(sys.argv[1], b"x" * 1_000_000)
        else:
            import torch
            with atomic_write(sys.argv[1]) as file:
                torch.save({"w": torch.zeros(int(sys.argv[2]))}, file)
    except CheckpointError as error:
        print(error)
"""


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("what", ["bytes", "1_000_000"])
def test_full_disk(tmp_path, what):
    """torch.save reports a full disk as a RuntimeError about positions in the archive."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    done = run(FULL_DISK, path, what)
    assert done.stdout == f"cannot write {path}: File too large; no half-written file is left.\n"
    assert path.read_bytes() == b"old"
    assert entries(tmp_path) == ["a"]


KILLED = """
    import os, signal, sys
    from panovlm.atomic import atomic_write
    with atomic_write(sys.argv[1]) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_writing(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"old")
    assert run(KILLED, path).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    # What is left can be told from a checkpoint by its name.
    (left,) = [name for name in entries(tmp_path) if name != "a.ckpt"]
    assert left.startswith(".") and left.endswith(".tmp")


# JSON ------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Config:
    size: int = 1


LOOP: list = []
LOOP.append(LOOP)

NOT_JSON = {
    "model_config.resampler_config is an object of": {
        "model_config": {"vision_name": "x", "resampler_config": Config()}
    },
    "a[1].b is an object of builtins.set": {"a": [0, {"b": {1}}]},
    "the value is an object of builtins.bytes": b"x",
    "a is nan": {"a": float("nan")},
    "a[0] is -inf": {"a": (float("-inf"),)},
    "a has the key 3": {"a": {3: 1}},
    "the value has the key None": {None: 1},
    "contains itself": LOOP,
    "no Unicode": {"a": "\ud800"},
}


@pytest.mark.parametrize("words", NOT_JSON)
def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, words):
    path = tmp_path / "checkpoint_metadata.json"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError) as caught:
        write_json(path, NOT_JSON[words])
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert entries(tmp_path) == [path.name]
    with pytest.raises(CheckpointError):
        write_json(tmp_path / "new.json", NOT_JSON[words])
    assert entries(tmp_path) == [path.name]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(value=JSON)
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert json.loads(path.read_text("utf-8")) == value


def test_json_is_readable(tmp_path):
    write_json(tmp_path / "a.json", {"b": (1, 2), "a": "全景"})
    assert (tmp_path / "a.json").read_text("utf-8") == (
        '{\n  "b": [\n    1,\n    2\n  ],\n  "a": "全景"\n}\n'
    )


# Links -----------------------------------------------------------------------------------------


def test_link(tmp_path):
    source, path = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    source.write_bytes(b"weights")
    path.write_bytes(b"old")
    link_or_copy(source, path)
    assert path.read_bytes() == b"weights"
    assert path.samefile(source)
    # A second time the two names are already one file; no temporary name may stay.
    link_or_copy(source, path)
    link_or_copy(source, source)
    assert entries(tmp_path) == ["best.ckpt", "last.ckpt"]
    # Replacing one name leaves the other file as it was.
    write_bytes(path, b"newer")
    assert source.read_bytes() == b"weights"


def test_a_link_to_a_symbolic_link_is_to_the_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "real").write_bytes(b"weights")
    (tmp_path / "best.ckpt").symlink_to("real")
    link_or_copy(tmp_path / "best.ckpt", tmp_path / "folder" / "last.ckpt")
    path = tmp_path / "folder" / "last.ckpt"
    assert not path.is_symlink()
    assert path.read_bytes() == b"weights"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_copy_where_links_are_impossible(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    source, path = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"x" * 3_000_000)
    path.write_bytes(b"old")
    link_or_copy(source, path)
    assert path.read_bytes() == source.read_bytes()
    assert not path.samefile(source)
    assert entries(tmp_path) == ["a", "b"]


def test_link_errors(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"cannot read .*absent"):
        link_or_copy(tmp_path / "absent", tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"cannot write .*folder .* does not exist"):
        link_or_copy(tmp_path / "a", tmp_path / "absent" / "b")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        link_or_copy(tmp_path / "a", tmp_path / "folder")
    assert entries(tmp_path) == ["a", "folder"]


def test_a_folder_that_cannot_be_synced(tmp_path, monkeypatch):
    """Some network file systems refuse to sync a folder; the write itself has succeeded."""
    fsync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", refuse_folders)
    write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    kept = ["last.ckpt", ".hidden", ".notes.tmp", "tokenizer/a.json", ".x.0123456789ab.ckpt"]
    left = [".last.ckpt.0123456789ab.tmp", "tokenizer/.a.json.ffffffffffff.tmp"]
    for name in (*kept, *left):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == set(kept)


def test_a_killed_writer_leaves_what_is_known_as_a_leftover(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "last.ckpt") as file:
        temporary = Path(file.name)
        saved = temporary.with_name("copy")
        temporary.rename(saved)  # so that the writer cannot tidy up
        raise KeyboardInterrupt
    saved.rename(temporary)
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


class TestFolders:
    def filled(self, path):
        with atomic.atomic_folder(path) as folder:
            (folder / "a").write_text("new")
            (folder / "below").mkdir()
            (folder / "below" / "b").write_text("new")
            assert folder.parent == path.parent and folder.name.startswith(".out.")

    def test_a_new_one(self, tmp_path):
        self.filled(tmp_path / "out")
        assert entries(tmp_path) == ["out"] and entries(tmp_path / "out") == ["a", "below"]

    @pytest.mark.parametrize("exchange", [True, False], ids=["in one step", "in two"])
    def test_what_was_there_is_replaced_as_a_whole(self, exchange, tmp_path, monkeypatch):
        if not exchange:
            monkeypatch.setattr(atomic, "_exchange", missing)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").write_text("old")
        self.filled(tmp_path / "out")
        assert entries(tmp_path) == ["out"] and entries(tmp_path / "out") == ["a", "below"]

    def test_an_empty_one_is_replaced(self, tmp_path):
        (tmp_path / "out").mkdir()
        self.filled(tmp_path / "out")
        assert entries(tmp_path / "out") == ["a", "below"]

    @pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
    def test_an_error_leaves_what_was_there(self, error, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").write_text("old")
        with pytest.raises(type(error)), atomic.atomic_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("half")
            raise error
        assert entries(tmp_path) == ["out"] and entries(tmp_path / "out") == ["old"]

    def test_it_cannot_be_written(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"the folder .*none does not exist"):
            self.filled(tmp_path / "none" / "out")


def missing(*_):
    raise OSError(errno.ENOSYS, "not on this system")
