"""Entries come back as they were written, or not at all; names follow from content."""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from panovlm.config.image_input import ImageInput
from panovlm.data.shards import Member
from panovlm.data.store import DamagedEntryError, Store, key_of, picture_identity, size_text
from panovlm.errors import ConfigError, DataError
from panovlm.panorama.picture import Picture

KEY = key_of({"number": 1})
TENSORS = {
    "a": torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4),
    "b": torch.linspace(-1, 1, 7, dtype=torch.bfloat16),
    "c": torch.full((2, 2), torch.nan).T,
}


def same(found: dict[str, torch.Tensor] | None) -> bool:
    return (
        found is not None
        and found.keys() == TENSORS.keys()
        and all(
            found[n].dtype == t.dtype and torch.equal(found[n].nan_to_num(), t.nan_to_num())
            for n, t in TENSORS.items()
        )
    )


def test_entries_come_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "folder", "views")
    assert KEY not in store
    assert store.read(KEY) is None
    store.write(KEY, TENSORS)
    assert KEY in store
    assert same(store.read(KEY))
    assert store.read(key_of({"number": 2})) is None
    assert Store(tmp_path / "new" / "folder", "features").read(KEY) is None


@pytest.mark.parametrize("place", [0, 31, 32, 40, 100, -1])
def test_one_wrong_bit_is_found(tmp_path: Path, place: int) -> None:
    store = Store(tmp_path, "views")
    store.write(KEY, TENSORS)
    content = bytearray(store.path(KEY).read_bytes())
    content[place] ^= 4
    store.path(KEY).write_bytes(content)
    with pytest.raises(DamagedEntryError, match=f"{KEY} was damaged and has been removed"):
        store.read(KEY)
    assert store.read(KEY) is None
    store.write(KEY, TENSORS)
    assert same(store.read(KEY))


@pytest.mark.parametrize("kept", [0, 10, 32, 60])
def test_a_cut_file_is_found(tmp_path: Path, kept: int) -> None:
    store = Store(tmp_path, "views")
    store.write(KEY, TENSORS)
    store.path(KEY).write_bytes(store.path(KEY).read_bytes()[:kept])
    with pytest.raises(DamagedEntryError):
        store.read(KEY)


def _write_often(folder: Path) -> None:
    for _ in range(25):
        Store(folder, "views").write(KEY, TENSORS)


def test_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Readers meet a whole entry or none, whatever is being written."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(tmp_path,)) for _ in range(3)]
    for writer in writers:
        writer.start()
    store, found = Store(tmp_path, "views"), 0
    while any(writer.is_alive() for writer in writers):
        entry = store.read(KEY)
        assert entry is None or same(entry)
        found += entry is not None
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert found
    assert [path.name for path in store.path(KEY).parent.iterdir()] == [KEY]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"views cannot be kept: .*\. Choose .*paths\.cache"):
        Store(tmp_path / "file", "views").write(KEY, TENSORS)
    with pytest.raises(ConfigError, match=r"views cannot be kept: .*Not a directory"):
        Store(tmp_path / "file", "views").read(KEY)


def test_room(tmp_path: Path) -> None:
    store = Store(tmp_path / "not yet", "features")
    store.require_room(1000, 1000, 1 << 20, limit=1000 / 1024)
    with pytest.raises(ConfigError, match=r"of 1025 panoramas take 1\.00 GiB .*cache_limit is 1 G"):
        store.require_room(1025, 0, 1 << 20, limit=1)
    more = 1 << 60
    with pytest.raises(ConfigError, match=r"still to be written, but the disk of .* has only"):
        store.require_room(1, 1, more, limit=1e12)
    store.require_room(1, 0, more, limit=1e12)
    assert not store.folder.exists()


def test_sizes_in_words() -> None:
    assert [size_text(size) for size in (0, 5, 2250, 3 << 20, 1 << 30)] == [
        "0 bytes",
        "5 bytes",
        "2.20 KiB",
        "3.00 MiB",
        "1.00 GiB",
    ]


class TestPictureIdentity:
    @pytest.fixture
    def picture(self, tmp_path: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 256, (60, 120, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.bmp")
        return tmp_path / "a.bmp"

    def test_it_is_the_content(self, picture: Path, tmp_path: Path) -> None:
        """Wherever it stands: in a copy, in a shard, with another date."""
        identity = picture_identity(picture)
        copy = tmp_path / "copy.bmp"
        copy.write_bytes(picture.read_bytes())
        os.utime(copy, (1, 1))
        with tarfile.open(tmp_path / "shard.tar", "w") as archive:
            archive.add(picture, "0.bmp")
            (info,) = archive.getmembers()
        with tarfile.open(tmp_path / "shard.tar") as archive:
            (info,) = archive.getmembers()
        member = Member(tmp_path / "shard.tar", "0.bmp", info.offset_data, info.size)
        assert picture_identity(copy) == picture_identity(Picture(member)) == identity

    def test_a_change_that_leaves_size_and_date(self, picture: Path) -> None:
        identity, before = picture_identity(picture), picture.stat()
        content = bytearray(picture.read_bytes())
        content[-7] ^= 1
        picture.write_bytes(content)
        os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = picture.stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        assert picture_identity(picture) != identity

    def test_what_is_declared_counts(self, picture: Path) -> None:
        part = Picture(picture, ImageInput(hfov=180, vfov=90))
        turned = Picture(picture, ImageInput(hfov=180, vfov=90, yaw=10))
        keys = {key_of(picture_identity(image)) for image in (picture, part, turned)}
        assert len(keys) == 3
        assert picture_identity(Picture(picture)) == picture_identity(picture)

    def test_pictures_in_memory(self, picture: Path) -> None:
        class InMemory:
            def open(self) -> io.BytesIO:
                return io.BytesIO(picture.read_bytes())

        assert picture_identity(Picture(InMemory())) == picture_identity(picture)

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"gone\.png: no such file"):
            picture_identity(tmp_path / "gone.png")
