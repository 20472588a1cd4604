"""Reads YAML into plain values, remembering the line of every key, and writes it.

Scalars follow the core schema of YAML 1.2 instead of PyYAML's 1.1: ``1e-3`` is a number, ``on``,
``1:30`` and ``2025-01-01`` are text. Only plain values exist (no tag can build an object),
a key given twice is an error, and what aliases may expand to is bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any, NoReturn, cast

import yaml

from panovlm.config.lines import Lines, Path, dotted
from panovlm.errors import ConfigError

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 1 << 20
MAX_VALUES = 100_000
MAX_DEPTH = 50

_TAG = "tag:yaml.org,2002:"


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's safe parser with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: Any = {}  # noqa: RUF012  (PyYAML's own class attribute)


class _CoreDumper(yaml.SafeDumper):
    """Quotes every text that either version of YAML would read as something else."""


# PyYAML's own pattern for numbers needs a dot before the exponent, so it reads 1e-3 as text.
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for _side in (_CoreLoader, _CoreDumper):
        _side.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


def read_yaml(file: str | FilePath) -> tuple[dict[str, Any], Lines]:
    """Read a YAML file that holds one mapping.

    Returns:
        The mapping, and the line of every key in it.

    Raises:
        ConfigError: the file is missing, no ``.yaml`` or ``.yml``, empty, no mapping, or not valid
            YAML; the message names file and line.
    """
    path = FilePath(file)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; a configuration is a .yaml or .yml file.")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a configuration is a .yaml or .yml file.")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Give the path of a .yaml or .yml file.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES} bytes; this is no configuration.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text; save it as UTF-8.") from None
    value, lines = parse_yaml(text, str(path))
    if value is None:
        raise ConfigError(
            f"{path}: is empty; a configuration holds blocks such as models and training."
        )
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path}: expected blocks of keys such as models and training, "
            f"got {'a list' if isinstance(value, list) else 'a single value'}."
        )
    return cast("dict[str, Any]", value), lines


def parse_yaml(text: str, source: str) -> tuple[Any, Lines]:
    """Parse YAML text.

    Args:
        text: one YAML document.
        source: name of its origin for messages.

    Raises:
        ConfigError: the text is not valid, or holds a tag, a repeated key or too many values.
    """
    try:
        node = yaml.compose(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        why = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{place}: is not valid YAML: {why}.") from None
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"{source}: is not valid YAML: {first}.") from None
    except RecursionError:
        raise ConfigError(f"{source}: is nested too deeply.") from None
    if node is None:
        return None, Lines(source)
    reader = _Reader(source)
    return reader.value(node, (), 0), Lines(source, reader.written)


def dump_yaml(mapping: Mapping[str, Any]) -> str:
    """Return YAML text that :func:`parse_yaml`, and any other reader, reads as ``mapping``.

    Args:
        mapping: plain values.
    """
    return yaml.dump(dict(mapping), Dumper=_CoreDumper, sort_keys=False, allow_unicode=True)


class _Reader:
    """Turns one node graph into plain values.

    An alias makes the graph shared or even cyclic, so values and depth are counted while walking.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.written: dict[Path, tuple[str, Path]] = {}
        self._values = 0

    def value(self, node: yaml.Node, path: Path, depth: int) -> Any:
        """Return the plain value of ``node``, which stands at ``path``."""
        self._values += 1
        if self._values > MAX_VALUES or depth > MAX_DEPTH:
            bound = f"more than {MAX_VALUES} values or {MAX_DEPTH} levels"
            self._refuse(node, path, f"{bound}; an alias (*name) probably repeats itself")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            self._require_tag(node, path, "seq")
            return [self.value(item, (*path, i), depth + 1) for i, item in enumerate(node.value)]
        return self._scalar(cast("yaml.ScalarNode", node), path)

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, Any]:
        self._require_tag(node, path, "map")
        own: dict[str, yaml.Node] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse(key, path, "a key must be text")
            name = str(key.value)
            if name == "<<":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            if name in own:
                first = self.written[*path, name][0].rpartition(":")[2]
                self._refuse(key, (*path, name), f"given twice (first in line {first})")
            own[name] = value
            self.written[*path, name] = (self._place(key), (*path, name))
        values = {name: self.value(child, (*path, name), depth + 1) for name, child in own.items()}
        for base in merged:  # of several merged mappings the first one wins
            values = self._merged(base, path, depth + 1, frozenset(values)) | values
        return values

    def _merged(
        self, node: yaml.Node, path: Path, depth: int, given: frozenset[str]
    ) -> dict[str, Any]:
        """Read a mapping merged with ``<<``, without the keys that are given already."""
        if not isinstance(node, yaml.MappingNode):
            self._refuse(node, path, "<< needs a mapping")
        rest = [(key, value) for key, value in node.value if key.value not in given]
        return self.value(
            yaml.MappingNode(node.tag, rest, node.start_mark, node.end_mark), path, depth
        )

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind not in _SCALARS:
            self._refuse_tag(node, path)
        try:
            return _SCALARS[kind](str(node.value))
        except (ValueError, KeyError):
            self._refuse(node, path, f"{node.value[:40]!r} is no {kind}")

    def _require_tag(self, node: yaml.Node, path: Path, kind: str) -> None:
        if node.tag != _TAG + kind:
            self._refuse_tag(node, path)

    def _refuse_tag(self, node: yaml.Node, path: Path) -> NoReturn:
        tag = node.tag.replace(_TAG, "!!")
        self._refuse(node, path, f"the tag {tag} is not allowed; only plain values are")

    def _place(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}"

    def _refuse(self, node: yaml.Node, path: Path, why: str) -> NoReturn:
        name = dotted(path[:6]) + ("..." if len(path) > 6 else "")
        raise ConfigError(": ".join(filter(None, (self._place(node), name, why))) + ".")


def _float(text: str) -> float:
    bare = text.lower().lstrip("+-")
    if bare == ".nan":
        return math.nan
    if bare == ".inf":
        return -math.inf if text.startswith("-") else math.inf
    return float(_ascii(text))


def _ascii(text: str) -> str:
    """Refuse digits of other scripts, which Python would read."""
    if not text.isascii():
        raise ValueError(text)
    return text


_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": lambda text: int(_ascii(text), {"0o": 8, "0x": 16}.get(text[:2], 10)),
    "float": _float,
    "str": str,
}
