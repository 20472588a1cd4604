"""Names of LoRA adapters in a checkpoint, and what their shapes tell. No torch is needed here."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from panovlm.checkpoint.shapes import Observations, Shapes
from panovlm.errors import CheckpointError, ContradictionError

_WRAPPER = "base_model.model."
_MATRIX = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB])(\.(?P<adapter>[^.]+))?\.weight")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_USUAL_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoRAName:
    """A tensor name without what PEFT adds to it."""

    name: str
    """Name in the plain language model; of an adapter, the adapted module's name followed by
    ``.lora_A.weight`` or ``.lora_B.weight``."""
    part: Literal["plain", "base_layer", "lora_A", "lora_B"]
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
    matrix = _MATRIX.fullmatch(plain)
    if matrix:
        part: Literal["lora_A", "lora_B"] = "lora_A" if matrix["part"] == "lora_A" else "lora_B"
        return LoRAName(f"{matrix['module']}.{part}.weight", part, matrix["adapter"])
    parts = plain.split(".")
    if len(parts) > 2 and parts[-2] == "base_layer":
        return LoRAName(".".join([*parts[:-2], parts[-1]]), "base_layer")
    return LoRAName(plain, "plain")


def infer_lora(shapes: Shapes) -> Observations | None:
    """Read the adapter settings off a language model's weights.

    Observed are ``rank`` and ``target_modules`` (last components of the adapted modules' names,
    those of the decoder layers in their usual order). ``alpha`` and ``dropout`` leave no trace.

    Args:
        shapes: names below ``language_model.`` as they stand in the file, or those of a PEFT
            adapter file.

    Returns:
        None if there are no adapters.

    Raises:
        CheckpointError: there are adapters of another kind than LoRA on Linear layers.
        ContradictionError: the matrices do not fit together or to the weights they adapt, or
            they cover some layers only.
    """
    matrices, weights = _sort(shapes)
    if not matrices:
        return None
    observed = Observations(shapes)
    first = min(matrices)
    for module, pair in sorted(matrices.items()):
        if len(pair) != 2:
            raise ContradictionError(
                f"{shapes.prefix}{next(iter(pair.values()))}: lora_A and lora_B of a module "
                "belong together, but the other one is absent. The checkpoint is incomplete."
            )
        if module != first:
            _check(shapes, pair, weights.get(module), rank=observed["rank"].value)
        else:
            observed.add("rank", shapes.dim(pair["lora_A"], 0))
            _check(shapes, pair, weights.get(module), rank=observed["rank"].value)
    targets = {module.rsplit(".", 1)[-1] for module in matrices}
    _require_every_layer(shapes, targets, set(matrices), set(weights))
    usual = [target for target in _USUAL_ORDER if target in targets]
    observed.add(
        "target_modules",
        (*usual, *sorted(targets.difference(usual))),
        f"modules with lora_A below {shapes.prefix or 'the root'}",
    )
    return observed
