"""Shards are read in place, and whatever is wrong with one is one clear error."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from panovlm.data.samples import read_tables
from panovlm.data.shards import Member
from panovlm.errors import DataError
from panovlm.panorama.image import read_panorama

TEXT = b'{"instruction": "q", "response": "a"}'
PICTURE = b"not read here"


def shard(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def good(path: Path) -> Path:
    return shard(
        path, ("a.jpg", PICTURE), ("a.json", TEXT), ("b.json", TEXT), ("b.jpg", PICTURE * 99)
    )


def test_members_with_one_name_are_a_row(tmp_path: Path) -> None:
    file = shard(
        tmp_path / "s.tar",
        ("x/a.1.jpg", PICTURE),
        ("x/a.json", TEXT),
    )
    with pytest.raises(
        DataError, match=r"s\.tar/x/a: expected one .* found x/a\.1\.jpg, x/a\.json"
    ):
        read_tables([file])
    [one, two] = read_tables([good(tmp_path / "t.tar")])
    assert one.source == f"{tmp_path}/t.tar/a"
    assert str(two.image) == f"{tmp_path}/t.tar/b.jpg"


def test_conversations_keep_the_name_of_their_picture_as_a_column(tmp_path: Path) -> None:
    talk = (
        b'{"image": "elsewhere.jpg", "image_layout": "cubemap_row", "conversations": '
        b'[{"from": "human", "value": "<image>\\nq"}, {"from": "gpt", "value": "a"}]}'
    )
    [sample] = read_tables([shard(tmp_path / "s.tar", ("a.png", PICTURE), ("a.json", talk))])
    assert sample.turns == (("q", "a"),)
    assert sample.columns["image"] == "elsewhere.jpg"
    assert str(sample.image) == f"{tmp_path}/s.tar/a.png (layout=cubemap_row)"


def test_a_member_reads_like_a_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    file = shard(tmp_path / "s.tar", ("a", b"before"), ("b", content), ("c", b"after"))
    with tarfile.open(file) as archive:
        info = archive.getmember("b")
    member = Member(file, "b", info.offset_data, info.size)
    with member.open() as stream:
        assert stream.read() == content
        assert stream.seek(-3, io.SEEK_END) == len(content) - 3
        assert stream.read(10) == content[-3:]
        stream.seek(100)
        stream.seek(20, io.SEEK_CUR)
        assert stream.read(5) == content[120:125]
        with pytest.raises(OSError, match="before the beginning"):
            stream.seek(-1)


def test_a_damaged_picture_fails_by_its_place(tmp_path: Path) -> None:
    [one, _] = read_tables([good(tmp_path / "s.tar")])
    with pytest.raises(DataError, match=r"cannot read .*s\.tar/a\.jpg: cannot identify"):
        read_panorama(one.image)
    (tmp_path / "s.tar").unlink()
    with pytest.raises(DataError, match=r"s\.tar/a\.jpg: no such file"):
        read_panorama(one.image)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("../a.jpg", PICTURE), ("../a.json", TEXT)], "'../a.jpg' leads out of the shard"),
        ([("/a.jpg", PICTURE), ("/a.json", TEXT)], "'/a.jpg' leads out of the shard"),
        ([], "has no members"),
        ([("a.jpg", PICTURE)], "s.tar/a: expected one picture .* found a.jpg$"),
        ([("a.jpg", PICTURE), ("a.png", PICTURE), ("a.json", TEXT)], "found a.jpg, a.png, a.json"),
        ([("a.jpg", PICTURE), ("a.json", b"{")], "s.tar/a: no valid JSON"),
        ([("a.jpg", PICTURE), ("a.json", b"\xff")], "s.tar/a.json: no UTF-8"),
        ([("a.jpg", PICTURE), ("a.json", b"[1]")], "s.tar/a: expected an object"),
        (
            [("a.jpg", PICTURE), ("a.json", b'{"response": "a"}')],
            "'instruction' is missing",
        ),
        (
            [
                ("a.jpg", PICTURE),
                ("a.json", TEXT),
                ("b.jpg", PICTURE),
                ("b.json", TEXT),
                ("a.txt", b""),
            ],
            "s.tar/a: its members stand in two places",
        ),
    ],
)
def test_bad_members(tmp_path: Path, members: list[tuple[str, bytes]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_tables([shard(tmp_path / "s.tar", *members)])


def test_a_link_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"'a\.jpg' is no plain file"):
        read_tables([tmp_path / "s.tar"])


def test_a_shard_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = good(tmp_path / "s.tar").read_bytes()
    content = 4 * 1024 + 3 * 512  # four headers, contents of one block and one of three
    for length in range(0, content, 100):
        (tmp_path / "s.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"s\.tar (cannot be read as a tar|is cut off)"):
            read_tables([tmp_path / "s.tar"])


def test_what_stands_behind_the_end_is_not_passed_over(tmp_path: Path) -> None:
    whole = good(tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(whole + whole)
    with pytest.raises(DataError, match="goes on behind the end"):
        read_tables([tmp_path / "s.tar"])


def test_other_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"hello" * 300)
    with pytest.raises(DataError, match="cannot be read as a tar file"):
        read_tables([tmp_path / "s.tar"])
    good(tmp_path / "s.tar").rename(tmp_path / "s.tar.gz")
    with pytest.raises(DataError, match="is compressed"):
        read_tables([tmp_path / "s.tar.gz"])
    with pytest.raises(DataError, match=r"none-001\.tar does not exist"):
        read_tables([tmp_path / "none-{001..002}.tar"])
    with pytest.raises(DataError, match="no file has such a name"):
        read_tables([tmp_path / "none-*.tar"])
