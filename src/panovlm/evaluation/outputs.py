"""The files an evaluation leaves behind: a table of predictions and a file of scores.

Both are written whole or not at all. The table can be read again to compute scores without a
model; a table of the original system is read the same way.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from panovlm.atomic import write_bytes, write_json
from panovlm.errors import DataError
from panovlm.evaluation.answers import GROUP_COLUMNS, Answer, Question, groups_of

COLUMNS = (
    "sample_id",
    "image_path",
    "original_query",
    "prediction",
    "reference",
    "pred_length",
    "ref_length",
    "is_error",
    "is_empty",
)
"""Columns of the table of predictions; lengths are words between white space. Behind them stand
the groups of the questions, if any has one."""


@dataclass(frozen=True)
class OutputPaths:
    """Where the results of one evaluation go."""

    predictions: Path
    metrics: Path
    report: Path


def output_paths(folder: Path, prefix: str, when: datetime) -> OutputPaths:
    """Name the result files of one evaluation.

    Args:
        folder: Where they go.
        prefix: What they are called, usually the experiment's name.
        when: Time that tells one evaluation from the next.
    """
    stamp = f"{when:%Y%m%d_%H%M%S}"
    return OutputPaths(
        folder / f"{prefix}_predictions_{stamp}.csv",
        folder / f"{prefix}_metrics_{stamp}.json",
        folder / f"{prefix}_report_{stamp}.html",
    )


def write_predictions(path: Path, answers: Iterable[Answer]) -> None:
    """Write the table of predictions; a failed sample has no prediction and ``is_error`` True.

    The groups go with it, so that scores computed from the table alone are the same.
    """
    answers = list(answers)
    groups = [name for name in GROUP_COLUMNS if any(name in a.question.groups for a in answers)]
    text = io.StringIO(newline="")
    text.write(",".join((*COLUMNS, *groups)) + "\n")
    # Texts are always quoted: the writer would leave a lone carriage return bare.
    table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    for answer in answers:
        question = answer.question
        prediction, reference = answer.prediction or "", question.reference or ""
        table.writerow(
            (
                question.sample_id,
                question.image,
                question.query,
                prediction,
                reference,
                len(prediction.split()),
                len(reference.split()),
                answer.is_error,
                answer.is_empty,
                *(question.groups.get(name, "") for name in groups),
            )
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.getvalue().encode("utf-8"))


def write_metrics(path: Path, scores: Mapping[str, Any], answers: Iterable[Answer]) -> None:
    """Write the scores, and beside them every failed sample with its reason.

    Args:
        path: The file.
        scores: JSON values, as :meth:`Scores.as_json` gives them.
        answers: All answers of the evaluation.
    """
    failures = [
        {"sample_id": answer.question.sample_id, "reason": answer.reason}
        for answer in answers
        if answer.is_error
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**scores, "failures": failures})


def has_predictions(path: Path) -> bool:
    """Whether a CSV file holds predictions and references already, so that no model is needed.

    Raises:
        DataError: The file cannot be read.
    """
    return {"prediction", "reference"} <= set(_read(path)[0])


def read_predictions(path: Path) -> list[Answer]:
    """Read a table of predictions; only ``prediction`` and ``reference`` are needed.

    Texts are taken as they stand: the word "nan" is a word. An empty reference means that there
    is none. A row whose ``is_error`` is true is a failed sample. The columns ``kind`` and
    ``seam``, if any, group the accuracy.

    Args:
        path: CSV file, UTF-8.

    Raises:
        DataError: The file cannot be read, a column is missing, or a row has another number of
            cells than the header.
    """
    header, rows = _read(path)
    missing = sorted({"prediction", "reference"} - set(header))
    if missing:
        raise DataError(
            f"{path}: a table of predictions needs the columns prediction and reference; missing: "
            f"{', '.join(missing)}; found: {', '.join(header) or 'nothing'}"
        )
    return [_answer_of(row, number, path) for number, row in enumerate(rows)]


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable as a CSV file in UTF-8: {error}") from error
    header = lines[0] if lines else []
    rows: list[dict[str, str]] = []
    for number, cells in enumerate(lines[1:], start=1):
        if not cells:
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{path}, row {number}: {len(cells)} cells under a header of {len(header)} columns"
            )
        rows.append(dict(zip(header, cells, strict=True)))
    return header, rows


def _answer_of(row: Mapping[str, str], number: int, path: Path) -> Answer:
    question = Question(
        sample_id=row.get("sample_id") or str(number),
        image=row.get("image_path") or row.get("url") or "",
        text=row.get("original_query") or row.get("query") or row.get("instruction") or "",
        reference=row["reference"] or None,
        groups=groups_of(row),
    )
    if row.get("is_error", "").strip().lower() in {"true", "1"}:
        return Answer.failed(question, f"marked as an error in {path.name}")
    return Answer.generated(question, row["prediction"])
