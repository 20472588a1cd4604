"""Names, flat fields and dead settings of the original system, translated to today's."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, get_args

from panovlm.config.fields import canonical_type
from panovlm.config.legacy.draft import Draft, Translated, split
from panovlm.config.lines import Keys, Lines
from panovlm.config.stages import STAGE_ALIASES
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipe

RENAMED = {
    "models.vision_model_name": "models.vision_name",
    "models.lm_model": "models.language_model_name",
    "models.lm_name": "models.language_model_name",
    "models.model_overlap_ratio": "models.overlap_ratio",
    "models.image_size": "image_processing.image_size",
    "models.use_lora": "lora.use_lora",
    "models.lora_r": "lora.rank",
    "models.lora_rank": "lora.rank",
    "models.lora_alpha": "lora.alpha",
    "models.lora_dropout": "lora.dropout",
    "models.lora_target_modules": "lora.target_modules",
    "lora.r": "lora.rank",
    "lora.lora_r": "lora.rank",
    "lora.lora_rank": "lora.rank",
    "lora.lora_alpha": "lora.alpha",
    "lora.lora_dropout": "lora.dropout",
    "lora.lora_target_modules": "lora.target_modules",
}
"""Old name → today's, where the meaning is the same."""

_NO_EFFECT = "it had no effect in the original system"
_ONE_STITCHING = "the model is stitched by what models says"

DROPPED = {
    "models.projection_intermediate_size": _NO_EFFECT,
    "models.stitch_stride_offset": _NO_EFFECT,
    "models.pe_view_encoding_type": _NO_EFFECT,
    "models.use_anyres_e2p_vicreg": _NO_EFFECT,
    "models.anyres_vicreg_pairing_strategy": _NO_EFFECT,
    "models.debug_vicreg_loss": "there is no debug output of this loss",
    "models.system_prompt": "the system message is training.system_msg, else "
    "system_messages.default",
    "models.resampler_heads": "it belonged to the perceiver",
    "models.resampler_num_latents": "it belonged to the perceiver",
    "image_processing.stitching_mode": _ONE_STITCHING,
    "image_processing.stitch_stride_offset": _ONE_STITCHING,
    "image_processing.stitch_target_cols": _ONE_STITCHING,
    "image_processing.stitch_target_to_view_width": _ONE_STITCHING,
    "image_processing.stitch_interp": _ONE_STITCHING,
    "lora.save_lora_only": "every checkpoint holds the whole model",
    "training.cache_cleanup_interval": "memory is not cleaned up by hand",
    "training.deepspeed": "several devices train by DDP, see environment.strategy",
    "training.auto_eval": "evaluate with `panovlm eval`",
    "environment.cuda_visible_devices": "set CUDA_VISIBLE_DEVICES in the shell",
}
"""Settings that decided nothing about a model, or have no home any more, and why."""

FLAT_RESAMPLER = {
    "resampler_depth": "depth",
    "resampler_hidden_dim": "hidden_dim",
    "resampler_num_query_tokens": "num_query_tokens",
    "resampler_num_hidden_layers": "num_hidden_layers",
    "resampler_attention_heads": "num_attention_heads",
    "resampler_use_ln": "use_ln",
    "resampler_dropout": "dropout",
    "resampler_num_views": "num_views",
    "resampler_enable_cross_view": "enable_cross_view",
}
"""Field of the original's models block → field of ``resampler_config``."""

FLAT_OF = {
    "perceiver": {
        "resampler_heads": "num_attention_heads",
        "resampler_num_latents": "num_latents",
    }
}
"""The same, of one architecture; the others did not use these."""

NUM_LAYERS = {"bimamba": "depth", "qformer": "num_hidden_layers"}
"""What ``num_layers`` in ``resampler_config`` meant, by architecture."""

IDLE_RESAMPLER_KEYS = {
    "mlp": ("dropout", "num_views"),
    "bimamba": ("use_ln", "num_views", "enable_cross_view"),
    "qformer": ("hidden_dim", "depth", "use_ln", "num_views"),
    "perceiver": ("use_ln", "num_views", "enable_cross_view"),
}
"""Keys that the original accepted in ``resampler_config`` and did not use, by architecture."""

IDLE_REASONS = {
    ("bimamba", "enable_cross_view"): "bimamba does not use it: the original accepted it and let "
    "no view see another; in a new run cross_view does",
}
"""Why, for those of which more can be said than that."""

STAGE_LORA = {
    "enabled": "use_lora",
    "rank": "rank",
    "alpha": "alpha",
    "dropout": "dropout",
    "target_modules": "target_modules",
}
"""Field of a stage's ``model_config.lora`` → field of its ``lora``."""

OLD_MODEL_KEYS = frozenset(
    {split(name)[1] for name in (*RENAMED, *DROPPED) if name.startswith("models.")}
    | {*FLAT_RESAMPLER}
)
"""Names of the original's models block that are not today's."""


def translate(
    raw: Mapping[str, Any], *, lines: Lines | None = None, resampler_type: str = "mlp"
) -> Translated:
    """Translate a configuration to today's names; the identity on today's own.

    Args:
        raw: nested mapping as written in a YAML file; never modified.
        lines: where its keys were written, for notes and messages.
        resampler_type: architecture where ``raw`` itself names none.

    Raises:
        ConfigError: it names one stage twice.
    """
    draft = Draft(raw, lines)
    _translate_resampler(draft, resampler_type)
    for name, today in RENAMED.items():
        draft.rename(split(name), split(today))
    for name, why in DROPPED.items():
        draft.drop(split(name), why)
    _translate_values(draft)
    _translate_stages(draft)
    return draft.result()


def _translate_resampler(draft: Draft, otherwise: str) -> None:
    """Nest the flat fields, and take out what the architecture does not use."""
    models, config = ("models",), ("models", "resampler_config")
    if not draft.block(models):
        return
    written = draft.get((*models, "resampler_type"))
    name = canonical_type(otherwise if written is None else written)
    if name is None:
        # The schema refuses the type; without it nobody can judge these keys.
        for key in (*FLAT_RESAMPLER, "resampler_config"):
            draft.block(models).pop(key, None)
        return
    if written is not None:
        draft.put((*models, "resampler_type"), name)
    why = f"{name} does not use it"
    if name in NUM_LAYERS:
        draft.rename((*config, "num_layers"), (*config, NUM_LAYERS[name]))
    for key in IDLE_RESAMPLER_KEYS.get(name, ()):
        draft.drop((*config, key), IDLE_REASONS.get((name, key), why))
    if name in IDLE_RESAMPLER_KEYS:
        _drop_nulls(draft, config, name)
    draft.rename((*config, "latent_dimension"), (*models, "latent_dimension"), old_wins=True)
    for flat, field in FLAT_OF.get(name, {}).items():
        draft.rename((*models, flat), (*config, field))
    for flat, field in FLAT_RESAMPLER.items():
        if field in recipe(name).settings.model_fields:
            draft.rename((*models, flat), (*config, field))
        else:
            draft.drop((*models, flat), IDLE_REASONS.get((name, field), why))


def _drop_nulls(draft: Draft, config: Keys, name: str) -> None:
    """Take out ``null``, which the original wrote for "not given", where it is no value today."""
    fields = recipe(name).settings.model_fields
    for key in [key for key, value in draft.block(config).items() if value is None]:
        if key not in fields or type(None) not in get_args(fields[key].annotation):
            draft.drop((*config, key), "")


def _translate_values(draft: Draft) -> None:
    """Translate values whose meaning stays under a name that stays."""
    crop = ("image_processing", "crop_strategy")
    if draft.get(crop) == "none":
        draft.put(crop, "resize")
        draft.note(crop, "'none' is read as resize: the whole panorama as one view")
    spatial = ("models", "pe_spatial_encoding_type")
    if draft.has(spatial) and draft.get(spatial) not in ("sinusoidal", "none"):
        draft.put(spatial, "none")
        draft.note(spatial, "read as none: only sinusoidal ever added row and column terms")
    results = ("paths", "eval_dir")
    if draft.get(results) in (None, ""):  # the original took its default for either
        draft.drop(results, "the usual folder is taken")
    temperature = ("generation", "temperature")
    given = draft.get(temperature)
    if not isinstance(given, bool) and given == 0:
        draft.drop(temperature, "0 is read as do_sample: false")
        draft.put(("generation", "do_sample"), False)


def _translate_stages(draft: Draft) -> None:
    """Give stages their names of today, and translate what their blocks hold."""
    training, configs = ("training",), ("training", "stage_configs")
    stages = draft.get((*training, "stages"))
    if isinstance(stages, list):
        today = [STAGE_ALIASES.get(s, s) if isinstance(s, str) else s for s in stages]
        draft.put((*training, "stages"), today)
    for alias in [name for name in draft.block(configs) if name in STAGE_ALIASES]:
        name = STAGE_ALIASES[alias]
        if draft.has((*configs, name)):
            raise ConfigError(
                f"{draft.lines.describe((*configs, alias))}: this is an older name of stage "
                f"{name}, which is configured too; keep one of them."
            )
        draft.rename((*configs, alias), (*configs, name))
    for name in draft.block(configs):
        _translate_stage(draft, (*configs, name))


def _translate_stage(draft: Draft, stage: Keys) -> None:
    rate = draft.get((*stage, "lr"))
    if isinstance(rate, str):
        with suppress(ValueError):  # the schema refuses what is no number
            draft.put((*stage, "lr"), float(rate))
    draft.rename((*stage, "vision_trainable_blocks"), (*stage, "trainable", "vision_blocks"))
    adapters = (*stage, "model_config", "lora")
    for old, today in STAGE_LORA.items():
        draft.rename((*adapters, old), (*stage, "lora", today))
    if not draft.get(adapters):
        draft.block(adapters[:-1]).pop("lora", None)
    if not draft.get(adapters[:-1]):
        draft.block(stage).pop("model_config", None)
    draft.drop(adapters[:-1], "only its lora block was used")
    for key in [key for key in draft.block(stage) if key.startswith("vicreg_")]:
        draft.drop((*stage, key), f"{_NO_EFFECT}; set it in models")
    draft.drop(
        (*stage, "image_processing"),
        "all stages see the same views; set them in the top-level image_processing",
    )
