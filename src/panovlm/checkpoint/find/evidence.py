"""Whether adapters are merged into weights, told by comparing these with the model they adapt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from panovlm.checkpoint.find.locate import WHOLE_MODELS
from panovlm.checkpoint.formats import load_tensors
from panovlm.checkpoint.names.keymap import KeyMap
from panovlm.checkpoint.names.keys import LANGUAGE_MODEL
from panovlm.checkpoint.settle.backbone_files import named_file
from panovlm.models.language.adapters import ADAPTER_PARTS, strip_lora_name

if TYPE_CHECKING:
    from torch import Tensor

    from panovlm.checkpoint.find.adapters import Part

COMPARED = 6
"""Adapted layers that are compared: those with the largest change. Merging changes all of them."""


class Verdict(Enum):
    """What the weights tell about adapters beside them."""

    FRESH = "their B is zero everywhere"
    APART = "the weights are those of the model that was adapted"
    MERGED = "merged"
    UNDECIDED = "undecided"


class _Change(NamedTuple):
    """What is adapted about a layer: two matrices, and with DoRA the lengths of the rows."""

    down: Tensor
    up: Tensor
    lengths: Tensor | None

    def put_on(self, weight: Tensor, scale: float) -> Tensor:
        """Return the weight ``[out, in]`` as it is after merging, in float32."""
        merged = weight.float() + scale * (self.up.float() @ self.down.float())
        if self.lengths is None:
            return merged
        return merged * (self.lengths.float() / merged.norm(dim=1))[:, None]


def compare(
    keys: KeyMap, weights: Callable[[], Mapping[str, Tensor]], part: Part, scale: float, base: str
) -> Verdict:
    """Compare the weights under adapters with the model that these were made for.

    Only the layers with the largest changes are read.

    Args:
        keys: names of the checkpoint.
        weights: maps its tensors.
        part: the adapters.
        scale: alpha / rank of the adapters.
        base: folder or hub id of the model; only files on this machine are looked at.
    """
    changes = _changes(part)
    if not any(bool(change.up.any()) for change in changes.values()):
        return Verdict.FRESH
    files = [found for name in WHOLE_MODELS if (found := named_file(base, name)) is not None]
    if not files:
        return Verdict.UNDECIDED
    before, now = load_tensors(files[0]), weights()
    largest = sorted(changes, key=lambda name: -float(changes[name].up.float().norm()))[:COMPARED]
    verdicts: set[Verdict] = set()
    for name in largest:
        stored, original = keys.files.get(LANGUAGE_MODEL + name), before.get(name)
        if stored is None or original is None or original.shape != now[stored].shape:
            return Verdict.UNDECIDED
        merged = changes[name].put_on(original, scale)
        verdicts.add(_verdict(now[stored], original, merged))
    return verdicts.pop() if len(verdicts) == 1 else Verdict.UNDECIDED


def _changes(part: Part) -> dict[str, _Change]:
    """Return the adapter's tensors by the name of the weight that they change."""
    tensors = load_tensors(part.path)
    pairs: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for stored in part.names.values():
        name = strip_lora_name(stored)
        if name.part in ADAPTER_PARTS:
            pairs[f"{name.module}.weight"][name.part] = tensors[stored]
    return {
        name: _Change(parts["lora_A"], parts["lora_B"], parts.get("lora_magnitude_vector"))
        for name, parts in pairs.items()
        if parts.keys() >= {"lora_A", "lora_B"}
    }


def _verdict(now: Tensor, before: Tensor, merged: Tensor) -> Verdict:
    """Tell whether a weight is the one before merging, the one after, or neither.

    The one before must be met bit by bit. The one after was rounded where it was computed, in the
    coarser of the two types.
    """
    import torch

    if torch.equal(now, before.to(now.dtype)):
        return Verdict.APART
    rounding = max(torch.finfo(kind).eps for kind in (now.dtype, before.dtype))
    change = merged - before.float()
    tolerance = 2 * rounding * (before.float().abs() + change.abs())
    close = (now.float() - merged).abs() <= tolerance
    return Verdict.MERGED if bool(close.all()) else Verdict.UNDECIDED
