from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.errors import DataError
from panovlm.evaluation.answers import Answer, Question
from panovlm.evaluation.ledger import Ledger, LedgerMismatchError, digest, digest_of_questions

_IDENTITY = {"checkpoint": "a" * 64, "rows": "b" * 64}
_QUESTIONS = [
    Question(str(n), f"{n}.png", f"What is é{n}?", "q", "yes\nno", {"kind": "k"}) for n in range(5)
]
_ANSWERS = [
    Answer.failed(question, "0.png: no such file")
    if question.sample_id == "0"
    else Answer.generated(question, f"answer {question.sample_id}\u2028\nmore")
    for question in _QUESTIONS
]


def _written(path: Path) -> bytes:
    with Ledger(path, _IDENTITY) as ledger:
        ledger.append(_ANSWERS[:2])
        ledger.append(_ANSWERS[2:])
    return path.read_bytes()


def test_answers_come_back_and_failed_ones_are_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.jsonl"
    _written(path)
    with Ledger(path, _IDENTITY) as ledger:
        assert ledger.answers() == _ANSWERS
        assert ledger.pending(_QUESTIONS) == [_QUESTIONS[0]]
        ledger.append([Answer.generated(_QUESTIONS[0], "mended")])
        assert ledger.pending(_QUESTIONS) == []
    with Ledger(path, _IDENTITY) as ledger:
        assert ledger.answers() == [Answer.generated(_QUESTIONS[0], "mended"), *_ANSWERS[1:]]


def test_every_line_is_json_with_its_status(tmp_path: Path) -> None:
    header, *lines = map(json.loads, _written(tmp_path / "ledger.jsonl").decode().splitlines())
    assert header == {"ledger": 1, "identity": _IDENTITY}
    assert [line["status"] for line in lines] == ["failed", "ok", "ok", "ok", "ok"]
    assert lines[0]["reason"] == "0.png: no such file"


def test_a_cut_anywhere_loses_at_most_the_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    content = _written(path)
    header = content.index(b"\n") + 1
    for cut in range(header, len(content), 7):
        path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n") - 1
        with Ledger(path, _IDENTITY) as ledger:
            assert ledger.answers() == _ANSWERS[:whole]
            assert path.read_bytes() == content[: content[:cut].rindex(b"\n") + 1]
            ledger.append(_ANSWERS[whole:])
        assert path.read_bytes() == content


def test_a_killed_process_leaves_what_it_appended(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    script = f"""
import os, signal
from pathlib import Path
from panovlm.evaluation.answers import Answer, Question
from panovlm.evaluation.ledger import Ledger
ledger = Ledger(Path({str(path)!r}), {_IDENTITY!r})
ledger.append([Answer.generated(Question("0", "0.png", "What?"), "red")])
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script])
    assert killed.returncode == -signal.SIGKILL
    with Ledger(path, _IDENTITY) as ledger:
        assert [answer.prediction for answer in ledger.answers()] == ["red"]


@pytest.mark.parametrize(
    "other",
    [
        {**_IDENTITY, "checkpoint": "c" * 64},
        {**_IDENTITY, "generation": "d" * 64},
        {"checkpoint": "a" * 64},
    ],
)
def test_another_evaluation_is_refused_unless_fresh(tmp_path: Path, other: dict[str, str]) -> None:
    path = tmp_path / "ledger.jsonl"
    before = _written(path)
    (changed,) = {name for name, _ in _IDENTITY.items() ^ other.items()}
    with pytest.raises(LedgerMismatchError, match=f"{changed}.*--fresh"):
        Ledger(path, other)
    assert path.read_bytes() == before
    with Ledger(path, other, fresh=True) as ledger:
        assert ledger.answers() == []
    with Ledger(path, other) as ledger:
        assert ledger.pending(_QUESTIONS) == _QUESTIONS


@pytest.mark.parametrize("line", [1, 2, 4])
@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"status": "ok"}', b"\x00\xff"])
def test_damage_before_the_end_is_an_error(tmp_path: Path, line: int, damage: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = _written(path).split(b"\n")
    lines[line - 1] = damage
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=str(path)):
        Ledger(path, _IDENTITY)


@pytest.mark.parametrize("content", [b"", b"notes of mine", b"a,b\n1,2\n", b'{"ledger": 2}\n'])
def test_a_file_that_is_no_ledger_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="--fresh"):
        Ledger(path, _IDENTITY)
    assert path.read_bytes() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, _IDENTITY) as ledger:
        ledger.append(_ANSWERS[:1])
        with Path("/dev/full").open("wb", buffering=0) as full:
            os.dup2(full.fileno(), ledger._file.fileno())
        with pytest.raises(DataError, match="No space left"):
            ledger.append(_ANSWERS[1:])
        assert ledger.answers() == _ANSWERS[:1]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.builds(
            Question,
            sample_id=st.uuids().map(str),
            image=_TEXT,
            text=_TEXT,
            query=_TEXT,
            reference=st.none() | _TEXT,
            groups=st.dictionaries(_TEXT, _TEXT, max_size=2),
        ).flatmap(
            lambda question: (
                st.builds(Answer.generated, st.just(question), _TEXT)
                | st.builds(Answer.failed, st.just(question), _TEXT)
            )
        ),
        max_size=4,
    )
)
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, answers: list[Answer]) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    with Ledger(path, {}) as ledger:
        ledger.append(answers)
    with Ledger(path, {}) as ledger:
        assert ledger.answers() == answers


def test_digests_follow_content() -> None:
    assert digest({"a": 1, "b": [2.5, None]}) == digest({"b": [2.5, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest_of_questions(_QUESTIONS) != digest_of_questions(_QUESTIONS[::-1])
    changed = [*_QUESTIONS[:-1], Question("4", "4.png", "What is é4?", "q", "no", {"kind": "k"})]
    assert digest_of_questions(_QUESTIONS) != digest_of_questions(changed)
