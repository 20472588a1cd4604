"""Tables are read as they are written, and every fault is named with its place."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.data.samples import Sample, group_rows, read_tables
from panovlm.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_query_form_uses_the_template(folder: Path) -> None:
    table = write(folder / "t.csv", "url,query,annotation\na.jpg,the door,A red door.\n")
    [sample] = read_tables([table])
    question = (
        'In this panoramic image, please provide a concise but detailed description of "the door".'
    )
    assert sample.turns == ((question, "A red door."),)
    assert sample.image == folder / "a.jpg"
    assert sample.source == f"{table}:2"
    assert sample.columns == {"query": "the door"}


def test_instruction_form_is_used_when_both_are_there(folder: Path) -> None:
    table = write(
        folder / "t.csv",
        "url,query,annotation,instruction,response,kind\na.jpg,door,A door.,What?,A wall.,x\n",
    )
    [sample] = read_tables([table])
    assert sample.turns == (("What?", "A wall."),)
    assert sample.columns == {"query": "door", "annotation": "A door.", "kind": "x"}


def test_query_is_optional_in_the_instruction_form(folder: Path) -> None:
    table = write(folder / "t.csv", "url,instruction,response\na.jpg,What?,A wall.\n")
    assert read_tables([table])[0].turns == (("What?", "A wall."),)


def test_half_an_instruction_form_beside_a_query_form(folder: Path) -> None:
    table = write(folder / "t.csv", "url,query,annotation,instruction\na.jpg,door,A door.,What?\n")
    assert read_tables([table])[0].turns[0][1] == "A door."


@pytest.mark.parametrize("word", ["", "nan", "NA", "null", "None", " "])
def test_words_that_look_like_missing_values_are_text(folder: Path, word: str) -> None:
    table = write(folder / "t.csv", f"url,instruction,response\na.jpg,{word},{word}\n")
    assert read_tables([table])[0].turns == ((word, word),)


cell = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=5), bom=st.booleans())
def test_any_text_survives(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], bom: bool
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    (folder / "a.jpg").touch()
    with (folder / "t.csv").open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "instruction", "response"])
        writer.writerows(("a.jpg", *row) for row in rows)
    assert [sample.turns[0] for sample in read_tables([folder / "t.csv"])] == rows


def test_source_is_the_line_on_which_a_row_begins(folder: Path) -> None:
    table = write(
        folder / "t.csv", 'url,instruction,response\na.jpg,"one\ntwo",x\n\nb.jpg,three,y\n'
    )
    assert [sample.source for sample in read_tables([table])] == [f"{table}:2", f"{table}:5"]


def test_tables_are_concatenated(folder: Path) -> None:
    first = write(folder / "1.csv", "url,instruction,response\na.jpg,1,x\nb.jpg,2,x\n")
    second = write(folder / "2.csv", "url,query,annotation\na.jpg,3,x\n")
    assert [sample.source for sample in read_tables([first, str(second)])] == [
        f"{first}:2",
        f"{first}:3",
        f"{second}:2",
    ]
    assert read_tables([]) == []


class TestPaths:
    def test_relative_to_the_table_then_to_the_working_directory(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "deep").mkdir()
        table = write(folder / "deep" / "t.csv", "url,instruction,response\na.jpg,q,x\n")
        monkeypatch.chdir(folder)
        assert read_tables([table])[0].image == Path("a.jpg")
        (folder / "deep" / "a.jpg").touch()
        assert read_tables([table])[0].image == folder / "deep" / "a.jpg"

    def test_the_two_folders_are_never_mixed(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "a.jpg").touch()
        table = write(folder / "deep" / "t.csv", "url,instruction,response\na.jpg,q,x\nb.jpg,q,x\n")
        monkeypatch.chdir(folder)  # holds a b.jpg of its own
        with pytest.raises(DataError, match=r"1 of 2 rows.*\n.*deep/b\.jpg"):
            read_tables([table])

    def test_data_dir_is_the_only_base_when_given(self, folder: Path) -> None:
        (folder / "other").mkdir()
        table = write(folder / "t.csv", "url,instruction,response\na.jpg,q,x\n")
        with pytest.raises(DataError, match="data_dir"):
            read_tables([table], data_dir=str(folder / "other"))
        (folder / "other" / "a.jpg").touch()
        [sample] = read_tables([table], data_dir=str(folder / "other"))
        assert sample.image == folder / "other" / "a.jpg"

    def test_absolute_paths_stay(self, folder: Path, tmp_path: Path) -> None:
        table = write(folder / "t.csv", f"url,instruction,response\n{folder / 'a.jpg'},q,x\n")
        assert read_tables([table], data_dir="/nowhere")[0].image == folder / "a.jpg"


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no rows"),
            ("url,instruction,response\n", "no rows"),
            ("path,instruction,response\na.jpg,q,x\n", r"column 'url' is missing.*'path'"),
            ("url,instruction\na.jpg,q\n", "column 'response' is missing"),
            ("url,annotation\na.jpg,q\n", "column 'query' is missing"),
            ("url,text\na.jpg,q\n", r"'query' and 'annotation'; the columns are \['url', 'text'\]"),
            ("url,url,query,annotation\na.jpg,b,c,d\n", r"columns \['url'\] occur more than once"),
            ("url,instruction,response\na.jpg,q,x\na.jpg,q\n", r":3: cell 'response' is missing"),
            ("url,instruction,response\na.jpg,q,x, y\n", r":2: the row has 4 cells.*double quotes"),
            ("url,instruction,response\n,q,x\n", r":2: cell 'url' is empty"),
            ("url,instruction,response\nhttps://x.org/a.jpg,q,x\n", r":2: url .* is an address"),
            ('url,instruction,response\na.jpg,"q,x\n', r":2: the row is no valid CSV"),
        ],
    )
    def test_faults_name_file_and_place(self, folder: Path, text: str, message: str) -> None:
        table = write(folder / "t.csv", text)
        with pytest.raises(DataError, match=message) as error:
            read_tables([table])
        assert str(table) in str(error.value)

    def test_missing_table(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nothing\.csv does not exist"):
            read_tables([tmp_path / "nothing.csv"])
        with pytest.raises(DataError, match="is a folder"):
            read_tables([tmp_path])

    def test_other_encodings(self, folder: Path) -> None:
        table = write(folder / "t.csv", "url,instruction,response\na.jpg,Größe,x\n", "latin-1")
        with pytest.raises(DataError, match=r"t\.csv is not UTF-8"):
            read_tables([table])

    def test_missing_images_are_counted_and_the_first_ones_listed(self, folder: Path) -> None:
        rows = "".join(f"no-{i}.jpg,q,x\n" for i in range(8))
        table = write(folder / "t.csv", f"url,instruction,response\na.jpg,q,x\n{rows}")
        with pytest.raises(DataError, match="8 of 9 rows") as error:
            read_tables([table])
        assert f"{table}:3: {folder / 'no-0.jpg'}" in str(error.value)
        assert "no-4.jpg" in str(error.value)
        assert "no-5.jpg" not in str(error.value)
        assert "and 3 more" in str(error.value)
        assert len(read_tables([table], check_images=False)) == 9


rows_per_image = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def rows(counts: list[int]) -> list[Sample]:
    """Rows of several images, interleaved."""
    return [
        Sample(Path(f"{image}.jpg"), ((f"q{row}", f"a{row}"),), f"t.csv:{image}-{row}")
        for row in range(max(counts))
        for image, count in enumerate(counts)
        if row < count
    ]


class TestGroupRows:
    @given(rows_per_image, st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
    def test_every_row_once_with_its_image(
        self, counts: list[int], count: int, seed: int, epoch: int
    ) -> None:
        samples = rows(counts)
        groups = group_rows(samples, count, seed, epoch)
        assert groups == group_rows(samples, count, seed, epoch)
        assert all(1 <= len(group) <= count for group in groups)
        assert all(len({sample.image for sample in group}) == 1 for group in groups)
        assert Counter(samples) == Counter(sample for group in groups for sample in group)
        assert len(groups) == sum(-(-n // count) for n in counts)

    @given(rows_per_image, st.integers(1, 5))
    def test_images_keep_their_place_in_every_epoch(self, counts: list[int], count: int) -> None:
        samples = rows(counts)
        first = [group[0].image for group in group_rows(samples, count, 0, 0)]
        assert first == [group[0].image for group in group_rows(samples, count, 0, 7)]

    def test_epochs_and_seeds_order_differently(self) -> None:
        samples = rows([8])
        orders = {
            group_rows(samples, 8, seed, epoch)[0]
            for seed, epoch in [(0, 0), (0, 1), (0, 2), (1, 0)]
        }
        assert len(orders) == 4

    def test_groups_of_one_leave_the_order_alone(self) -> None:
        samples = rows([2, 3])
        assert group_rows(samples, 1, 0) == [(sample,) for sample in samples]

    def test_count_must_be_positive(self) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            group_rows([], 0, 0)
