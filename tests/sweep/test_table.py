"""From outcomes to tables: what is compared with what, and what is said of it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from panovlm.errors import ConfigError
from panovlm.evaluation.metrics import wilson
from panovlm.sweep.cells import Sweep
from panovlm.sweep.compare import compare
from panovlm.sweep.store import Outcome, Result
from panovlm.sweep.table import BEGIN, END, as_csv, markdown, write_page, write_tables

COUNT = 400


def finished(accuracy: float, seed: int, *, questions: str = "q", cpu: float = 10.0) -> Outcome:
    """An outcome with that share of right answers, spread by chance."""
    marks = np.zeros(COUNT, int)
    marks[: round(accuracy * COUNT)] = 1
    np.random.default_rng(seed).shuffle(marks)
    seam = {"1": {"value": accuracy, "scored": 20}, "0": {"value": accuracy, "scored": 380}}
    result = Result(
        accuracy=float(marks.mean()),
        interval=wilson(int(marks.sum()), COUNT),
        groups={"kind": {"colour": {"value": accuracy, "scored": COUNT}}, "seam": seam},
        correct="".join(map(str, marks)),
        panoramas=tuple(np.arange(100).repeat(4).tolist()),
        questions=questions,
        most_frequent=0.15,
        views=9,
        vision_tokens=22,
        parameters=1000,
        train_seconds=2 * cpu,
        train_cpu_seconds=cpu,
        eval_seconds=1.0,
    )
    return Outcome(status="finished", result=result)


BASE = ()
SAME = (("views", "tiles"),)
LESS = (("views", "one"),)
MORE = (("views", "many"),)
CLOSE = (("loss", "info"),)

DIGESTS = {BASE: {0: "b0", 1: "b1", 2: "b2"}, SAME: {0: "b0"}, LESS: {0: "less"}, MORE: {0: "more"}}
SWEEP = Sweep("one_factor", {**DIGESTS, CLOSE: {0: "close"}}, [])
OUTCOMES = {
    "b0": finished(0.70, 0),
    "b1": finished(0.72, 1),
    "b2": finished(0.74, 2),
    "less": finished(0.30, 3, cpu=5.0),
    "more": finished(0.95, 4, cpu=20.0),
    "close": finished(0.76, 5),
}


def rows(outcomes=OUTCOMES, sweep: Sweep = SWEEP):
    return {row.name: row for row in compare(sweep, outcomes).rows}


def test_verdicts() -> None:
    found = rows()
    assert found["base"].difference is None and found["views=tiles"].difference is None
    differences = {name: row.difference for name, row in found.items() if row.difference}
    assert {name: d.verdict for name, d in differences.items()} == {
        "views=one": "worse",
        "views=many": "better",
        "loss=info": "within noise",
    }
    one = differences["views=one"]
    assert one.value == pytest.approx(0.30 - 0.72)
    assert one.training is not None
    assert one.training[0] < one.panoramas[0] < one.value < one.panoramas[1] < one.training[1]


def test_luck_of_training_is_unknown_after_one() -> None:
    sweep = Sweep("one_factor", {BASE: {0: "b0"}, CLOSE: {0: "more"}}, [])
    comparison = compare(sweep, OUTCOMES)
    difference = comparison.rows[1].difference
    assert difference is not None and difference.training is None
    assert difference.verdict == "better"
    assert "much another seed would change is not known" in markdown(comparison).replace("\n", " ")


def test_the_base_is_the_mean_of_its_trainings() -> None:
    base = rows()["base"]
    assert base.seeds == (0, 1, 2)
    assert base.accuracy == pytest.approx(0.72)
    assert base.interval == wilson(288, COUNT)
    assert rows()["views=tiles"].accuracy == base.accuracy


def test_time_is_by_that_of_the_base() -> None:
    found = rows()
    assert (found["views=one"].time, found["views=many"].time) == (0.5, 2.0)


def test_other_questions_are_not_compared() -> None:
    found = rows({**OUTCOMES, "more": finished(0.95, 4, questions="others")})
    assert found["views=many"].difference is None
    assert found["views=many"].accuracy == pytest.approx(0.95)


def test_what_is_missing_or_failed_is_said() -> None:
    failure = Outcome(status="failed", message="the loss is\nnan")
    outcomes = {"b0": OUTCOMES["b0"], "less": failure}
    comparison = compare(SWEEP, outcomes)
    text = markdown(comparison)
    assert text.startswith("**Not complete: 4 trainings are missing.**")
    assert "| one | failed | –" in text and "| many | not trained yet | –" in text
    assert "### Failed\n\n- views=one, seed 0: the loss is nan\n" in text


def test_nothing_yet() -> None:
    assert "The base has no result yet" in markdown(compare(SWEEP, {}))


def test_markdown() -> None:
    text = markdown(compare(SWEEP, OUTCOMES))
    assert text.startswith("400 questions about 100 unseen panoramas")
    assert "3 times: accuracy 70.0, 72.0, 74.0 %" in " ".join(text.split())
    views, loss = text.index("### views"), text.index("### loss")
    assert "| **tiles** (base) | 72.0 % [67.4, 76.2] (3 trainings) | 72.0 % of 20 | – |" in text
    assert "**base**" not in text[views:loss] and "| **base** |" in text[loss:]
    assert "- better: views=many\n- worse: views=one\n- within noise: loss=info\n" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {9}


def test_one_table_of_a_grid() -> None:
    both = (("views", "one"), ("loss", "info"))
    text = markdown(compare(Sweep("grid", {BASE: {0: "b0"}, both: {0: "less"}}, []), OUTCOMES))
    assert "| setting | accuracy" in text and "| one, info | 30.0 %" in text
    assert "### views" not in text


def test_files(tmp_path: Path) -> None:
    comparison = compare(SWEEP, OUTCOMES)
    write_tables(comparison, tmp_path)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert [line["name"] for line in lines] == [row.name for row in comparison.rows]
    assert float(lines[2]["difference"]) == pytest.approx(0.30 - 0.72)
    assert lines[0]["difference"] == "" and lines[0]["seeds"] == "0 1 2"
    told = json.loads((tmp_path / "table.json").read_text())
    assert told["rows"][3]["choice"] == {"views": "many"}
    assert told["rows"][3]["difference"]["verdict"] == "better"
    assert as_csv(compare(SWEEP, {})).count("\n") == 6


def test_a_page_keeps_what_stands_around_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    write_page(compare(SWEEP, {}), page)
    page.write_text(page.read_text() + "\nWhat we learnt.\n")
    write_page(compare(SWEEP, OUTCOMES), page)
    text = page.read_text()
    assert text.startswith(f"# Ablations\n\n{BEGIN}\n\n400 questions")
    assert text.endswith(f"loss=info\n\n{END}\n\nWhat we learnt.\n")
    assert "no result yet" not in text
    write_page(compare(SWEEP, OUTCOMES), page)
    assert page.read_text() == text


def test_a_page_without_a_place_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Written by hand.\n")
    with pytest.raises(ConfigError, match="has no place for the tables"):
        write_page(compare(SWEEP, {}), page)
    assert page.read_text() == "Written by hand.\n"
