"""From a YAML file and overrides to settings: read, translate old names, override, validate."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from panovlm.config.legacy import translate
from panovlm.config.lines import COMMAND_LINE, Lines, Path
from panovlm.config.recipe_overrides import apply_recipe_overrides
from panovlm.config.schema import Settings
from panovlm.config.validation import validate
from panovlm.config.yaml_text import dump_yaml, parse_yaml, read_yaml
from panovlm.errors import ConfigError

__all__ = [
    "Lines",
    "apply_overrides",
    "apply_recipe_overrides",
    "dump_yaml",
    "load_mapping",
    "load_settings",
]

_log = logging.getLogger(__name__)


def load_settings(
    path: str | FilePath, overrides: Sequence[str] = (), *, origin: str = COMMAND_LINE
) -> Settings:
    """Read an experiment.

    What an old configuration says and today's settings have no place for is logged as a warning.

    Args:
        path: ``.yaml`` or ``.yml`` file, in today's names or those of the original system.
        overrides: settings laid over the file, see :func:`apply_overrides`.
        origin: where the overrides come from, for messages.

    Raises:
        ConfigError: one line per problem, with file, line and key.
    """
    raw, lines = load_mapping(path)
    translated = translate(raw, lines=lines)
    merged, merged_lines, notes = _overridden(
        translated.mapping, translated.lines, overrides, origin
    )
    settings = validate(Settings, merged, merged_lines)
    for note in (*translated.notes, *notes):
        _log.warning(note)
    return settings


def load_mapping(path: str | FilePath) -> tuple[dict[str, Any], Lines]:
    """Read a YAML file as it is written: no translation, no validation.

    Returns:
        The nested mapping, and where each key stands in the file.

    Raises:
        ConfigError: the file is missing or no usable YAML.
    """
    return read_yaml(path)


def apply_overrides(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay overrides over a configuration.

    An override is a dotted key and a YAML value, ``models.resampler_config.hidden_dim=48``; old
    names are translated. A value that is a block is merged into the block that is there;
    everything else replaces what was there. Where an override changes ``models.resampler_type``
    to another architecture, ``resampler_config`` of ``mapping`` belongs to the old one and is
    dropped; only overrides of it remain, and the new architecture's preset fills the rest.

    Args:
        mapping: nested mapping in today's names or those of the original system; never modified.
        overrides: in the order given; of two for one key the later one counts.

    Returns:
        The merged mapping in today's names, not yet validated. Written to a file, it gives the
        same settings as the first file with the overrides.

    Raises:
        ConfigError: an override is not of the form ``key=value``, or its value is not YAML.
    """
    translated = translate(mapping)
    return _overridden(translated.mapping, translated.lines, overrides)[0]


def _overridden(
    mapping: Mapping[str, Any],
    lines: Lines,
    overrides: Sequence[str],
    origin: str = COMMAND_LINE,
) -> tuple[dict[str, Any], Lines, list[str]]:
    """Merge ``overrides``; return the result, where its keys were written, and notes."""
    given = _tree(overrides, origin)
    before = _block(mapping, "models").get("resampler_type", "mlp")
    written = Lines(origin, {path: (origin, path) for path in _paths(given)})
    above = translate(given, lines=written, resampler_type=before)
    after = _block(above.mapping, "models").get("resampler_type", before)
    base = dict(mapping)
    if after != before:
        base["models"] = {k: v for k, v in base["models"].items() if k != "resampler_config"}
    return _merged(base, above.mapping), lines.under(above.lines), above.notes


def _tree(overrides: Sequence[str], origin: str) -> dict[str, Any]:
    """Parse overrides into one nested mapping."""
    tree: dict[str, Any] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(
                f"{origin}: {text!r} is no override; write key=value, such as "
                "training.num_workers=4."
            )
        parsed, _ = parse_yaml(value, f"{origin}: {name.strip()}")
        for key in reversed(keys):
            parsed = {key: parsed}
        tree = _merged(tree, parsed)
    return tree


def _merged(base: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``above`` laid over it, block by block."""
    result = dict(base)
    for key, value in above.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = _merged(below, value)
        else:
            result[key] = value
    return result


def _block(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = mapping.get(name)
    return found if isinstance(found, Mapping) else {}


def _paths(tree: Mapping[str, Any], at: Path = ()) -> Iterator[Path]:
    """Yield the path of every key."""
    for key, value in tree.items():
        yield (*at, key)
        if isinstance(value, Mapping):
            yield from _paths(value, (*at, key))
