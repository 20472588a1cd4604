"""``panovlm data check`` finds every planted fault, counts it, and fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from panovlm.cli.main import main

HEADER = "url,instruction,response\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:, :110]).save(tmp_path / "narrow.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    (tmp_path / "good.csv").write_text(HEADER + "a.png,q,x\na.png,p,y\n")
    (tmp_path / "bad.csv").write_text(
        HEADER + "a.png,q,x\nnone.png,q,x\ncut.png,q,x\ncut.png,p,x\nnarrow.png,q,x\na.png,q\n"
        ",q,x\na.png,,x\na.png,q,x\na.png,q,y,z\n"
    )
    (tmp_path / "bad.jsonl").write_text(
        '{"image": "a.png", "conversations": [{"from": "human", "value": "q"}]}\n{"image": 1\n'
    )
    return tmp_path


def check(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["data", "check", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_good_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = check(capsys, folder / "good.csv")
    assert code == 0
    assert said == "1 table(s), 2 rows, 1 images\nnothing wrong\n"


def test_every_fault_is_counted_at_its_place(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = [folder / name for name in ("bad.csv", "bad.jsonl", "none.csv")]
    code, said, _ = check(capsys, "--json", *tables)
    assert code == 1
    found = json.loads(said)
    assert (found["tables"], found["rows"], found["images"]) == (3, 12, 3)
    places = {
        (finding["kind"], finding["source"].removeprefix(f"{folder}/"))
        for finding in found["findings"]
    }
    assert places == {
        ("table", "none.csv"),
        ("missing", "bad.csv:3"),
        ("unreadable", "bad.csv:4"),
        ("aspect", "bad.csv:6"),
        ("row", "bad.csv:7"),
        ("row", "bad.csv:8"),
        ("empty", "bad.csv:9"),
        ("duplicate", "bad.csv:10"),
        ("row", "bad.csv:11"),
        ("row", "bad.jsonl:1"),
        ("row", "bad.jsonl:2"),
    }
    assert found["counts"] == {
        "table": 1,
        "row": 5,
        "missing": 1,
        "unreadable": 1,
        "aspect": 1,
        "empty": 1,
        "duplicate": 1,
    }


def test_what_is_allowed_is_told_all_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "twice.csv").write_text(HEADER + "a.png,q,x\n" * 8)
    code, said, _ = check(capsys, folder / "twice.csv")
    assert code == 1
    code, again, _ = check(capsys, folder / "twice.csv", "--allow", "duplicate")
    assert code == 0
    assert said == again
    assert f"duplicate: 7 rows that repeat another one\n  {folder}/twice.csv:3: the same as" in said
    assert said.endswith("  and 2 more\n")


def test_an_experiment_brings_tables_and_limits(
    small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = check(capsys, "--config", small_file)
    assert code == 0
    assert said.startswith("3 table(s), ")
    short = tmp_path / "short.yaml"
    text = small_file.read_text().replace("questions_per_sample: 2", "max_text_length: 3")
    short.write_text(text)
    code, said, _ = check(capsys, "--config", short, "--json")
    assert code == 1
    found = json.loads(said)
    assert found["counts"]["long"] > 0
    assert "tokens of 3: nothing of the answer is left" in found["findings"][0]["detail"]


def test_a_tokenizer_that_is_not_there_is_said(
    small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "named.yaml"
    named = f"models:\n  tokenizer_name: {tmp_path}/nowhere\n"
    file.write_text(small_file.read_text().replace("models:\n", named))
    code, said, told = check(capsys, "--config", file)
    assert code == 0
    assert "the length of texts is not checked: " in told
    assert "nothing wrong" in said


def test_nothing_to_check(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, told = check(capsys)
    assert code == 2
    assert "name a table, or an experiment with --config" in told
