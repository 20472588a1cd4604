"""Deciding every field of a recipe by the order of trust, and what contradicts the weights.

The backbones' configurations are decided in :mod:`panovlm.checkpoint.settle.backbones`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from panovlm.checkpoint.documents.adapter_config import assumed_alpha
from panovlm.checkpoint.documents.original import CERTAIN
from panovlm.checkpoint.documents.recipe_record import LABELS
from panovlm.checkpoint.documents.sources import Claims
from panovlm.checkpoint.fields import RESAMPLER, defaults, typed
from panovlm.checkpoint.resolution import Conflict, Source
from panovlm.checkpoint.settle.backbone_files import vision_part
from panovlm.checkpoint.settle.backbones import (
    BACKBONES,
    VISION,
    settle_backbone,
    settle_image_size,
)
from panovlm.checkpoint.settle.infer import Inferred
from panovlm.checkpoint.settle.settling import OVERRIDE, Settling, plain, source_of
from panovlm.checkpoint.settle.shapes import Observed
from panovlm.config.fields import canonical_type
from panovlm.config.legacy import ORIGINAL_DEFAULTS
from panovlm.config.model_recipe import TargetPreset
from panovlm.errors import CheckpointError

TYPE = "models.resampler_type"
LAYOUT = "models.layout"
TARGETS = "lora.target_modules"
ALPHA = "lora.alpha"


def settle(settling: Settling) -> None:
    """Decide the type of the resampler, then every field that this type has."""
    _settle_type(settling)
    _check_dialect(settling)
    settling.conflicts += _rivals(settling)
    known = defaults(_architecture(settling))
    if settling.keys.layout == "original":
        known |= {name: value for name, value in ORIGINAL_DEFAULTS.items() if name in known}
    known[LAYOUT] = settling.keys.layout
    for name, default in known.items():
        if name not in BACKBONES and name != TYPE:
            _settle_field(settling, name, default)
    for name in BACKBONES:
        settle_backbone(settling, name)
    settle_image_size(settling)


def _settle_type(settling: Settling) -> None:
    """Decide the architecture; one that nobody knows leaves the word to the weights."""
    _settle_field(settling, TYPE, "mlp")
    if canonical_type(settling.values[TYPE]) is None:
        observed = settling.inferred.fields[TYPE]
        settling.set(TYPE, observed.value, Source("weights", observed.evidence))


def _architecture(settling: Settling) -> str:
    """Return the canonical architecture, as far as it is decided."""
    decided = canonical_type(settling.values.get(TYPE))
    return decided or settling.inferred.resampler.name


def _check_dialect(settling: Settling) -> None:
    """Refuse a dialect of the resampler's names that leaves open what nobody states.

    Raises:
        CheckpointError: a setting must be stated.
    """
    dialect = settling.keys.dialect
    for field, reason in (dialect.undecided if dialect else {}).items():
        name = f"{RESAMPLER}.{field}"
        if settling.claim(name) is None:
            raise CheckpointError(f"{reason}. Say which it was: --set {name}=VALUE.")


def _settle_field(settling: Settling, name: str, default: Any) -> None:
    """Give one field its value and source."""
    claim, observed = settling.claim(name), settling.inferred.fields.get(name)
    if claim is None:
        if observed is None:
            _settle_default(settling, name, default)
        else:
            settling.set(name, observed.value, Source("weights", observed.evidence))
        return
    value = typed(name, claim.values[name], _architecture(settling))
    source = source_of(claim, name)
    if observed is not None and claim.among_weights and plain(value) == plain(observed.value):
        source = Source("weights", observed.evidence)
    if observed is not None and not _agrees(settling.inferred, name, value, observed):
        value = settling.contradict(name, value, claim.origin, observed)
        if settling.preferred(name) == "weights":
            source = Source("weights", observed.evidence)
    elif observed is not None and name == TARGETS:
        same = not isinstance(value, str) and set(value) == set(observed.value)
        value = value if same else observed.value
    settling.set(name, value, source, assumed=observed is None and name in claim.assumed)


def _settle_default(settling: Settling, name: str, default: Any) -> None:
    """Take the default of a field that nobody states and no shape shows."""
    original = settling.keys.layout == "original"
    detail = f"default of {'the original system' if original else 'PanoVLM'}"
    section = name.split(".")[0]
    closed = next((claim.origin for claim in settling.claims if section in claim.closed), None)
    if closed is not None:
        detail += f"; {closed} says nothing else"
    rank = settling.inferred.fields.get("lora.rank")
    if name == ALPHA and rank is not None and not original and not _mentions_lora(settling):
        default = assumed_alpha(settling.keys.layout, rank.value)
        detail = "twice the rank, as is usual"
    certain = closed is not None or (original and name in CERTAIN) or name == LAYOUT
    settling.set(name, default, Source("default", detail), assumed=not certain)


def _mentions_lora(settling: Settling) -> bool:
    """Tell whether a document says anything about adapters, and left out what it does not say."""
    documents = (claim for claim in settling.claims if claim.origin != OVERRIDE)
    return any(name.startswith("lora.") for claim in documents for name in claim.values)


def _agrees(inferred: Inferred, name: str, claimed: Any, observed: Observed) -> bool:
    """Tell whether a claim can be true of these weights."""
    if name.startswith(f"{RESAMPLER}."):
        return inferred.resampler.agrees(name.removeprefix(f"{RESAMPLER}."), claimed, inferred.seen)
    if name == TYPE:
        return canonical_type(claimed) == observed.value
    if name == TARGETS:
        if isinstance(claimed, str):  # a preset; the weights show which layers it met
            return claimed in get_args(TargetPreset)
        # A target that names no layer of this language model was never adapted.
        return {str(target).rpartition(".")[2] for target in claimed} >= set(observed.value)
    return bool(plain(claimed) == plain(observed.value))


def _rivals(settling: Settling) -> list[Conflict]:
    """Return the fields that two documents of this format state differently.

    What the weights keep of the settings is compared with every document, of whatever format.
    """
    claims = [claim for claim in settling.claims if claim.origin != OVERRIDE]
    own = [claim for claim in claims if claim.document is not None][:2]
    pairs = [(own[0], own[1])] if len(own) == 2 else []
    record = next((claim for claim in claims if claim.among_weights), None)
    if record is not None:
        pairs += [(claim, record) for claim in claims if claim is not record]
    found: dict[str, Conflict] = {}
    for first, second in pairs:
        for name in first.values.keys() & second.values.keys() - settling.inferred.fields.keys():
            if settling.preferred(name) is None and settling.claim(name) is first:
                for full, value, other in _differing(settling, name, first, second):
                    conflict = Conflict(
                        full, value, first.origin, other, second.origin, possible=True
                    )
                    found.setdefault(full, conflict)
    return [found[name] for name in sorted(found)]


def _differing(
    settling: Settling, name: str, first: Claims, second: Claims
) -> Iterator[tuple[str, Any, Any]]:
    """Yield a field that two documents state differently, a backbone's configuration by its keys.

    What the weights keep has no labels, and perhaps not the keys of another version.
    """
    value, other = (typed(name, c.values[name], _architecture(settling)) for c in (first, second))
    single = name in BACKBONES and second.among_weights and value and other
    pairs = [(name, value, other)]
    if single:
        value = vision_part(value) if name == VISION else value
        keys = (value.keys() & other.keys()) - LABELS
        pairs = [(f"{name}.{key}", value[key], other[key]) for key in keys]
    for full, one, another in pairs:
        if full not in settling.inferred.fields and plain(one) != plain(another):
            yield full, one, another
