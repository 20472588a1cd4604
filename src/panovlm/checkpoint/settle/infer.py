"""Layer 2: what the shapes of the weights say about the model, component by component."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from panovlm.checkpoint.fields import RESAMPLER
from panovlm.checkpoint.settle.shapes import Observations, Observed, Shapes
from panovlm.errors import CheckpointError, ContradictionError
from panovlm.models.language.families import infer_language, infer_lora, strip_lora_name
from panovlm.models.resamplers import ResamplerRecipe, recipes
from panovlm.models.vision.heads import infer_heads, infer_projection, infer_vicreg_projector
from panovlm.models.vision.towers import infer_tower

WIDTHS = ("vision_dim", "language_dim", "input_dim")
"""Observed widths that are no settings: they are cross-checked and left out of the fields."""
TOKEN_TABLES = ("embed_tokens", "wte", "embed_in", "word_embeddings", "lm_head", "embed_out")
"""What language models call their token embeddings, or else their output layer."""


@dataclass
class Inferred:
    """The settings that shapes tell.

    Attributes:
        fields: dotted recipe field → value and evidence.
        assumed: fields of the backbones' configurations that shapes cannot tell, and the value of
            their family that is taken when nothing else is known.
        resampler: the architecture that claims the file.
        seen: its own observations.
        dropped: tensors that today's model has no place for and does not need.
        overruled: fields about what is dropped; what documents say of them does not count.
        unrecognised: backbones of no known family, with the reason. Their configuration must be
            stated; the proof then decides whether it is the right one.
        absent: backbones without a weight in the file (adapters and token tables do not count).
        candidates: backbones that have the sizes of released models, with a note that names them.
        notes: what the reader should know.
    """

    resampler: ResamplerRecipe
    seen: Observations
    fields: dict[str, Observed] = field(default_factory=dict[str, Observed])
    assumed: dict[str, Any] = field(default_factory=dict[str, Any])
    dropped: tuple[str, ...] = ()
    overruled: frozenset[str] = frozenset()
    unrecognised: dict[str, str] = field(default_factory=dict[str, str])
    absent: set[str] = field(default_factory=set[str])
    candidates: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])


def infer(shapes: Shapes, partial: Collection[str] = (), brought: Collection[str] = ()) -> Inferred:
    """Read every observable setting off the shapes of a whole model.

    Args:
        shapes: shapes under the model's own names, from
            :func:`panovlm.checkpoint.names.keys.map_keys`.
        partial: backbones (fields of their configurations) of which some weights are elsewhere, so
            that those in the file tell nothing about the whole.
        brought: tensors of whole modules that adapters bring along for a language model, which do
            not tell that its own weights are there.

    Raises:
        CheckpointError: a component is absent, or none or several architectures claim it.
        ContradictionError: tensors do not fit together.
    """
    resampler = shapes.under("resampler_module.resampler.")
    architecture = claimant(resampler)
    seen = architecture.infer(resampler)
    result = Inferred(resampler=architecture, seen=seen)
    projection = infer_projection(shapes.under("projector."))
    _infer_resampler(result, projection)
    _infer_tower(result, shapes, partial)
    _infer_language(result, shapes, projection, partial, brought)
    _infer_heads(result, shapes)
    return result


def claimant(shapes: Shapes) -> ResamplerRecipe:
    """Return the one architecture that claims the resampler's tensors.

    Raises:
        CheckpointError: none or several do; the message says what each was missing.
    """
    place = shapes.prefix.rstrip(".")
    reasons = {name: found.missing(shapes) for name, found in recipes().items()}
    claims = [name for name, missing in reasons.items() if not missing]
    if len(claims) == 1:
        return recipes()[claims[0]]
    if claims:
        raise CheckpointError(
            f"the tensors of {place} fit several resamplers ({', '.join(claims)}); "
            "their recipes must tell each other apart."
        )
    if not len(shapes):
        raise CheckpointError(
            f"the checkpoint has no resampler (no tensor of {place}); it is incomplete."
        )
    nearest = max(recipes(), key=lambda name: _share_present(recipes()[name], shapes))
    raise CheckpointError(
        f"no registered resampler has the tensors of {place}. Nearest is {nearest!r}: "
        f"{'; '.join(reasons[nearest][:3])}. Known: {', '.join(sorted(recipes()))}; others come "
        "with the package that defines them."
    )


def _share_present(architecture: ResamplerRecipe, shapes: Shapes) -> float:
    """Return how much of what an architecture must have is there."""
    return sum(name in shapes for name in architecture.has) / len(architecture.has)


def _infer_resampler(result: Inferred, projection: Observations) -> None:
    """Take over the resampler's fields and check its width against the projection."""
    name = result.resampler.name
    evidence = ", ".join(f"resampler_module.resampler.{key}" for key in result.resampler.has)
    result.fields["models.resampler_type"] = Observed(name, evidence)
    for key, observed in result.seen.items():
        if key == "latent_dimension":
            _agree("latent_dimension", observed, projection["latent_dimension"])
            result.fields["models.latent_dimension"] = observed
        elif key not in WIDTHS:
            result.fields[f"{RESAMPLER}.{key}"] = observed


def _infer_tower(result: Inferred, shapes: Shapes, partial: Collection[str]) -> None:
    """Take over the tower's configuration and check its width against the resampler."""
    section = "models.vision_config"
    subtree = shapes.under("vision_backbone.encoder.")
    if _is_elsewhere(result, section, subtree, partial):
        return
    try:
        tower = infer_tower(subtree)
    except ContradictionError:
        raise
    except CheckpointError as error:
        result.unrecognised[section] = str(error)
        return
    result.fields[f"{section}.model_type"] = Observed(tower.family, "names of the tensors")
    _take_backbone(result, section, tower.observed, tower.assumed)
    _name_candidates(result, section, tower.candidates)
    _agree("vision width", tower.observed["hidden_size"], result.seen["vision_dim"])


def _infer_language(
    result: Inferred,
    shapes: Shapes,
    projection: Observations,
    partial: Collection[str],
    brought: Collection[str],
) -> None:
    """Take over the language model's configuration and adapters; check the projection's width."""
    section = "models.language_config"
    subtree = shapes.under("language_model.")
    adapters = infer_lora(subtree)
    result.fields["lora.use_lora"] = Observed(
        adapters is not None,
        f"{subtree.prefix}…lora_A {'present' if adapters else 'absent'}",
    )
    for key, observed in (adapters or {}).items():
        result.fields[f"lora.{key}"] = observed
    plain = _without_adapters(subtree)
    others = {strip_lora_name(name.removeprefix(subtree.prefix)).name for name in brought}
    body = [name for name in plain if not is_token_table(name) and name not in others]
    if _is_elsewhere(result, section, body, partial):
        _infer_vocabulary(result, plain, projection["language_dim"].value)
        return
    try:
        language = infer_language(plain)
    except ContradictionError:
        raise
    except CheckpointError as error:
        result.unrecognised[section] = str(error)
        _infer_vocabulary(result, plain, projection["language_dim"].value)
        return
    _take_backbone(result, section, language.observed, language.assumed)
    _name_candidates(result, section, language.candidates, language.disputed)
    result.fields[f"{section}.vocab_size"] = language.observed["vocab_size"]
    _agree("language-model width", language.observed["hidden_size"], projection["language_dim"])


def _is_elsewhere(result: Inferred, section: str, names: Sized, partial: Collection[str]) -> bool:
    """Tell whether the weights of a backbone are (in part) in no file of the checkpoint."""
    if not len(names):
        result.absent.add(section)
    if not len(names) or section in partial:
        result.unrecognised[section] = (
            f"the checkpoint does not hold the weights that would tell {section}, and nobody "
            f"states it; give it with --set {section}=JSON."
        )
        return True
    return False


def is_token_table(name: str) -> bool:
    """Tell whether a tensor of a language model is its token embeddings or its output layer."""
    return any(f".{name}".endswith(f".{table}.weight") for table in TOKEN_TABLES)


def _infer_vocabulary(result: Inferred, shapes: Shapes, width: int) -> None:
    """Take over the number of tokens of a language model of no known family.

    Training may have changed it, so that a stated configuration cannot tell it.
    """
    for table in TOKEN_TABLES:
        for name in shapes:
            rows, *columns = shapes[name]
            if f".{name}".endswith(f".{table}.weight") and columns == [width]:
                seen = Observed(rows, f"{shapes.prefix}{name}[0]")
                result.fields["models.language_config.vocab_size"] = seen
                return


def _without_adapters(shapes: Shapes) -> Shapes:
    """Return a language model's shapes under the names that it has without adapters."""
    plain: dict[str, tuple[int, ...]] = {}
    for name in shapes:
        stripped = strip_lora_name(name)
        if stripped.part in ("plain", "base_layer"):
            plain[shapes.prefix + stripped.name] = shapes[name]
    shapes.take_reads()
    return Shapes(plain, shapes.prefix)


def _infer_heads(result: Inferred, shapes: Shapes) -> None:
    """Take over the optional parts."""
    for key, observed in infer_heads(shapes).items():
        result.fields[f"models.{key}"] = observed
    subtree = shapes.under("vicreg_projector.")
    head = infer_vicreg_projector(subtree)
    present = head is not None
    if head is not None and head["input_dim"].value != result.seen["latent_dimension"].value:
        # Before 2025-10-14 the original's head read the tower's features. Only stage vision used
        # it, so the loaded model computes the same without it.
        present = False
        result.overruled = frozenset({"models.use_vicreg_projector"})
        result.dropped = tuple(f"{subtree.prefix}{name}" for name in subtree)
        result.notes.append(
            f"the overlap head reads {head['input_dim'].value} channels, not the resampler's "
            f"{result.seen['latent_dimension'].value}: it is of an older layout and only served "
            "training; it is left out"
        )
    result.fields["models.use_vicreg_projector"] = Observed(
        present, f"{subtree.prefix}mlp {'present' if head else 'absent'}"
    )
    if present and head is not None:
        for key, observed in head.items():
            if key not in WIDTHS:
                result.fields[f"models.{key}"] = observed


def _take_backbone(
    result: Inferred, section: str, observed: Observations, assumed: Mapping[str, Any]
) -> None:
    """Record a backbone's configuration, field by field."""
    for key, value in observed.items():
        result.fields[f"{section}.{key}"] = value
    for key, value in assumed.items():
        result.assumed[f"{section}.{key}"] = value


def _name_candidates(
    result: Inferred, section: str, candidates: Sequence[str], disputed: Sequence[str] = ()
) -> None:
    """Note which released models have the sizes of a backbone."""
    if candidates:
        note = f"{section} has the sizes of {' or '.join(candidates)}"
        if disputed:
            note += f", which differ in {', '.join(disputed)}; the first is assumed"
        result.candidates[section] = note


def _agree(what: str, one: Observed, other: Observed) -> None:
    """Check that two components see the same width."""
    if one.value != other.value:
        raise ContradictionError(
            f"two components disagree about the {what}: {one.value} ({one.evidence}) and "
            f"{other.value} ({other.evidence}). The checkpoint is put together from two models."
        )
