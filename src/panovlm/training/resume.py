"""Whether an interrupted stage can go on under the settings of today."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from panovlm.checkpoint.documents.metadata import EMBEDDED, CheckpointMetadata, parse
from panovlm.checkpoint.fields import flatten
from panovlm.checkpoint.formats import read_header
from panovlm.config.image_input import ImageInput
from panovlm.errors import CheckpointError, ConfigError

_SHOWN = 5


def check_unchanged(last: Path, now: CheckpointMetadata) -> None:
    """Refuse to continue a stage under other settings than it was begun with.

    Some of them would be ignored silently (the optimizer's state brings its learning rate along),
    others would give a model that is neither the old nor the new one.

    Args:
        last: the stage's ``last.ckpt``.
        now: what the model that is to be trained on would be described as.

    Raises:
        ConfigError: settings differ; the message names them.
        CheckpointError: the file is damaged or was not written by this program's training.
    """
    text = read_header(last).extras.get(EMBEDDED)
    if not isinstance(text, str):
        raise CheckpointError(
            f"{last} holds no training state of PanoVLM, so that the stage cannot be continued "
            "from it; train it anew without --resume."
        )
    before = parse(json.loads(text), str(last))
    found = [*_differences(before, now)]
    if found:
        more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ConfigError(
            f"{last.parent} was begun with other settings, so that it cannot be continued:\n  "
            + "\n  ".join(found[:_SHOWN])
            + f"{more}\nPut them back, or train anew without --resume (the earlier run is kept)."
        )


def _differences(before: CheckpointMetadata, now: CheckpointMetadata) -> Iterator[str]:
    """Say which settings differ, one line each."""
    yield from _changed("", flatten(before.recipe), flatten(now.recipe))
    place = f"training.stage_configs.{now.stage}."
    yield from _changed(place, before.training.stage_config, now.training.stage_config)
    yield from _changed("data.input.", _input(before), _input(now))


def _input(about: CheckpointMetadata) -> dict[str, Any]:
    """Return how a run's pictures show the sphere; plainly, where older documents say nothing."""
    return ImageInput.model_validate(about.training.data.get("input", {})).model_dump()


def _changed(place: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in before.keys() | now.keys():
        one, other = before.get(name), now.get(name)
        if one == other:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _changed(f"{place}{name}.", one, other)
        else:
            yield f"{place}{name}: was {one!r}, is {other!r}"
