"""Writes docs/settings.md from the settings classes: ``python docs/make_settings.py``.

Types, limits and defaults come from the classes, meanings from the text below each field.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from panovlm.config import schema
from panovlm.config.image_input import ImageInput
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

BLOCKS: tuple[tuple[str, type[BaseModel]], ...] = (
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
"""Fields that are read more liberally than their JSON schema tells."""
SPECIAL_DEFAULTS = {
    "resampler_config": "the preset of `resampler_type`",
    "stages": "all three",
}
WORDS = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text"}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for name, model in BLOCKS:
        parts.append(f"## {name}\n\n{_sentence(inspect.getdoc(model) or '')}\n")
        parts.append("\n".join(_table(model)) + "\n" if model.model_fields else "No fields.\n")
    return "\n".join(parts)


def _table(model: type[BaseModel]) -> Iterator[str]:
    """Yield the lines of one block's table; that of a resampler tells what weights show."""
    shown = next((found.observability for found in BUILT_IN if found.settings is model), None)
    yield "| field | type | default | meaning |" + (" in the weights |" if shown else "")
    yield "|---|---|---|---|" + ("---|" if shown else "")
    document = model.model_json_schema(mode="validation")
    definitions = document.get("$defs", {})
    for name, info in model.model_fields.items():
        kind = SPECIAL_KINDS.get(name) or _kind(document["properties"][name], definitions)
        meaning = _sentence(_meanings(model).get(name, ""))
        row = f"| `{name}` | {kind} | {_default(name, info)} | {meaning} |"
        yield f"{row} {shown[name]} |" if shown else row


def _kind(found: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Say what values a field takes, from its JSON schema."""
    if "$ref" in found:
        return "block, see below"
    if "anyOf" in found:
        kinds = [_kind(part, definitions) for part in found["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in found or "const" in found:
        values = found.get("enum", [found.get("const")])
        return ", ".join(f"`{value}`" for value in values)
    if "prefixItems" in found:
        inner = _kind(found["prefixItems"][0], definitions)
        return f"list of {len(found['prefixItems'])}: {inner}"
    match found.get("type"):
        case "array":
            return f"list of {_kind(found['items'], definitions)}s".replace("texts", "text")
        case "object":
            named = isinstance(found.get("additionalProperties"), dict)
            return "block per name, see below" if named else "block"
        case kind:
            return WORDS[str(kind)] + _limits(found)


def _limits(found: Mapping[str, Any]) -> str:
    limits = [f"{sign} {found[key]:g}" for key, sign in LIMITS.items() if key in found]
    return f" {', '.join(limits)}" if limits else ""


def _default(name: str, info: FieldInfo) -> str:
    """Return a field's default as it would be written in YAML."""
    if name in SPECIAL_DEFAULTS:
        return SPECIAL_DEFAULTS[name]
    if info.default is PydanticUndefined:
        return "*required*" if info.is_required() else ""
    if info.default is None:
        return "unset"
    return f"`{json.dumps(info.default, ensure_ascii=False)}`"


@cache
def _meanings(model: type[BaseModel]) -> dict[str, str]:
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
