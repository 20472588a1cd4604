"""Writes docs/settings.md from the settings classes: ``python docs/make_settings.py``.

Types, limits and defaults come from the classes, meanings from the text below each field.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

from panovlm.config import schema
from panovlm.config.base import MISSING, FieldInfo, StrictModel
from panovlm.config.image_input import ImageInput
from panovlm.config.readers import UNLIMITED, Limits
from panovlm.models.resamplers import BUILT_IN

PAGE = Path(__file__).with_name("settings.md")

HEAD = """\
# Settings

An experiment is one YAML file with the blocks below. Whatever is left out has the default given
here; only what says *required* must be written:

```yaml
data:
  csv_train: train.csv
training:
  stages: [finetune]
  stage_configs:
    finetune: {epochs: 1, lr: 1.0e-4, batch_size: 4}
```

Any field can be set on the command line as well:
`panovlm train --config FILE models.resampler_config.hidden_dim=48`. An unknown key is an error that
names the file, the line and the nearest known key. `configs/` holds complete experiments.

The blocks `models`, `image_processing`, `lora`, `generation` and `system_messages` decide what a
trained model computes; they travel in every checkpoint ([checkpoints](checkpoints.md)).

This page is written by `docs/make_settings.py`; do not edit it by hand.
"""

BLOCKS: tuple[tuple[str, type[StrictModel]], ...] = (
    ("experiment", schema.Experiment),
    ("environment", schema.Environment),
    ("data", schema.Data),
    ("data.csv_train (an entry with a weight)", schema.WeightedTable),
    ("data.input", ImageInput),
    ("data.synthetic", schema.SyntheticScenes),
    ("paths", schema.Paths),
    ("models", schema.ModelSettings),
    *(
        (f"models.resampler_config (resampler_type: {found.name})", found.settings)
        for found in BUILT_IN
    ),
    ("image_processing", schema.ImageProcessing),
    ("lora", schema.LoRASettings),
    ("generation", schema.Generation),
    ("system_messages", schema.SystemMessages),
    ("training", schema.Training),
    ("training.stage_configs.STAGE", schema.StageConfig),
    ("training.stage_configs.STAGE.trainable", schema.Trainable),
    ("training.stage_configs.STAGE.data", schema.StageData),
)

SPECIAL_KINDS = {
    "resampler_type": ", ".join(f"`{found.name}`" for found in BUILT_IN),
    "image_size": "integer ≥ 1, or a list of two: height, width",
    "csv_train": "path, block `{path, weight}`, or list of both",
    "csv_val": "path or list of paths",
    "csv_test": "path or list of paths",
}
"""Fields that are read more liberally than their type tells."""
SPECIAL_DEFAULTS = {
    "resampler_config": "the preset of `resampler_type`",
    "stages": "all three",
}
WORDS = {int: "integer", float: "number", bool: "true or false", str: "text"}
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for name, model in BLOCKS:
        parts.append(f"## {name}\n\n{_sentence(inspect.getdoc(model) or '')}\n")
        parts.append("\n".join(_table(model)) + "\n" if model.model_fields else "No fields.\n")
    return "\n".join(parts)


def _table(model: type[StrictModel]) -> Iterator[str]:
    """Yield the lines of one block's table; that of a resampler tells what weights show."""
    shown = next((found.observability for found in BUILT_IN if found.settings is model), None)
    yield "| field | type | default | meaning |" + (" in the weights |" if shown else "")
    yield "|---|---|---|---|" + ("---|" if shown else "")
    for name, info in model.model_fields.items():
        kind = SPECIAL_KINDS.get(name) or _kind(info.annotation, info.limits)
        meaning = _sentence(_meanings(model).get(name, ""))
        row = f"| `{name}` | {kind} | {_default(name, info)} | {meaning} |"
        yield f"{row} {shown[name]} |" if shown else row


def _kind(annotation: Any, limits: Limits = UNLIMITED) -> str:
    """Say what values a type takes."""
    inner = get_args(annotation)
    match get_origin(annotation):
        case typing.Annotated:
            return _kind(inner[0], next((n for n in inner if isinstance(n, Limits)), limits))
        case typing.Union | types.UnionType:
            kinds = [_kind(member, limits) for member in inner if member is not types.NoneType]
            return " or ".join(dict.fromkeys(kinds))
        case typing.Literal:
            return ", ".join(f"`{value}`" for value in inner)
        case builtins.tuple if inner[-1] is ...:
            return f"list of {_kind(inner[0])}s".replace("texts", "text")
        case builtins.tuple:
            return f"list of {len(inner)}: {_kind(inner[0])}"
        case builtins.dict:
            return "block" if inner[1] is Any else "block per name, see below"
        case _:
            word = WORDS.get(annotation)
            return word + _limits(limits) if word else "block, see below"


def _limits(limits: Limits) -> str:
    found = limits._asdict()
    told = [f"{sign} {found[key]:g}" for key, sign in LIMITS.items() if found[key] is not None]
    return f" {', '.join(told)}" if told else ""


def _default(name: str, info: FieldInfo) -> str:
    """Return a field's default as it would be written in YAML."""
    if name in SPECIAL_DEFAULTS:
        return SPECIAL_DEFAULTS[name]
    if info.default is MISSING:
        return "*required*" if info.is_required else ""
    if info.default is None:
        return "unset"
    return f"`{json.dumps(info.default, ensure_ascii=False)}`"


@cache
def _meanings(model: type[StrictModel]) -> dict[str, str]:
    """Return the text that stands below each field in the class, by field."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _sentence(text: str) -> str:
    """Return the first paragraph on one line, as Markdown."""
    line = " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")
    line = re.sub(r":class:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", line)
    return line.replace("``", "`")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
