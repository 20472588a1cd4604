"""What is wrong with a data set is one clear error; streamed pictures are read in groups."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from tests.data.forms import write_form, write_table

from panovlm.cli.main import main
from panovlm.data import hub_rows
from panovlm.data.samples import read_tables
from panovlm.errors import ConfigError, DataError
from panovlm.panorama.image import read_panorama


def parquet(tmp_path: Path, columns: dict[str, list[object]]) -> Path:
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


@pytest.mark.parametrize("blocks", [None, 1])
@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"picture": ["a"], "instruction": ["q"], "response": ["a"]}, "one column of pictures"),
        ({"image": ["a"], "url": ["a"], "response": ["a"]}, "one column of pictures"),
        ({"image": ["a"], "question": ["q"]}, "needs the columns"),
        (
            {"image": ["a"], "instruction": ["q"], "response": [None]},
            r"\[0\]: 'response' is missing",
        ),
        ({"image": ["a"], "instruction": ["q"], "response": ["a"]}, r"do not exist:\n .*\[0\]"),
        (
            {"image": [["a"]], "instruction": ["q"], "response": ["a"]},
            "holds list<.*>, expected one",
        ),
        ({"image": [], "instruction": [], "response": []}, "has no rows|no data"),
    ],
)
def test_columns(tmp_path: Path, columns: dict[str, list[object]], said: str, blocks: int) -> None:
    with pytest.raises(DataError, match=said):
        read_tables([parquet(tmp_path, columns)], stream_blocks=blocks)


@pytest.mark.parametrize("blocks", [None, 1])
def test_conversations_and_numbers(tmp_path: Path, blocks: int | None) -> None:
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    (tmp_path / "a.png").touch()
    file = parquet(tmp_path, {"image": ["a.png"], "conversations": [talk], "level": [3]})
    [sample] = read_tables([file], stream_blocks=blocks)
    assert sample.turns == (("q", "a"),)
    assert sample.columns == {"level": "3"}
    assert sample.image == tmp_path / "a.png"


def test_damaged_files(tmp_path: Path) -> None:
    samples = read_tables([write_table(tmp_path, 4)])
    file = Path(write_form("parquet", samples, tmp_path / "form"))
    file.write_bytes(file.read_bytes()[:-50])
    for blocks in (None, 1):
        with pytest.raises(DataError, match=r"train\.parquet cannot be read as a data set"):
            read_tables([file], stream_blocks=blocks)
    (tmp_path / "x.arrow").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"x\.arrow cannot be read as a data set"):
        read_tables([tmp_path / "x.arrow"])


def test_splits_are_named(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"image": ["a"], "instruction": ["q"], "response": ["a"]})
    datasets.DatasetDict(train=data, test=data).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(DataError, match="several splits; name one of them: test, train"):
        read_tables([tmp_path / "both"])


def test_a_picture_that_is_no_picture(tmp_path: Path) -> None:
    features = datasets.Features(
        image=datasets.Image(),
        instruction=datasets.Value("string"),
        response=datasets.Value("string"),
    )
    cells = [{"bytes": b"junk", "path": None}, None]
    rows = {"image": cells, "instruction": ["q"] * 2, "response": ["a"] * 2}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet\[1\]: .*empty"):
        read_tables([tmp_path / "t.parquet"])
    junk, none = read_tables([tmp_path / "t.parquet"], stream_blocks=1)
    with pytest.raises(DataError, match=r"t\.parquet\{0\}\[0\]: cannot identify"):
        read_panorama(junk.image)
    with pytest.raises(DataError, match="holds no picture"):
        read_panorama(none.image)


def test_so_many_row_groups_are_kept(tmp_path: Path) -> None:
    samples = read_tables([write_table(tmp_path, 9)])
    table = write_form("parquet", samples, tmp_path / "form")  # three groups of three
    for sample in read_tables([table], stream_blocks=2):
        read_panorama(sample.image)
    assert [key[1] for key in hub_rows._groups if str(key[0]) == table] == [1, 2]


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = parquet(tmp_path, {"image": ["a"], "instruction": ["q"], "response": ["a"]})
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'panovlm\[datasets\]'"):
        read_tables([file])


def test_an_evaluation_does_not_take_it_for_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = parquet(tmp_path, {"image": ["a"], "instruction": ["q"], "response": ["a"]})
    assert main(["eval", "--csv-input", str(file)]) == 2
    assert "eval needs --checkpoint-dir" in capsys.readouterr().err
