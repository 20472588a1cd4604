"""What a run of the original system computed: its defaults, and its reading of ``config.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from panovlm.config.fields import block_at, canonical_type
from panovlm.config.legacy.draft import Draft, Translated
from panovlm.config.legacy.names import FLAT_RESAMPLER, translate
from panovlm.config.lines import Lines
from panovlm.config.model_recipe import ORIGINAL_FUSION, Recipe
from panovlm.models.resamplers import recipe

_AUTO_CAP = 2048

ORIGINAL_DEFAULTS: dict[str, Any] = {
    "models.global_view": "first_view",
    "models.use_projection_positional_encoding": False,
    "models.training_placeholder": False,
    **{f"models.{name}": value for name, value in ORIGINAL_FUSION.items()},
    "models.layout": "original",
    "image_processing.crop_strategy": "e2p",
    "image_processing.use_vision_processor": True,
    # Its trainer read missing keys as 16/32; the 32/64 of its schema never reached a model.
    "lora.rank": 16,
    "lora.alpha": 32.0,
    "generation.min_new_tokens": 5,
    "generation.do_sample": True,
    "generation.repetition_penalty": 1.1,
}
"""Dotted recipe fields whose default in the original system is not today's.

``image_processing.image_size`` is not among them: the tower's own size decides in both systems
where none is written.
"""

# A resampler_config that leaves fields out was filled from a second set of defaults, not from the
# presets. Sizes are read off the weights; these three cannot be.
_PARTIAL_LATENT_DIMENSION = 768
_PARTIAL_UNOBSERVABLE = {"dropout": 0.1, "norm_first": True}
_QFORMER_HEADS = 8


def original_run_mapping(raw: Mapping[str, Any], *, lines: Lines | None = None) -> Translated:
    """Read the ``config.yaml`` of a run of the original system as that system understood it.

    Only what the file fixes is returned, no general defaults, and only the blocks of a
    :class:`~panovlm.config.schema.Recipe`. Keys that the original ignored are left out. An
    architecture that is none of today's is returned as it is written, without its settings.

    Args:
        raw: nested mapping of the file; never modified.
        lines: where its keys were written, for notes.
    """
    draft = Draft(raw, lines)
    foreign = take_foreign_type(draft.block(("models",)))
    _fill_partial_resampler(draft)
    overridden = _views_of_stages(draft)
    translated = translate(draft.tree, lines=draft.lines)
    read = Draft(translated.mapping, translated.lines)
    read.notes += draft.notes + translated.notes
    _fix_qformer_heads(read)
    _fix_views(read, overridden)
    _fix_texts(read)
    for key, value in read.block(("training", "stage_configs", "finetune", "lora")).items():
        read.put(("lora", key), value)
    _keep_recipe(read)
    if foreign is not None:
        read.put(("models", "resampler_type"), foreign)
    return read.result()


def fusion_text_limit(max_text_length: Any) -> Any:
    """Return where the original cut a row of text before the vision tokens were put in.

    It cut at its one ``max_text_length``. Of an automatic one only the highest value is known.
    """
    return _AUTO_CAP if str(max_text_length).startswith("auto") else max_text_length


def take_foreign_type(models: dict[str, Any]) -> Any:
    """Take an architecture that is none of today's, and its settings, out of a models block.

    Returns:
        What stood there (a perceiver, say, which was accepted and never built); ``None`` when the
        architecture is known or not given.
    """
    written = models.get("resampler_type")
    if written is None or canonical_type(written) is not None:
        return None
    for key in ("resampler_type", "resampler_config", *FLAT_RESAMPLER):
        models.pop(key, None)
    return written


def _resampler_type(draft: Draft) -> str | None:
    return canonical_type(draft.block(("models",)).get("resampler_type", "mlp"))


def _fill_partial_resampler(draft: Draft) -> None:
    """Complete a ``resampler_config`` mapping as the original did, where weights cannot tell."""
    models, config = ("models",), ("models", "resampler_config")
    name = _resampler_type(draft)
    if name is None or not draft.block(config):
        return
    for flat in FLAT_RESAMPLER:
        draft.drop((*models, flat), "resampler_config is given and replaced it")
    if draft.get((*config, "latent_dimension")) is None:
        latent = (*models, "latent_dimension")
        if draft.get(latent) not in (None, _PARTIAL_LATENT_DIMENSION):
            draft.note(
                latent,
                f"the run used {_PARTIAL_LATENT_DIMENSION}: resampler_config is given without "
                "latent_dimension and replaced it",
            )
        draft.put(latent, _PARTIAL_LATENT_DIMENSION)
    for key, value in _PARTIAL_UNOBSERVABLE.items():
        if key in recipe(name).settings.model_fields and draft.get((*config, key)) is None:
            draft.put((*config, key), value)


def _fix_qformer_heads(draft: Draft) -> None:
    """Set the number of heads that every Q-Former of the original has, whatever was written."""
    heads = ("models", "resampler_config", "num_attention_heads")
    if _resampler_type(draft) != "qformer":
        draft.drop(heads, "only a Q-Former has heads")
    else:
        if draft.get(heads) not in (None, _QFORMER_HEADS):
            draft.note(heads, f"the run used {_QFORMER_HEADS}, as always")
        draft.put(heads, _QFORMER_HEADS)


def _views_of_stages(draft: Draft) -> dict[str, str]:
    """Take out the views that stages set for themselves.

    Returns:
        For each setting that a stage sees otherwise than the others, that stage.
    """
    found: dict[str, str] = {}
    shared = draft.block(("image_processing",))
    for stage, config in draft.block(("training", "stage_configs")).items():
        own = config.pop("image_processing", None) if isinstance(config, dict) else None
        if isinstance(own, dict):
            found |= {key: stage for key, value in own.items() if shared.get(key) != value}
    return found


def _fix_views(draft: Draft, overridden: Mapping[str, str]) -> None:
    """Keep only the view settings that hold for every stage of the run."""
    processor = "use_vision_processor"
    if not draft.has(("image_processing", processor)):
        # The schema's default was true, but the data module read a missing key as false.
        draft.put(("image_processing", processor), False)
    for key, stage in overridden.items():
        draft.drop(("image_processing", key), f"stage {stage} sets it otherwise")


def _fix_texts(draft: Draft) -> None:
    """Set the texts' limit, the system message and the sampling that the run's settings meant."""
    length = draft.get(("models", "max_text_length"))
    if length is not None:
        draft.put(("models", "fusion_text_limit"), fusion_text_limit(length))
    message = draft.get(("training", "system_msg"))
    if message is not None:
        draft.put(("system_messages", "default"), message)
    temperature = draft.get(("generation", "temperature"))
    if isinstance(temperature, int | float):
        draft.put(("generation", "do_sample"), temperature > 0.1)
        draft.put(("generation", "temperature"), min(max(temperature, 0.1), 1.0))


def _keep_recipe(draft: Draft) -> None:
    """Leave out what is no part of a recipe, and what the original accepted and ignored."""
    draft.tree = {
        name: value
        for name, value in draft.tree.items()
        if name in Recipe.model_fields and isinstance(value, dict)
    }
    for path in (*((name,) for name in draft.tree), ("models", "resampler_config")):
        block = block_at(Recipe, path, draft.tree)
        known = block.model_fields if block else {}
        for key in [key for key in draft.block(path) if key not in known]:
            draft.drop((*path, key), "the original system did not read it")
