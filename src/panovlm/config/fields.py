"""Names of the settings: which keys a block has, and where in the tree a key lives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import isclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from panovlm.config.base import StrictModel
from panovlm.config.lines import Path
from panovlm.config.model_recipe import ModelSettings
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipe
from panovlm.models.resamplers.recipe import ResamplerSettings


def canonical_type(name: object) -> str | None:
    """Return the canonical name of a resampler architecture; ``None`` for an unknown one."""
    try:
        return recipe(name).name if isinstance(name, str) else None
    except ConfigError:
        return None


def block_at(model: type[StrictModel], path: Path, data: object) -> type[StrictModel] | None:
    """Return the settings class of the block at ``path``.

    Args:
        model: settings class of the root.
        path: keys from the root to the block.
        data: the mapping itself; its ``resampler_type`` decides what ``resampler_config`` holds.

    Returns:
        The class, or ``None`` where no class describes the block.
    """
    here: Any = model
    for step in path:
        if isclass(here) and issubclass(here, StrictModel):
            info = here.model_fields.get(str(step))
            below = _bare(info.annotation) if info else None
            if below is ResamplerSettings:
                below = _resampler_settings(data)
            here = below
        else:
            here = _bare(get_args(here)[-1]) if get_origin(here) is dict else None
        data = data.get(step) if isinstance(data, Mapping) else None
    return here if isclass(here) and issubclass(here, StrictModel) else None


def paths_of(model: type[StrictModel], resampler_type: str, at: Path = ()) -> Iterator[Path]:
    """Yield the path of every block and every field below ``model``.

    Args:
        model: settings class of the root.
        resampler_type: canonical architecture, whose fields stand in ``resampler_config``.
        at: path of ``model`` itself.
    """
    for name, info in model.model_fields.items():
        yield (*at, name)
        below = _bare(info.annotation)
        if below is ResamplerSettings:
            below = recipe(resampler_type).settings
        of_each = get_args(below)[-1] if get_origin(below) is dict else None
        if isclass(of_each) and issubclass(of_each, StrictModel):
            yield from paths_of(of_each, resampler_type, (*at, name, "<stage>"))
        elif isclass(below) and issubclass(below, StrictModel):
            yield from paths_of(below, resampler_type, (*at, name))


def _resampler_settings(models: object) -> type[ResamplerSettings] | None:
    """Return the settings class that the ``models`` block asks for."""
    default = ModelSettings.model_fields["resampler_type"].default
    name = models.get("resampler_type", default) if isinstance(models, Mapping) else default
    canonical = canonical_type(name)
    return recipe(canonical).settings if canonical else None


def _bare(annotation: Any) -> Any:
    """Take ``None`` out of an optional type, and leave out what is noted about one."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        return members[0] if len(members) == 1 else annotation
    return annotation
