"""From the names in a file to the model's own names.

Wrappers (Lightning, DDP, FSDP, torch.compile) put segments into names, the original system stored
two components twice, and its older layout had other names. All of that is undone here, once, so
that no other module knows about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from panovlm.checkpoint.shapes import Shapes
from panovlm.config.schema import Layout
from panovlm.errors import CheckpointError, ContradictionError
from panovlm.models.vision.towers import current_names

COMPONENTS = (
    "vision_backbone",
    "resampler_module",
    "vicreg_projector",
    "projector",
    "text_projection",
    "language_model",
    "layout",
)
"""Attributes of the model that own tensors."""

RENAMED = {
    "vision_encoder": "vision_backbone.encoder",
    "vicreg_norm": "vision_backbone.norm",
    "resampler": "resampler_module.resampler",
    "vision_to_language_projection": "projector.linear",
}
"""Older homes and aliases of components, and where they live today."""

WRAPPERS_ANYWHERE = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_forward_module", "_checkpoint_wrapped_module"}
)
WRAPPERS_IN_FRONT = frozenset({"model", "module", "base_model"})
PARTS_DEEP = 2
"""How deep the parts lie that DataParallel may wrap on their own (``vision_backbone.encoder``);
further below, ``module`` is a name like any other."""
BUFFERS_REBUILT = ("position_ids", "inv_freq", "original_inv_freq")
"""Buffers that older library versions stored and today's compute when the model is built."""

ENCODER = "vision_backbone.encoder."


@dataclass(frozen=True)
class KeyMap:
    """The names of one checkpoint.

    Attributes:
        files: model name → name in the file.
        aliases: model name → further names in the file that hold the same tensor.
        ignored: name in the file → why it is not a weight of the model.
        unknown: names in the file that belong to no component.
        layout: which family of checkpoints the file belongs to.
        prefixes: wrappers that were removed, for the report.
        parts: model name → (number, count): it is only that one of equal parts, cut along the
            first axis, of the tensor in the file.
    """

    files: Mapping[str, str]
    aliases: Mapping[str, tuple[str, ...]]
    ignored: Mapping[str, str]
    unknown: tuple[str, ...]
    layout: Layout
    prefixes: tuple[str, ...] = ()
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
        """Return the shapes of a file under the model's names."""
        return Shapes({name: self._shape(name, shapes[file]) for name, file in self.files.items()})

    def take(self, name: str, tensors: Mapping[str, Any]) -> Any:
        """Return a tensor of the model out of those of the file."""
        stored = tensors[self.files[name]]
        if name not in self.parts:
            return stored
        number, count = self.parts[name]
        # A copy, so that the parts do not share their memory.
        return stored.chunk(count)[number].clone()

    def _shape(self, name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        if name not in self.parts:
            return stored
        count = self.parts[name][1]
        if not stored or stored[0] % count:
            raise ContradictionError(
                f"{self.files[name]} has shape {list(stored)}; {count} equal parts along its first "
                "axis were expected. The checkpoint is damaged."
            )
        return stored[0] // count, *stored[1:]


@dataclass
class _Collected:
    files: dict[str, str] = field(default_factory=dict[str, str])
    aliases: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    ignored: dict[str, str] = field(default_factory=dict[str, str])
    unknown: list[str] = field(default_factory=list[str])
    prefixes: set[str] = field(default_factory=set[str])


def unwrap(name: str) -> tuple[str, str]:
    """Remove wrapper segments from one name.

    Returns:
        The bare name, and the segments in front of the component (``"model._orig_mod."``).
    """
    segments = name.split(".")
    start = 0
    roots = {*COMPONENTS, *RENAMED}
    while start < len(segments) - 1 and segments[start] not in roots:
        if segments[start] not in WRAPPERS_ANYWHERE | WRAPPERS_IN_FRONT:
            break
        start += 1
    prefix = "".join(segment + "." for segment in segments[:start])
    bare: list[str] = []
    for segment in segments[start:]:
        parallel = segment == "module" and 0 < len(bare) <= PARTS_DEEP
        if segment not in WRAPPERS_ANYWHERE and not parallel:
            bare.append(segment)
    return ".".join(bare), prefix


def canonical(name: str) -> tuple[str | None, bool]:
    """Translate an unwrapped name.

    Returns:
        The model's name (``None``: no component owns it), and whether ``name`` is an alias.
    """
    root, _, rest = name.partition(".")
    if root in RENAMED and rest:
        return f"{RENAMED[root]}.{rest}", True
    return (name if root in COMPONENTS else None), False


def map_keys(shapes: Mapping[str, tuple[int, ...]]) -> KeyMap:
    """Translate every name of a file.

    Args:
        shapes: shapes by the file's own names.

    Raises:
        CheckpointError: no name belongs to a component, or two names claim one place.
        ContradictionError: an alias has another shape than its original.
    """
    found = _Collected()
    for stored in shapes:
        bare, prefix = unwrap(stored)
        name, is_alias = canonical(bare)
        if name is None:
            found.unknown.append(stored)
        elif name.rsplit(".", 1)[-1] in BUFFERS_REBUILT:
            found.ignored[stored] = "a buffer that is computed when the model is built"
        else:
            found.prefixes.add(prefix)
            _place(found, name, stored, is_alias=is_alias, shapes=shapes)
    if not found.files:
        raise CheckpointError(
            "no tensor belongs to a PanoVLM model; names start with "
            f"{_heads(shapes)}, expected one of {', '.join(COMPONENTS)} (wrappers such as model. "
            "or module. are removed). This is a checkpoint of something else."
        )
    files, parts = _with_current_tower_names(found.files)
    return KeyMap(
        files=files,
        aliases={name: tuple(stored) for name, stored in found.aliases.items()},
        ignored=found.ignored,
        unknown=tuple(found.unknown),
        layout="panovlm-1" if "layout" in found.files else "original",
        prefixes=tuple(sorted(found.prefixes)),
        parts=parts,
    )


def _place(
    found: _Collected,
    name: str,
    stored: str,
    *,
    is_alias: bool,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Put one tensor at its place, keeping the second of two equal names as an alias."""
    other = found.files.get(name)
    if other is None:
        found.files[name] = stored
        return
    other_is_alias = canonical(unwrap(other)[0])[1]
    if is_alias == other_is_alias:
        raise _claimed_twice(name, other, stored)
    if shapes[other] != shapes[stored]:
        raise ContradictionError(
            f"{other} {list(shapes[other])} and {stored} {list(shapes[stored])} are two names of "
            "one tensor, but differ in shape; the checkpoint is damaged."
        )
    first, second = (other, stored) if is_alias else (stored, other)
    found.files[name] = first
    found.aliases.setdefault(name, []).append(second)


def _with_current_tower_names(
    files: Mapping[str, str],
) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """Give tower tensors of older transformers versions today's names.

    Returns:
        Model name → name in the file, and the parts of tensors that are cut today.

    Raises:
        CheckpointError: a tensor is there under its name of then and of today.
    """
    result: dict[str, str] = {}
    parts: dict[str, tuple[int, int]] = {}
    for name, stored in files.items():
        todays = (name,)
        if name.startswith(ENCODER):
            todays = tuple(ENCODER + new for new in current_names(name.removeprefix(ENCODER)))
        for number, today in enumerate(todays):
            if today in result:
                raise _claimed_twice(today, result[today], stored)
            result[today] = stored
            if len(todays) > 1:
                parts[today] = (number, len(todays))
    return result, parts


def _claimed_twice(name: str, one: str, other: str) -> CheckpointError:
    return CheckpointError(
        f"two tensors claim {name}: {one} and {other}. The file holds two models; extract the one "
        "you want into a file of its own."
    )


def _heads(names: Iterable[str]) -> str:
    """Return the first few distinct beginnings of names, for a message."""
    heads = sorted({".".join(name.split(".")[:2]) for name in names})
    return ", ".join(heads[:5]) + (", ..." if len(heads) > 5 else "")
