"""The document about a checkpoint: typed, tied to its weights, and read when it is cut off."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from panovlm.checkpoint.documents.metadata import (
    CheckpointMetadata,
    fingerprint,
    is_ours,
    library_versions,
    parse,
    read_json,
)
from panovlm.config.schema import Recipe
from panovlm.errors import CheckpointError

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3)
)
documents = st.dictionaries(st.text(), values, min_size=1, max_size=4)


def part_of(found, whole) -> bool:
    """Tell whether everything in ``found`` stands in ``whole``, the last entries excepted."""
    if isinstance(found, dict) and isinstance(whole, dict):
        return all(key in whole and part_of(found[key], whole[key]) for key in found)
    if isinstance(found, list) and isinstance(whole, list):
        return len(found) <= len(whole) and all(map(part_of, found, whole))
    return found == whole


class TestCutOff:
    @given(document=documents, indent=st.sampled_from([None, 2]), data=st.data())
    def test_only_what_stands_there_whole_is_read(self, document, indent, data, tmp_path_factory):
        """Never a value that the cut has changed, such as 7 for 768."""
        text = json.dumps(document, indent=indent, ensure_ascii=False)
        cut = data.draw(st.integers(1, len(text) - 1))
        assume(text[cut:].strip())
        path = tmp_path_factory.getbasetemp() / "cut.json"
        path.write_bytes(text[:cut].encode("utf-8", "surrogatepass"))
        try:
            found, note = read_json(path)
        except CheckpointError:
            assume(False)
        assert part_of(found, document)
        assert note is not None and "cut off" in note

    def test_as_the_original_left_it(self, tmp_path):
        path = tmp_path / "checkpoint_metadata.json"
        whole = {"stage": "vision", "model_config": {"overlap_ratio": 0.25, "resampler_config": 1}}
        text = json.dumps(whole, indent=2)
        path.write_text(text[: text.index('"resampler_config": ') + len('"resampler_config": ')])
        found, note = read_json(path)
        assert found == {"stage": "vision", "model_config": {"overlap_ratio": 0.25}}
        assert note is not None and note.startswith("checkpoint_metadata.json is cut off after")

    def test_half_of_a_list_is_none(self, tmp_path):
        path = tmp_path / "checkpoint_metadata.json"
        path.write_text('{"size": 1, "image_size": [16, ')
        assert read_json(path)[0] == {"size": 1}

    @pytest.mark.parametrize("text", ["", "\n", "\0\0\0"])
    def test_nothing_is_left(self, text, tmp_path):
        path = tmp_path / "checkpoint_metadata.json"
        path.write_text(text)
        found, note = read_json(path)
        assert found == {}
        assert note is not None and "is empty" in note

    @pytest.mark.parametrize("text", ["yes", "stage: vision", '{"a": 1}}', "{]", "[1, 2", "3"])
    def test_no_beginning_of_an_object(self, text, tmp_path):
        path = tmp_path / "checkpoint_metadata.json"
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"checkpoint_metadata\.json"):
            read_json(path)

    def test_no_text(self, tmp_path):
        path = tmp_path / "checkpoint_metadata.json"
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(CheckpointError, match="not a text file"):
            read_json(path)


class TestDocument:
    DOCUMENT = CheckpointMetadata(fingerprint="f", recipe=Recipe(), versions=library_versions())

    def test_round_trip(self):
        text = self.DOCUMENT.to_json()
        assert parse(json.loads(text), "x") == self.DOCUMENT
        assert is_ours(json.loads(text)) and not is_ours({"model_config": {}})

    def test_digest(self):
        other = self.DOCUMENT.model_copy(update={"stage": "vision"})
        assert self.DOCUMENT.digest() == parse(json.loads(self.DOCUMENT.to_json()), "x").digest()
        assert self.DOCUMENT.digest() != other.digest()

    def test_fields_of_another_program(self):
        raw = json.loads(self.DOCUMENT.to_json())
        with pytest.raises(CheckpointError, match=r"^x: recipe\.models\.overlap_ratio: "):
            raw["recipe"]["models"]["overlap_ratio"] = 3
            parse(raw, "x")
        with pytest.raises(CheckpointError, match="x: surprise"):
            parse({**json.loads(self.DOCUMENT.to_json()), "surprise": 1}, "x")
        with pytest.raises(CheckpointError, match=r"schema version 9.*reads up to 1"):
            parse({"schema_version": 9}, "x")


class TestFingerprint:
    @given(st.dictionaries(st.text(min_size=1), st.tuples(st.integers(0, 9)), min_size=1))
    def test_order_does_not_matter(self, shapes):
        assert fingerprint(shapes) == fingerprint(dict(reversed(shapes.items())))

    def test_names_and_shapes_do(self):
        base = fingerprint({"a": (1, 2), "b": (3,)})
        assert base != fingerprint({"a": (2, 1), "b": (3,)})
        assert base != fingerprint({"a": (1, 2), "c": (3,)})
        assert base != fingerprint({"a": (1, 2)})


def test_a_resampler_of_a_package_that_is_not_there():
    """The document may be right: nobody is sent to remove it."""
    with pytest.raises(CheckpointError) as told:
        parse({"fingerprint": "f", "recipe": {"models": {"resampler_type": "avgpool"}}}, "a.json")
    assert "others come with the package that defines them. Did you mean 'avg_pool'? The" in str(
        told.value
    )
    assert str(told.value).endswith("install the package that defines that resampler.")
    assert "remove" not in str(told.value)


def test_versions():
    assert library_versions()["transformers"].startswith("5.")
