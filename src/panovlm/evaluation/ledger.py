"""Answers written down as they come, so that a killed evaluation goes on where it stopped.

A ledger is a text file with one JSON object per line: first a header that says what is being
evaluated, then one line per sample. Every batch is flushed to the disk before the next begins; a
last line that was cut off by a crash is dropped when the file is opened again. A ledger is only
continued for the very same evaluation: same weights, same recipe, same rows, same generation
settings. Failed samples are asked again, for the cause may be mended.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from panovlm.atomic import write_bytes
from panovlm.errors import DataError
from panovlm.evaluation.answers import Answer, Question

VERSION = 1


class LedgerMismatchError(DataError):
    """A ledger belongs to another evaluation than the one that wants to go on with it."""


def digest(value: Any) -> str:
    """SHA-256 of JSON values, the same for the same content in whatever order of keys.

    Args:
        value: Numbers, strings, booleans, None, and lists and mappings of them.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_questions(questions: Iterable[Question]) -> str:
    """Digest of the rows of an evaluation: paths, questions, references and groups, in order."""
    return digest([asdict(question) for question in questions])


class Ledger:
    """An open ledger file; use it as a context manager.

    Args:
        path: The file; its folder is made if needed.
        identity: What is evaluated, e.g. digests of ``checkpoint``, ``recipe``, ``rows`` and
            ``generation``. A ledger is continued only if all of them are the same.
        fresh: Throw away what the file holds and start anew.

    Raises:
        LedgerMismatchError: The file belongs to another evaluation.
        DataError: The file is not a ledger, or damaged before its last line.
    """

    def __init__(self, path: Path, identity: Mapping[str, str], *, fresh: bool = False) -> None:
        self.path = path
        self._answers: dict[str, Answer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        complete = 0
        if path.exists() and not fresh:
            complete = self._resume(path.read_bytes(), dict(identity))
        if not complete:
            header = _encode([{"ledger": VERSION, "identity": dict(identity)}])
            write_bytes(path, header)
            complete = len(header)
        self._file: FileIO = path.open("r+b", buffering=0)
        self._file.seek(complete)
        self._file.truncate()

    def __enter__(self) -> Self:
        """Return the ledger itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file; what was appended stays, whatever went wrong."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def pending(self, questions: Iterable[Question]) -> list[Question]:
        """Return the questions without an answer, failed ones included, in their order."""
        return [
            question
            for question in questions
            if question.sample_id not in self._answers or self._answers[question.sample_id].is_error
        ]

    def append(self, answers: Sequence[Answer]) -> None:
        """Write a batch of answers and wait until it is on the disk.

        Raises:
            DataError: It cannot be written, for example because the disk is full.
        """
        left = memoryview(_encode([_line_of(answer) for answer in answers]))
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(
                f"cannot write {self.path}: {error.strerror}; mend it and evaluate again, which "
                "goes on after the last answer that was written"
            ) from error
        self._answers.update({answer.question.sample_id: answer for answer in answers})

    def answers(self) -> list[Answer]:
        """Return the latest answer of every sample, in the order in which samples first came."""
        return list(self._answers.values())

    def _resume(self, content: bytes, identity: dict[str, str]) -> int:
        """Read what is there and return how many bytes of it are whole lines."""
        lines = content.split(b"\n")[:-1]
        header = self._parse(lines[0], 1) if lines else {}
        if header.get("ledger") != VERSION or not isinstance(header.get("identity"), dict):
            raise DataError(
                f"{self.path} is no ledger of version {VERSION}, so nothing is written to it; "
                "move it away, or overwrite it with --fresh"
            )
        self._check(header["identity"], identity)
        for number, line in enumerate(lines[1:], start=2):
            answer = self._answer_of(self._parse(line, number), number)
            self._answers[answer.question.sample_id] = answer
        return sum(len(line) + 1 for line in lines)

    def _check(self, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        different = [
            f"{name} (there {_short(found.get(name))}, here {_short(wanted.get(name))})"
            for name in sorted({*found, *wanted})
            if found.get(name) != wanted.get(name)
        ]
        if different:
            raise LedgerMismatchError(
                f"{self.path} holds the answers of another evaluation; different: "
                f"{', '.join(different)}. Evaluate into another folder, or start anew with --fresh"
            )

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            values = json.loads(line)
        except ValueError as error:
            raise self._damaged(number) from error
        if not isinstance(values, dict):
            raise self._damaged(number)
        return values

    def _answer_of(self, line: Mapping[str, Any], number: int) -> Answer:
        try:
            return Answer(Question(**line["question"]), line["prediction"], line["reason"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(number) from error

    def _damaged(self, number: int) -> DataError:
        return DataError(
            f"{self.path}, line {number}, is damaged; restore the file, or start anew with --fresh"
        )


def _encode(lines: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode("ascii")


def _line_of(answer: Answer) -> dict[str, Any]:
    return {
        "status": "failed" if answer.is_error else "ok",
        "prediction": answer.prediction,
        "reason": answer.reason,
        "question": asdict(answer.question),
    }


def _short(value: str | None) -> str:
    return "none" if value is None else value if len(value) <= 12 else value[:12] + "..."
