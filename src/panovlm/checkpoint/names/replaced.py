"""Modules that PEFT trained as a whole beside adapters, in the place of the model's own.

With ``modules_to_save`` a state dict holds both. A folder of adapters holds the trained ones alone,
for the place of those in another file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from panovlm.models.language.adapters import strip_lora_name

_SAVED = ".modules_to_save."
_TRAINED = re.compile(r"(?P<module>.+)\.modules_to_save\.[^.]+\.(?P<rest>.+)")
_ORIGINAL = re.compile(r"(?P<module>.+)\.original_module\.(?P<rest>.+)")
LANGUAGE_MODEL = "language_model."


def as_trained(name: str) -> str:
    """Return the name that a tensor has in the model where its module was trained as a whole.

    >>> as_trained("projector.modules_to_save.default.linear.bias")
    'projector.linear.bias'
    """
    if _SAVED not in name:
        return name  # nearly always
    return _joined(_TRAINED.fullmatch(name)) or name


def replaced(names: Mapping[str, str], brought: Collection[str]) -> set[str]:
    """Return the tensors in whose place others were trained.

    Args:
        names: name in the file → the same without what other wrappers put into it.
        brought: tensors of the language model that a folder of adapters has, by its names.
    """
    trained = {
        as_trained(name) for name in names.values() if _SAVED in name and _TRAINED.fullmatch(name)
    }
    inside = {strip_lora_name(name).name for name in brought}
    if not trained and not inside:
        return set()
    return {
        stored
        for stored, name in names.items()
        if _joined(_ORIGINAL.fullmatch(name)) in trained
        or (
            name.startswith(LANGUAGE_MODEL)
            and strip_lora_name(name.removeprefix(LANGUAGE_MODEL)).name in inside
        )
    }


def _joined(found: re.Match[str] | None) -> str | None:
    return f"{found['module']}.{found['rest']}" if found else None
