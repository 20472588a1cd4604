"""Overrides of recipe fields by full, short or old name, as given when a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from panovlm.config.base import StrictModel
from panovlm.config.fields import block_at, paths_of
from panovlm.config.legacy import OLD_MODEL_KEYS, translate
from panovlm.config.lines import Keys, Path, dotted
from panovlm.config.model_recipe import Recipe
from panovlm.config.problems import nearest
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipe, recipes

_RESAMPLER = ("models", "resampler_config")


def apply_recipe_overrides(overrides: Mapping[str, Any], resampler_type: str) -> dict[str, Any]:
    """Find the recipe fields that overrides mean.

    A name is a full dotted one (``models.overlap_ratio``, ``lora.alpha``), a bare field name
    (``hidden_dim``; ``overlap_ratio`` is that of ``models``, which goes before the other blocks),
    or one of the original system (``resampler_hidden_dim``, ``lora_r``). A value for a whole
    block (``resampler_config={"depth": 2}``) counts field by field.

    Args:
        overrides: name to value.
        resampler_type: architecture, unless an override names another one.

    Returns:
        Dotted field name to value, not yet validated.

    Raises:
        ConfigError: a name is unknown (the nearest is named) or ambiguous, or the setting has no
            effect on any model.
    """
    models = overrides.get("models")
    types = {**models, **overrides} if isinstance(models, Mapping) else overrides
    kind = types.get("models.resampler_type") or types.get("resampler_type") or resampler_type
    name = recipe(str(kind)).name
    nested: dict[str, Any] = {}
    for written, value in overrides.items():
        plain = value.model_dump() if isinstance(value, StrictModel) else value
        _put(nested, _locate(written, name), plain)
    translated = translate(nested, resampler_type=name)
    if translated.notes:
        raise ConfigError("\n".join(f"override {note}." for note in translated.notes))
    return {dotted(path): value for path, value in _fields(translated.mapping, name)}


def _locate(written: str, resampler_type: str) -> Keys:
    """Return the path of the field that a name means."""
    keys = tuple(written.split("."))
    if keys[0] == _RESAMPLER[-1]:
        keys = ("models", *keys)
    if keys[0] in Recipe.model_fields:
        if len(keys) > 2 and keys[:2] != _RESAMPLER:
            raise ConfigError(
                f"override {written}: {dotted(keys[:2])} is one value; give it whole."
            )
        return keys
    if len(keys) > 1:
        raise _unknown(written, resampler_type)
    homes = [path for path in paths_of(Recipe, resampler_type) if path[-1] == written]
    for block in (("models",), _RESAMPLER):
        if (*block, written) in homes:
            return (*block, written)
    other = _architectures_with(written)
    if other:
        raise ConfigError(
            f"override {written}: {resampler_type} has no such setting ({', '.join(other)} has); "
            f"its settings are {', '.join(recipe(resampler_type).settings.model_fields)}."
        )
    if len(homes) > 1:
        raise ConfigError(
            f"override {written}: may mean {' or '.join(map(dotted, homes))}; give the full name."
        )
    if homes:
        return tuple(str(key) for key in homes[0])
    if written in OLD_MODEL_KEYS:
        return ("models", written)
    raise _unknown(written, resampler_type)


def _architectures_with(field: str) -> list[str]:
    return [name for name, found in recipes().items() if field in found.settings.model_fields]


def _put(tree: dict[str, Any], keys: Keys, value: Any) -> None:
    """Set a value; a block that is given whole and in parts is merged."""
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    below = tree.get(keys[-1])
    if isinstance(below, Mapping) and isinstance(value, Mapping):
        value = {**below, **value}
    tree[keys[-1]] = value


def _fields(
    mapping: Mapping[str, Any], resampler_type: str, at: Path = ()
) -> Iterator[tuple[Path, Any]]:
    """Yield every field below a block; a dictionary that is a value stays whole."""
    for key, value in mapping.items():
        path = (*at, key)
        block = block_at(Recipe, path, {"models": {"resampler_type": resampler_type}})
        if block is not None:
            if isinstance(value, Mapping):
                yield from _fields(value, resampler_type, path)
            elif value is not None:
                raise ConfigError(f"override {dotted(path)}: is a block; give it as a mapping.")
        elif path in set(paths_of(Recipe, resampler_type)):
            yield path, value
        else:
            raise _unknown(dotted(path), resampler_type)


def _unknown(written: str, resampler_type: str) -> ConfigError:
    paths = list(paths_of(Recipe, resampler_type))[::-1]  # of equal names the first one counts
    known = {str(path[-1]): dotted(path) for path in paths}
    known |= {dotted(path): dotted(path) for path in paths}
    near = nearest(written, known) or nearest(written.rpartition(".")[2], known)
    hint = f"; did you mean {known[near]}?" if near else "."
    return ConfigError(f"override {written}: unknown setting{hint}")
