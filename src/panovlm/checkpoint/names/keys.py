"""From the names in a file to the model's own names.

Wrappers (Lightning, DDP, FSDP, torch.compile, PEFT) put segments into names, trainers keep an
averaged copy of the weights beside the live ones, the original system stored two components twice,
and its older layout had other names. All of that is undone here, once, so that no other module
knows about it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from panovlm.checkpoint.names.averages import COUNTERS, LIVE, SEGMENTS, Weights, choose, is_averaged
from panovlm.checkpoint.names.dialects import resampler_dialect
from panovlm.checkpoint.names.keymap import MARKERS, KeyMap, Part
from panovlm.checkpoint.names.replaced import LANGUAGE_MODEL, as_trained, replaced
from panovlm.errors import CheckpointError, ContradictionError
from panovlm.models.language.adapters import built_names
from panovlm.models.resamplers.recipe import Dialect
from panovlm.models.vision.tower_names import current_names

COMPONENTS = (
    "vision_backbone",
    "resampler_module",
    "vicreg_projector",
    "projector",
    "text_projection",
    "language_model",
    *MARKERS,
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
_ROOTS = frozenset({*COMPONENTS, *RENAMED})
_IN_FRONT = WRAPPERS_ANYWHERE | WRAPPERS_IN_FRONT | SEGMENTS | {LIVE}
PARTS_DEEP = 2
"""How deep the parts lie that DataParallel may wrap on their own (``vision_backbone.encoder``);
further below, ``module`` is a name like any other."""
BUFFERS_REBUILT = ("position_ids", "inv_freq", "original_inv_freq")
"""Buffers that older library versions stored and today's compute when the model is built."""
FLAT = ("_flat_param", "flat_param")
"""What FSDP calls the tensor into which it has packed several, one process's share of it."""

ENCODER = "vision_backbone.encoder."
RESAMPLER_MODULE = "resampler_module.resampler."


@dataclass(frozen=True)
class Unwrapped:
    """One name without what wrappers put into it."""

    bare: str
    prefix: str
    """The segments in front of the component (``"model._orig_mod."``)."""
    averaged: bool = False
    """Whether it belongs to an averaged copy of the weights."""


@dataclass(frozen=True)
class _Home:
    """A place in the model that a tensor of the file fills."""

    name: str
    part: Part | None = None
    """Which part of the tensor belongs there; ``None``: all of it."""


@dataclass
class _Collected:
    files: dict[str, str] = field(default_factory=dict[str, str])
    parts: dict[str, Part] = field(default_factory=dict[str, Part])
    by_alias: set[str] = field(default_factory=set[str])
    """Places that are filled by a second name of theirs so far."""
    aliases: dict[str, list[str]] = field(default_factory=dict[str, list[str]])


def unwrap(name: str) -> Unwrapped:
    """Remove wrapper segments from one name."""
    segments = name.split(".")
    start = 0
    while start < len(segments) - 1 and segments[start] not in _ROOTS:
        if segments[start] not in _IN_FRONT:
            break
        start += 1
    front = segments[:start]
    bare: list[str] = []
    for segment in segments[start:]:
        parallel = segment == "module" and 0 < len(bare) <= PARTS_DEEP
        if segment not in WRAPPERS_ANYWHERE and not parallel:
            bare.append(segment)
    return Unwrapped(".".join(bare), "".join(f"{s}." for s in front), is_averaged(front))


def canonical(name: str) -> tuple[str | None, bool]:
    """Translate an unwrapped name.

    Returns:
        The model's name (``None``: no component owns it), and whether ``name`` is an alias.
    """
    root, _, rest = name.partition(".")
    if root in RENAMED and rest:
        return f"{RENAMED[root]}.{rest}", True
    return (name if root in COMPONENTS else None), False


def map_keys(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    weights: Weights | None = None,
    averaged: bool = False,
    joined: Mapping[str, str] | None = None,
    replacing: Collection[str] = (),
    file: str = "the file",
) -> KeyMap:
    """Translate every name of a file.

    Args:
        shapes: shapes by the file's own names.
        weights: which copy is meant where there are two.
        averaged: whether the names were chosen as the averaged copy already.
        joined: names in ``shapes`` that come from another file (an adapter's) → the model's name.
        replacing: names in ``joined`` that take the place of the file's own.
        file: what the names are from, for messages.

    Raises:
        CheckpointError: no name belongs to a component, two names claim one place, or it was not
            said which of two copies is meant.
        ContradictionError: an alias has another shape than its original.
    """
    joined = joined or {}
    own = {name: unwrap(name) for name in shapes if name not in joined}
    ignored = {n: "a counter of the averaged weights" for n, u in own.items() if _is_counter(u)}
    own = {name: found for name, found in own.items() if name not in ignored}
    brought = {joined[name].removeprefix(LANGUAGE_MODEL) for name in replacing}
    others = replaced({name: found.bare for name, found in own.items()}, brought)
    ignored |= dict.fromkeys(others, "replaced by a module that was trained with the adapters")
    own = _undotted({n: _as_trained(u) for n, u in own.items() if n not in others})
    meant, left_out, notes = _choose(own, weights, averaged=averaged, file=file)
    ignored |= left_out
    if others:
        notes.append(f"{len(others)} tensor(s) are replaced by what was trained with the adapters")
    places: dict[str, tuple[str, bool]] = {name: (place, True) for name, place in joined.items()}
    unknown: list[str] = []
    for stored in meant:
        name, is_alias = canonical(own[stored].bare)
        leaf = stored.rsplit(".", 1)[-1]
        if name is None:
            unknown.append(stored)
        elif leaf in BUFFERS_REBUILT:
            ignored[stored] = "a buffer that is computed when the model is built"
        elif leaf in FLAT:
            raise _sharded(stored)
        else:
            places[stored] = (name, is_alias)
    if not places:
        raise _nothing(shapes)
    found = _Collected()
    homes, dialect = _homes_of_today([place for place, _ in places.values()])
    if dialect is not None:
        notes += [
            ": ".join(filter(None, (f"the resampler has names of {dialect.name}", dialect.note)))
        ]
    for stored, (place, is_alias) in sorted(places.items(), key=lambda item: item[0] in joined):
        for home in homes[place]:
            _place(found, home, stored, is_alias=is_alias, shapes=shapes)
    return KeyMap(
        files=found.files,
        aliases={name: tuple(stored) for name, stored in found.aliases.items()},
        ignored=ignored,
        unknown=tuple(unknown),
        layout="original" if found.files.keys().isdisjoint(MARKERS) else "panovlm-1",
        prefixes=tuple(sorted({own[stored].prefix for stored in places if stored in own})),
        notes=tuple(notes),
        dialect=dialect,
        parts=found.parts,
    )


def _as_trained(name: Unwrapped) -> Unwrapped:
    bare = as_trained(name.bare)
    return name if bare == name.bare else replace(name, bare=bare)


def _is_counter(name: Unwrapped) -> bool:
    return name.averaged and name.bare.rsplit(".", 1)[-1] in COUNTERS


def _undotted(names: Mapping[str, Unwrapped]) -> dict[str, Unwrapped]:
    """Put the dots back into the names of averaged weights that were stored without.

    A buffer's name must not have dots, so that averages kept as buffers lack them (latent
    diffusion's ``LitEma``). They are those of the live weights.
    """
    if not any(name.averaged for name in names.values()):
        return dict(names)
    live = {name.bare.replace(".", ""): name.bare for name in names.values() if not name.averaged}
    return {
        stored: Unwrapped(live.get(name.bare, name.bare), name.prefix, averaged=True)
        if name.averaged and "." not in name.bare
        else name
        for stored, name in names.items()
    }


def _choose(
    names: Mapping[str, Unwrapped], weights: Weights | None, *, averaged: bool, file: str
) -> tuple[list[str], dict[str, str], list[str]]:
    """Return the names that count, why others do not, and notes about that."""
    owned = [stored for stored, name in names.items() if canonical(name.bare)[0] is not None]
    average = [stored for stored in owned if names[stored].averaged]
    apart = frozenset(average)
    live = [stored for stored in names if stored not in apart]
    if not average and (averaged or weights != "ema"):
        return live, {}, ["these are averaged weights (EMA)"] if averaged else []
    weighty = [stored for stored in owned if not names[stored].averaged]
    where = [_heads(names[n].prefix or n for n in group) for group in (weighty, average)]
    meant = choose(weights, where[0], where[1], file)
    if meant == "model":
        return live, dict.fromkeys(average, "an averaged copy; the live weights were chosen"), []
    copied = {names[stored].bare for stored in average}
    rest = [stored for stored in live if names[stored].bare not in copied]
    replaced = dict.fromkeys(set(live) - set(rest), "a live weight; its average was chosen")
    notes = ["these are averaged weights (EMA)"]
    kept = [stored for stored in weighty if names[stored].bare not in copied]
    if kept:
        parts = ", ".join(sorted({names[stored].bare.split(".", 1)[0] for stored in kept}))
        notes.append(f"{len(kept)} tensor(s) have no average and are the live ones: {parts}")
    return [*average, *rest], replaced, notes


def _place(
    found: _Collected,
    home: _Home,
    stored: str,
    *,
    is_alias: bool,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Put one tensor at its place, keeping the second of two equal names as an alias."""
    name = home.name
    other = found.files.get(name)
    if other is None:
        found.files[name] = stored
        if home.part is not None:
            found.parts[name] = home.part
        if is_alias:
            found.by_alias.add(name)
        return
    if is_alias == (name in found.by_alias) or found.parts.get(name) != home.part:
        raise CheckpointError(
            f"two tensors claim {name}: {other} and {stored}. The file holds two models; extract "
            "the one you want into a file of its own."
        )
    if shapes[other] != shapes[stored]:
        raise ContradictionError(
            f"{other} {list(shapes[other])} and {stored} {list(shapes[stored])} are two names of "
            "one tensor, but differ in shape; the checkpoint is damaged, or put together from two."
        )
    first, second = (other, stored) if is_alias else (stored, other)
    found.by_alias.discard(name)
    found.files[name] = first
    found.aliases.setdefault(name, []).append(second)


def _homes_of_today(
    names: Sequence[str],
) -> tuple[dict[str, tuple[_Home, ...]], Dialect | None]:
    """Return the places of tensors that may have older or other names, and the dialect found."""
    result: dict[str, tuple[_Home, ...]] = {name: (_Home(name),) for name in names}
    for name, today in built_names(_below(LANGUAGE_MODEL, names)).items():
        result[LANGUAGE_MODEL + name] = (_Home(LANGUAGE_MODEL + today),)
    for name in _below(ENCODER, names):
        today = [ENCODER + one for one in current_names(name)]
        cut = len(today) > 1
        result[ENCODER + name] = tuple(
            _Home(one, (number, len(today)) if cut else None) for number, one in enumerate(today)
        )
    dialect = resampler_dialect(_below(RESAMPLER_MODULE, names))
    for name, several in (dialect.names if dialect else {}).items():
        result[RESAMPLER_MODULE + name] = tuple(_Home(RESAMPLER_MODULE + one) for one in several)
    return result, dialect


def _below(prefix: str, names: Iterable[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _sharded(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is a flat parameter of FSDP, one process's share of several tensors. Save the "
        "model's full state dict (StateDictType.FULL_STATE_DICT, or Lightning's "
        "FSDPStrategy(state_dict_type='full'))."
    )


def _nothing(names: Iterable[str]) -> CheckpointError:
    return CheckpointError(
        "no tensor belongs to a PanoVLM model; names start with "
        f"{_heads(names)}, expected one of {', '.join(COMPONENTS)} (wrappers such as model. "
        "or module. are removed). This is a checkpoint of something else."
    )


def _heads(names: Iterable[str]) -> str:
    """Return the first few distinct beginnings of names, for a message."""
    heads = sorted({".".join(name.split(".")[:2]) for name in names})
    return ", ".join(heads[:5]) + (", ..." if len(heads) > 5 else "")
