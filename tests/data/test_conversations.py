"""Conversations in JSON become the samples that the same texts in a CSV table would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.data.samples import read_tables
from panovlm.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jpg").touch()
    return tmp_path


def llava(*texts: str, **rest: Any) -> dict[str, Any]:
    speakers = ("human", "gpt") * len(texts)
    said = [{"from": who, "value": text} for who, text in zip(speakers, texts, strict=False)]
    return {"image": "a.jpg", "conversations": said, **rest}


def chat(*texts: Any, **rest: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(texts)
    said = [{"role": who, "content": text} for who, text in zip(roles, texts, strict=False)]
    return {"image": "a.jpg", "messages": said, **rest}


def write(path: Path, *entries: object) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(entries, indent=1))
    else:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_the_forms_mean_the_same(folder: Path) -> None:
    turns = (("What is this?", "A hall."), ("How large?", "Ten metres."))
    texts = [text for turn in turns for text in turn]
    part = {"type": "text", "text": texts[0]}
    entries = [
        llava("<image>\n" + texts[0], *texts[1:]),
        llava(texts[0] + "\n<image>", *texts[1:]),
        llava(*texts),
        chat(*texts),
        chat([{"type": "image"}, part], *texts[1:]),
        chat([{"type": "image", "image": "a.jpg"}, part], *texts[1:], image=None),
        {**chat(*texts), "image": None, "images": ["a.jpg"]},
    ]
    for name in ("t.json", "t.jsonl", "t.ndjson", "t.txt"):
        samples = read_tables([write(folder / name, *entries)])
        assert [sample.turns for sample in samples] == [turns] * len(entries)
        assert {sample.image for sample in samples} == {folder / "a.jpg"}


def test_sources_and_columns(folder: Path) -> None:
    entries = llava("a", "b", id=7, kind="where"), llava("c", "d")
    listed = read_tables([write(folder / "t.json", *entries)])
    assert [sample.source for sample in listed] == [f"{folder}/t.json[0]", f"{folder}/t.json[1]"]
    assert listed[0].columns == {"id": "7", "kind": "where"}
    (folder / "t.jsonl").write_text("\n\n".join(map(json.dumps, entries)))
    lines = read_tables([folder / "t.jsonl"])
    assert [sample.source for sample in lines] == [f"{folder}/t.jsonl:1", f"{folder}/t.jsonl:3"]


def test_a_json_file_may_have_one_object_per_line(folder: Path) -> None:
    table = folder / "t.json"
    table.write_text(json.dumps(llava("a", "b")) + "\n" + json.dumps(llava("c", "d")))
    assert [sample.turns for sample in read_tables([table])] == [(("a", "b"),), (("c", "d"),)]


text = st.text(st.characters(codec="utf-8"), max_size=20)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=3), st.booleans())
def test_any_text_survives(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, str]], escaped: bool
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    (folder / "a.jpg").touch()
    entry = llava(*(part for turn in turns for part in turn))
    line = json.dumps(entry, ensure_ascii=escaped)
    (folder / "t.jsonl").write_bytes((line + "\n").encode() * 2)
    assert [sample.turns for sample in read_tables([folder / "t.jsonl"])] == [tuple(turns)] * 2


GOOD = llava("a", "b")
BAD: list[tuple[Any, str]] = [
    ([1], "expected an object with 'image'"),
    ({"image": "a.jpg"}, "has neither 'conversations' nor 'messages'"),
    ({**GOOD, **chat("a", "b")}, "has both 'conversations' and 'messages'"),
    ({**GOOD, "image": None}, "names no image"),
    ({**GOOD, "image": ""}, "'image' is empty"),
    ({**GOOD, "image": 3}, "'image' holds 3"),
    ({**GOOD, "image": "https://x.org/a.jpg"}, "is an address"),
    ({**GOOD, "image": ["a.jpg", "b.jpg"]}, "names 2 images; a model reads one"),
    ({**GOOD, "images": ["b.jpg"]}, "names 2 images"),
    (llava("<image> and <image>", "b"), "<image> stands 2 times; a model reads one"),
    (llava("a", "b", "<image> c", "d"), "<image> does not stand in the first question"),
    (llava("a", "<image>"), "<image> does not stand in the first question"),
    (llava("a", "b", "c"), "has no answer to its last question"),
    ({**GOOD, "conversations": "a"}, "'conversations' is no list"),
    ({**GOOD, "conversations": ["a"]}, r"conversations\[0\] is no object"),
    ({**GOOD, "conversations": [{"from": "gpt", "value": "b"}]}, "message 0 is the assistant's"),
    ({**GOOD, "conversations": [{"from": "gtp", "value": "b"}]}, "said by 'gtp', expected one of"),
    ({**GOOD, "conversations": [{"from": "human"}]}, "holds None, expected text"),
    (
        {**GOOD, "conversations": [{"from": "system", "value": "x"}, *GOOD["conversations"]]},
        "is a system message; .*training.system_msg",
    ),
    (llava("\ud800", "b"), "lone surrogate"),
    (chat("a", [{"type": "image", "image": "b.jpg"}]), r"messages\[1\] holds an image"),
    (chat([{"type": "video"}], "b"), "expected text"),
]


@pytest.mark.parametrize(("entry", "message"), BAD)
def test_faults_name_their_place(folder: Path, entry: Any, message: str) -> None:
    for name, place in (("t.json", r"t\.json\[1\]"), ("t.jsonl", r"t\.jsonl:2")):
        table = write(folder / name, GOOD, entry, GOOD)
        with pytest.raises(DataError, match=f"{place}.*{message}"):
            read_tables([table])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", "", "has no rows"),
        ("t.json", "[]", "has no rows"),
        ("t.json", "[\n{},\n", r"t\.json:3: no valid JSON"),
        ("t.jsonl", '{"image": \n', r"t\.jsonl:1: no valid JSON"),
        ("t.jsonl", '{"image": "a", "image": "b"}', r"t\.jsonl:1: key 'image' stands twice"),
        ("t.json", "[" * 100_000, "nested too deeply"),
        ("t.json", "url,instruction,response\n", r"t\.json:1: no valid JSON"),
    ],
)
def test_faults_of_the_file(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_tables([folder / name])


def test_missing_images_are_told_as_for_other_tables(folder: Path) -> None:
    table = write(folder / "t.json", GOOD, {**GOOD, "image": "none.jpg"})
    with pytest.raises(DataError, match=r"1 of 2 rows do not exist:\n.*t\.json\[1\]: .*none\.jpg"):
        read_tables([table])
