"""Names of LoRA adapters in a checkpoint, and what their shapes tell. No torch is needed here."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Literal, cast, get_args

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.errors import CheckpointError, ContradictionError

ADAPTER = "default"
"""Name that PEFT gives an adapter for which none is chosen, as is done here."""
_WRAPPER = "base_model.model."
_MATRIX = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB])(\.(?P<adapter>[^.]+))?\.weight")
_LENGTHS = re.compile(  # PEFT's own files name the vector without a leaf
    r"(?P<module>.+)\.(?P<part>lora_magnitude_vector)(\.(?!weight$)(?P<adapter>[^.]+))?(\.weight)?"
)
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_USUAL_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


Part = Literal["lora_A", "lora_B", "lora_magnitude_vector"]
ADAPTER_PARTS: frozenset[str] = frozenset(get_args(Part))
"""What PEFT adds to a Linear layer; the vector holds the lengths of DoRA (arXiv:2402.09353)."""


@dataclass(frozen=True)
class LoRAName:
    """A tensor name without what PEFT adds to it."""

    name: str
    """Name in the plain language model; of an adapter, the adapted module's name followed by
    its part and ``.weight``."""
    part: Literal["plain", "base_layer"] | Part
    """``base_layer``: the weight or bias of an adapted Linear."""
    adapter: str | None = None
    """Name of the adapter; None where the file does not name it (PEFT's own files)."""

    @property
    def module(self) -> str:
        """Name of the module in the plain language model."""
        return self.name.rsplit(".", 1 if self.part in ("plain", "base_layer") else 2)[0]


def strip_lora_name(name: str) -> LoRAName:
    """Translate a name below ``language_model.`` to that of the plain language model.

    >>> strip_lora_name("base_model.model.model.layers.0.mlp.up_proj.base_layer.bias")
    LoRAName(name='model.layers.0.mlp.up_proj.bias', part='base_layer', adapter=None)
    """
    plain = name.removeprefix(_WRAPPER)
    found = None
    if ".lora_" in plain:
        found = _MATRIX.fullmatch(plain) or _LENGTHS.fullmatch(plain)
    if found:
        part = cast("Part", found["part"])
        return LoRAName(f"{found['module']}.{part}.weight", part, found["adapter"])
    module, _, leaf = plain.rpartition(".")
    if module.endswith(".base_layer"):
        return LoRAName(f"{module.removesuffix('base_layer')}{leaf}", "base_layer")
    return LoRAName(plain, "plain")


def built_names(names: Iterable[str]) -> dict[str, str]:
    """Return the name that each tensor has in the model that is built for it.

    Where there are adapters, these are PEFT's names with its adapter ``default``; files differ in
    the adapter's name, in the wrapper in front, and in whether adapted layers are marked. Without
    adapters only PEFT's wrapper in front goes; a layer that is marked as adapted stays so, and then
    has no place in the model.

    Args:
        names: every name below ``language_model.``, those of adapter files among them.
    """
    found = {name: strip_lora_name(name) for name in names}
    adapted = {part.module for part in found.values() if part.part in ADAPTER_PARTS}
    if not adapted:
        return {name: name if p.part == "base_layer" else p.name for name, p in found.items()}
    return {name: _WRAPPER + _in_peft(part, adapted) for name, part in found.items()}


def _in_peft(name: LoRAName, adapted: Set[str]) -> str:
    """Return PEFT's name of a tensor, without the wrapper."""
    if name.part in ADAPTER_PARTS:
        return f"{name.module}.{name.part}.{ADAPTER}.weight"
    module, _, leaf = name.name.rpartition(".")
    layer = f"{module}.base_layer" if module in adapted else module
    return f"{layer}.{leaf}" if layer else leaf


def infer_lora(shapes: Shapes) -> Observations | None:
    """Read the adapter settings off a language model's weights.

    Observed are ``rank``, ``use_dora`` and ``target_modules`` (last components of the adapted
    modules' names, those of the decoder layers in their usual order). ``alpha`` and ``dropout``
    leave no trace.

    Args:
        shapes: names below ``language_model.`` as they stand in the file, or those of a PEFT
            adapter file.

    Returns:
        None if there are no adapters.

    Raises:
        CheckpointError: there are adapters of another kind than LoRA or DoRA on Linear layers.
        ContradictionError: the matrices do not fit together or to the weights they adapt, or
            they cover some layers only.
    """
    matrices, weights = _sort(shapes)
    if not matrices:
        return None
    dora = any("lora_magnitude_vector" in parts for parts in matrices.values())
    for module, parts in matrices.items():
        pair = parts.keys() - {"lora_magnitude_vector"}
        if dora and "lora_magnitude_vector" not in parts:
            raise ContradictionError(
                f"{shapes.prefix}{module} has no lora_magnitude_vector, but others have; DoRA is "
                " on all adapted modules or on none. The checkpoint is incomplete."
            )
        if len(pair) != 2:
            raise ContradictionError(
                f"{shapes.prefix}{module} has {', '.join(sorted(parts))} only; lora_A and lora_B "
                "belong together. The checkpoint is incomplete."
            )
    observed = Observations(shapes)
    observed.add("rank", shapes.dim(matrices[min(matrices)]["lora_A"], 0))
    rank = observed["rank"].value
    for module, pair in sorted(matrices.items()):
        weight = weights.get(module)
        columns = shapes.dim(weight, 1) if weight else shapes.dim(pair["lora_A"], 1)
        rows = shapes.dim(weight, 0) if weight else shapes.dim(pair["lora_B"], 0)
        shapes.require(pair["lora_A"], (rank, columns), "[rank, in], one rank for all modules")
        shapes.require(pair["lora_B"], (rows, rank), "[out, rank], one rank for all modules")
        if dora:
            shapes.require(pair["lora_magnitude_vector"], (rows,), "[out]")
    targets = {_last(module) for module in matrices}
    for target in targets:
        _require_every_layer(shapes, target, set(matrices), set(weights))
    shapes.take_reads()
    lengths = f"lora_magnitude_vector {'present' if dora else 'absent'}"
    observed.add("use_dora", dora, f"{shapes.prefix}…{lengths}")
    usual = [target for target in _USUAL_ORDER if target in targets]
    observed.add(
        "target_modules",
        (*usual, *sorted(targets.difference(usual))),
        f"modules with a lora_A below {shapes.prefix or 'the root'}",
    )
    return observed


def _sort(shapes: Shapes) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the names in the file of every module's adapter tensors and of its own weight."""
    matrices: dict[str, dict[str, str]] = defaultdict(dict)
    weights: dict[str, str] = {}
    adapters: set[str | None] = set()
    for name in shapes:
        found = strip_lora_name(name)
        if found.part in ADAPTER_PARTS:
            matrices[found.module][found.part] = name
            adapters.add(found.adapter)
        elif ".lora_" in name:
            raise CheckpointError(
                f"{shapes.prefix}{name} belongs to an adapter that is not read here; LoRA and DoRA "
                "on Linear layers are. Merge the adapter into the language model with the tool "
                "that trained it."
            )
        elif found.name.endswith(".weight"):
            weights[found.module] = name
    if len(adapters) > 1:
        raise CheckpointError(
            f"several adapters below {shapes.prefix!r}: {sorted(map(str, adapters))}; one is "
            "expected. Remove or merge the others with the tool that trained them."
        )
    return dict(matrices), weights


def _require_every_layer(shapes: Shapes, target: str, adapted: set[str], all_: set[str]) -> None:
    """Check that ``target`` is adapted in all decoder layers, or lies outside of them."""
    layers = {_layer(module) for module in adapted | all_} - {None}
    have = {_layer(module) for module in adapted if _last(module) == target}
    if have != {None} and have != layers:
        missing = sorted(layers - have, key=str)
        raise ContradictionError(
            f"below {shapes.prefix!r}, {target} is adapted in some decoder layers but not in "
            f"{missing[:5]}; lora.target_modules means all of them."
        )


def _last(module: str) -> str:
    return module.rsplit(".", 1)[-1]


def _layer(module: str) -> int | None:
    """Return the decoder layer that a module belongs to."""
    found = _LAYER.search(module)
    return int(found[1]) if found else None
