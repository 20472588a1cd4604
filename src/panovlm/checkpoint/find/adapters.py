"""Adapters in a folder of their own (PEFT's layout), and whether they belong to a checkpoint.

The original system writes ``lora_weights/`` beside a checkpoint that holds the same adapters; there
the folder is only read for their scale. A checkpoint without adapters may need those of the folder,
or may have them merged into its weights already. That is decided by evidence or by the caller,
never guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from panovlm.checkpoint.documents.adapter_config import (
    assumed_alpha,
    base_model,
    lora_fields,
    read_adapter_config,
    require_base_as_named,
    trained_modules,
)
from panovlm.checkpoint.find.locate import ADAPTER_FILES, Location
from panovlm.checkpoint.formats import TensorInfo, load_tensors, read_header
from panovlm.checkpoint.names.averages import Weights
from panovlm.checkpoint.names.keymap import KeyMap
from panovlm.checkpoint.names.keys import LANGUAGE_MODEL
from panovlm.checkpoint.settle.infer import is_token_table
from panovlm.config.model_recipe import Layout
from panovlm.errors import CheckpointError
from panovlm.models.language.adapters import ADAPTER_PARTS, strip_lora_name


@dataclass(frozen=True)
class Part:
    """A second file whose tensors belong to a checkpoint.

    Attributes:
        path: the file.
        names: name under which a tensor joins the checkpoint → name in its file.
        places: name under which it joins → the model's name.
        tensors: shapes and types by the joining name.
        trained: joining names of whole modules that were trained with the adapters, in the place of
            those of the model.
    """

    path: Path
    names: Mapping[str, str]
    places: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    trained: frozenset[str]


def find_adapters(
    location: Location,
    keys: KeyMap,
    *,
    weights: Weights | None,
    stated: bool | None,
    base: str | None,
) -> tuple[Part | None, list[str]]:
    """Return the adapters of another file that belong to a checkpoint, and notes.

    Args:
        location: the checkpoint and its companions.
        keys: names of the checkpoint file.
        weights: which copy of its weights is meant.
        stated: what the caller, or else the checkpoint's own document, says about
            ``lora.use_lora``.
        base: the language model that the caller names.

    Raises:
        CheckpointError: the folder cannot be read, its adapters are of another kind, or nothing
            tells whether they belong to the weights.
    """
    inside = [n.removeprefix(LANGUAGE_MODEL) for n in keys.files if n.startswith(LANGUAGE_MODEL)]
    stripped = [strip_lora_name(name) for name in inside]
    folder, file = location.adapters, location.checkpoint
    if any(name.part in ADAPTER_PARTS for name in stripped):
        return None, [f"{folder.name}/ is not used: the file has adapters"] if folder else []
    marked = any(name.part == "base_layer" for name in stripped)
    if folder is None or stated is False:
        if marked:
            raise CheckpointError(_lost(file))
        return None, [f"{folder.name}/ is not used: there shall be no adapters"] if folder else []
    part = read_adapters(folder)
    if not marked:
        require_base_as_named(read_adapter_config(folder), folder)
    if stated or marked or not any(not is_token_table(name.name) for name in stripped):
        return part, [f"adapters from {part.path}"]
    from panovlm.checkpoint.find.evidence import Verdict, compare

    base = base or base_model(read_adapter_config(folder))
    scale = _scale(part, keys.layout)
    verdict = compare(keys, lambda: load_tensors(file, weights), part, scale, base)
    if verdict is Verdict.UNDECIDED:
        raise CheckpointError(_undecided(file, folder))
    if verdict is Verdict.MERGED:
        return None, [f"the adapters in {folder} are merged into the weights already"]
    return part, [f"adapters from {part.path}: {verdict.value}"]


def _scale(part: Part, layout: Layout) -> float:
    """Return alpha / rank of adapters.

    The rank is that of any of them: one rank for all is checked when the model is built.

    Raises:
        CheckpointError: there is no first matrix among them.
    """
    down = [name for name in part.tensors if strip_lora_name(name).part == "lora_A"]
    if not down:
        raise CheckpointError(
            f"{part.path} holds lora_B only; lora_A and lora_B belong together. The file is "
            "incomplete; save the adapters again, or leave them out with --set lora.use_lora=false."
        )
    rank = part.tensors[down[0]].shape[0]
    fields = lora_fields(read_adapter_config(part.path.parent))
    return fields.get("lora.alpha", assumed_alpha(layout, rank)) / rank


def read_adapters(folder: Path) -> Part:
    """Describe the adapters of a PEFT folder.

    Raises:
        CheckpointError: there are none, or ``adapter_config.json`` describes another kind.
    """
    path = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{folder} holds no adapters (looked for {', '.join(ADAPTER_FILES)}). Copy them there, "
            "or say that the checkpoint has none with --set lora.use_lora=false."
        )
    modules = trained_modules(read_adapter_config(folder))
    tensors = read_header(path).tensors
    joined = {f"{folder.name}/{path.name}:{name}": name for name in tensors}
    return Part(
        path=path,
        names=joined,
        places={name: LANGUAGE_MODEL + stored for name, stored in joined.items()},
        tensors={name: tensors[stored] for name, stored in joined.items()},
        trained=frozenset(n for n, stored in joined.items() if _is_of(stored, modules)),
    )


def _is_of(stored: str, modules: Collection[str]) -> bool:
    """Tell whether a tensor is of one of the modules, which PEFT finds by the end of their names.

    Adapters are not: a module has them, or was trained as a whole.
    """
    name = strip_lora_name(stored)
    above = list(accumulate(name.module.split("."), "{}.{}".format))
    return name.part == "plain" and any(m.endswith(end) for m in above for end in modules)


def _lost(path: Path) -> str:
    return (
        f"{path} holds layers that had adapters (base_layer), but not the adapters. Put PEFT's "
        "adapter_config.json and adapter_model.safetensors into a folder lora_weights beside it."
    )


def _undecided(path: Path, folder: Path) -> str:
    return (
        f"{path} holds no adapters, but {folder} stands beside it, and nothing tells whether they "
        "are merged into the weights. If they shall be put onto the weights, say so with --set "
        "lora.use_lora=true; if they are merged or shall not be used, with --set "
        "lora.use_lora=false; or name the language model that was adapted, to have the weights "
        "compared: --set models.language_model_name=FOLDER."
    )
