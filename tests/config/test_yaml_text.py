"""Reading and writing YAML: scalars, lines, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.config.lines import Lines, dotted
from panovlm.config.yaml_text import MAX_BYTES, dump_yaml, parse_yaml, read_yaml
from panovlm.errors import ConfigError

# JSON is YAML, as long as its characters need no surrogate escapes.
characters = st.characters(min_codepoint=32, max_codepoint=0xD7FF).filter(str.isprintable)
texts = st.text(characters, max_size=30)
keys = texts.filter(lambda key: key != "<<")
finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(keys, plain, max_size=5))
def test_json_is_read_as_the_json_library_reads_it(value: dict[str, object]) -> None:
    document = json.dumps(value, ensure_ascii=False)
    assert parse_yaml(document, "f")[0] == json.loads(document)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 0.001),
        ("5E4", 50000.0),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("+7", 7),
        ("True", True),
        ("FALSE", False),
        ("on", "on"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2025-01-01", "2025-01-01"),
        ("1_000", "1_000"),
        ("1.2.3", "1.2.3"),
        ("'3'", "3"),
        ("~", None),
        ("", None),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("!!str 3", "3"),
        ("!!float 3", 3.0),
    ],
)
def test_scalars_follow_yaml_1_2(written: str, value: object) -> None:
    read = parse_yaml(f"a: {written}", "f")[0]["a"]
    assert read == value
    assert type(read) is type(value)


def test_the_exponent_without_a_dot_is_text_to_pyyaml_and_a_number_here() -> None:
    assert yaml.safe_load("1e-3") == "1e-3"
    assert parse_yaml("1e-3", "f")[0] == 0.001


awkward = st.sampled_from(
    ["1e-3", "on", "0o17", "1:30", "~", "", "2025-01-01", "<<", " x ", "a: b"]
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(keys, plain | awkward | st.lists(awkward), max_size=5))
def test_what_is_written_is_read_back_by_any_reader(value: dict[str, object]) -> None:
    document = dump_yaml(value)
    assert parse_yaml(document, "f")[0] == value
    assert yaml.safe_load(document) == value


def test_not_a_number_is_read() -> None:
    assert math.isnan(parse_yaml("a: .nan", "f")[0]["a"])


DOCUMENT = """\
models:            # line 1
  vision_name: x   # line 2

  resampler_config: {depth: 2,
                     hidden_dim: 3}
data:
  csv_train:
    - a.csv
    - {deep: 1}
"""


@pytest.mark.parametrize(
    ("path", "described"),
    [
        (("models",), "f:1: models"),
        (("models", "vision_name"), "f:2: models.vision_name"),
        (("models", "resampler_config", "hidden_dim"), "f:5: models.resampler_config.hidden_dim"),
        (("data", "csv_train", 0), "f:7: data.csv_train[0]"),
        (("data", "csv_train", 1, "deep"), "f:9: data.csv_train[1].deep"),
        (("models", "not_there", "x"), "f:1: models.not_there.x"),
        (("nowhere",), "f: nowhere"),
    ],
)
def test_every_key_knows_its_line(path: tuple[str | int, ...], described: str) -> None:
    assert parse_yaml(DOCUMENT, "f")[1].describe(path) == described


def test_moved_keys_keep_place_and_spelling() -> None:
    lines = parse_yaml("old:\n  a: 1\n  b: {c: 2}\n", "f")[1].moved(("old", "b"), ("new",))
    assert lines.describe(("new", "c")) == "f:3: old.b.c"
    assert lines.describe(("old", "a")) == "f:2: old.a"


def test_lines_of_a_mapping_made_in_memory_are_just_the_key() -> None:
    assert Lines().describe(("a", 0, "b")) == "a[0].b"
    assert dotted(()) == ""


def test_merge_keys_fill_what_is_not_given() -> None:
    value, lines = parse_yaml(
        "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc:\n  <<: [*a, *b]\n  x: 9\nd: {<<: *b}\n", "f"
    )
    reference = yaml.safe_load("a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc:\n  <<: [*a, *b]\n  x: 9")
    assert value["c"] == reference["c"] == {"x": 9, "y": 2, "z": 4}
    assert value["d"] == {"y": 3, "z": 4}
    assert lines.describe(("c", "x")) == "f:5: c.x"
    assert lines.describe(("c", "z")) == "f:2: c.z"


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("a: 1\nb: 2\na: 3", "f:3: a: given twice (first in line 1)."),
        ("m:\n  a: 1\n  a: 1", "f:3: m.a: given twice (first in line 2)."),
        ("a: !!python/object/apply:os.system ['ls']", "f:1: a: the tag !!python/object"),
        ("a: !!timestamp 2025-01-01", "f:1: a: the tag !!timestamp is not allowed"),
        ("a:\n - !thing {b: 1}", "f:2: a[0]: the tag !thing is not allowed"),
        ("a: !!int x", "f:1: a: 'x' is no int."),
        ("a: !!int \uff11\uff12", "f:1: a: '\uff11\uff12' is no int."),
        ("a: !!float \uff11.5", "f:1: a: '\uff11.5' is no float."),
        ("a: !!bool maybe", "f:1: a: 'maybe' is no bool."),
        ("? [1]\n: 2", "f:1: a key must be text."),
        ("a: [1,\nb: 2", "f:2: is not valid YAML: "),
        ("a:\n\tb: 1", "f:2: is not valid YAML: "),
        ("a: 1\n---\nb: 2", "f:2: is not valid YAML: expected a single document"),
        ("a: *nope", "f:1: is not valid YAML: found undefined alias"),
        ("a: \x00", "f: is not valid YAML: "),
        ("a: " + "1" * 5000, "is no int."),
        ("[" * 10_000, "f: is nested too deeply."),
        ("a: " + "[" * 60 + "]" * 60, "more than 100000 values or 50 levels"),
        ("a: &a [*a]", "an alias (*name) probably repeats itself."),
        ("a: &a\n  <<: *a", "an alias (*name) probably repeats itself."),
        ("a: {<<: 3}", "f:1: a: << needs a mapping."),
        (BOMB, "an alias (*name) probably repeats itself."),
        (MERGE_BOMB, "an alias (*name) probably repeats itself."),
    ],
    ids=lambda value: value[:25],
)
def test_refused_documents_name_line_and_key(document: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_yaml(document, "f")
    assert message in str(refused.value)
    assert str(refused.value).startswith("f:")


def test_no_tag_executes_code(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    with pytest.raises(ConfigError):
        parse_yaml(f"a: !!python/object/apply:pathlib.Path.touch [{witness}]", "f")
    assert not witness.exists()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", b"", "is empty; a configuration holds blocks"),
        ("a.yml", b"# only a comment\n", "is empty; a configuration holds blocks"),
        (
            "a.yaml",
            b"- 1\n- 2\n",
            "expected blocks of keys such as models and training, got a list",
        ),
        ("a.yaml", b"just text", "got a single value."),
        ("a.json", b"{}", "a configuration is a .yaml or .yml file."),
        ("a", b"a: 1", "a configuration is a .yaml or .yml file."),
        ("a.yaml", b"a: 1\nb: \xff\n", ":2: is not UTF-8 text"),
        ("a.yaml", b"a: 1\n" + b"#" * MAX_BYTES, "is larger than 1048576 bytes"),
    ],
)
def test_files_that_are_no_configuration(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ConfigError) as refused:
        read_yaml(path)
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        read_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"is a folder; a configuration is a \.yaml or \.yml"):
        read_yaml(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path: Path) -> None:
    path = write(tmp_path / "a.YAML", b"\xef\xbb\xbfa: 1\r\nb: x\r\n")
    value, lines = read_yaml(path)
    assert value == {"a": 1, "b": "x"}
    assert lines.describe(("b",)) == f"{path}:2: b"
