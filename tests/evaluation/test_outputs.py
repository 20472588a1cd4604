from __future__ import annotations

import csv
import io
import json
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.errors import DataError
from panovlm.evaluation.answers import Answer, Question
from panovlm.evaluation.metrics import accuracy, score_answers
from panovlm.evaluation.outputs import (
    has_predictions,
    output_paths,
    read_predictions,
    write_metrics,
    write_predictions,
)

_QUESTION = Question("7", "a.png", 'Describe "sea".', "sea", "The sea,\nblue.")


def test_names_of_the_files() -> None:
    paths = output_paths(Path("results"), "tiny", datetime(2026, 3, 4, 5, 6, 7))
    assert paths.predictions == Path("results/tiny_predictions_20260304_050607.csv")
    assert paths.metrics == Path("results/tiny_metrics_20260304_050607.json")
    assert paths.report == Path("results/tiny_report_20260304_050607.html")


def test_table_of_predictions(tmp_path: Path) -> None:
    path = tmp_path / "out" / "predictions.csv"
    bare = Question("8", "b.png", "What?")
    answers = [
        Answer.generated(_QUESTION, " A blue\nsea. "),
        Answer.failed(_QUESTION, "cannot read it"),
        Answer.generated(bare, ""),
    ]
    write_predictions(path, answers)
    text = path.read_text("utf-8")
    assert text.startswith(
        "sample_id,image_path,original_query,prediction,reference,pred_length,ref_length,"
        "is_error,is_empty\n"
    )
    _, *rows = csv.reader(io.StringIO(text, newline=""))
    reference = "The sea,\nblue."
    assert rows == [
        ["7", "a.png", "sea", "A blue\nsea.", reference, "3", "3", "False", "False"],
        ["7", "a.png", "sea", "", reference, "0", "3", "True", "True"],
        ["8", "b.png", "What?", "", "", "0", "0", "False", "True"],
    ]


def test_scores_of_a_table_are_those_of_its_answers(tmp_path: Path) -> None:
    def asked(number: int, said: str, **groups: str) -> Answer:
        question = Question(str(number), "a.png", "q", reference="red", groups=groups)
        return Answer.generated(question, said)

    answers = [
        asked(0, "red", kind="colour", seam="1"),
        asked(1, "blue", kind="colour", seam="0"),
        asked(2, "a red ball", kind="caption"),
        asked(3, "red"),
    ]
    path = tmp_path / "predictions.csv"
    write_predictions(path, answers)
    read = read_predictions(path)
    assert [answer.question.groups for answer in read] == [a.question.groups for a in answers]
    metrics = {"accuracy": accuracy}
    assert score_answers(read, metrics).as_json() == score_answers(answers, metrics).as_json()


def test_metrics_file_lists_the_failures(tmp_path: Path) -> None:
    path = tmp_path / "out" / "metrics.json"
    answers = [Answer.generated(_QUESTION, "sea"), Answer.failed(_QUESTION, "cannot read a.png")]
    write_metrics(path, {"accuracy": 0.5, "meteor": None}, answers)
    assert json.loads(path.read_text("utf-8")) == {
        "accuracy": 0.5,
        "meteor": None,
        "failures": [{"sample_id": "7", "reason": "cannot read a.png"}],
    }


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(_TEXT, _TEXT, st.booleans()), max_size=5))
def test_a_written_table_reads_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, bool]]
) -> None:
    answers = [
        Answer.failed(Question(f"s{n}", "a.png", "q", reference=reference or None), "broken")
        if broken
        else Answer.generated(Question(f"s{n}", "a.png", "q", reference=reference or None), text)
        for n, (text, reference, broken) in enumerate(rows)
    ]
    path = tmp_path_factory.mktemp("table") / "predictions.csv"
    write_predictions(path, answers)
    found = read_predictions(path)
    assert [(a.question, a.prediction) for a in found] == [
        (a.question, a.prediction) for a in answers
    ]


def _table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    return path


def test_words_that_look_like_no_value_are_words(tmp_path: Path) -> None:
    path = _table(tmp_path, "\ufeffprediction,reference\r\nNA,nan\r\nNone,null\r\n,\r\n")
    answers = read_predictions(path)
    assert [(a.prediction, a.question.reference) for a in answers] == [
        ("NA", "nan"),
        ("None", "null"),
        ("", None),
    ]
    assert [a.question.sample_id for a in answers] == ["0", "1", "2"]


def test_errors_and_groups_of_a_table(tmp_path: Path) -> None:
    path = _table(
        tmp_path,
        "sample_id,url,query,prediction,reference,is_error,kind,seam\n"
        "a,1.png,ball,[chair],chair,False,name,yes\n"
        "b,2.png,cone,[broken],cone,True,,no\n",
    )
    good, bad = read_predictions(path)
    assert good.prediction == "[chair]"
    assert good.question == Question(
        "a", "1.png", "ball", reference="chair", groups={"kind": "name", "seam": "yes"}
    )
    assert bad.is_error
    assert bad.reason == "marked as an error in table.csv"
    assert bad.question.groups == {"seam": "no"}


def test_which_tables_hold_predictions(tmp_path: Path) -> None:
    assert has_predictions(_table(tmp_path, "x,reference,prediction\n1,2,3\n"))
    assert not has_predictions(_table(tmp_path, "url,query,annotation\n1,2,3\n"))
    assert not has_predictions(_table(tmp_path, ""))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("url,query,annotation\na,b,c\n", "missing: prediction, reference"),
        ("prediction,reference\na\n", "row 1: 1 cells under a header of 2 columns"),
        ("prediction,reference\n\na,b,c\n", "row 2: 3 cells"),
        ('prediction,reference\n"a,b\n', "not readable as a CSV"),
    ],
)
def test_faulty_tables_are_clear_errors(tmp_path: Path, text: str, message: str) -> None:
    path = _table(tmp_path, text)
    with pytest.raises(DataError, match=message) as error:
        read_predictions(path)
    assert str(path) in str(error.value)


def test_missing_and_foreign_files_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv"):
        has_predictions(tmp_path / "none.csv")
    path = tmp_path / "latin.csv"
    path.write_bytes("prediction,reference\nstraße,b\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_predictions(path)
