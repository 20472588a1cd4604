"""What the documents of the original system state, as dotted recipe fields.

Only what a document says becomes a field; defaults are added later, where their origin can be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from panovlm.checkpoint.documents.metadata import TrainingRecord
from panovlm.checkpoint.fields import RESAMPLER, flatten_mapping, may_be_unset
from panovlm.config.legacy import (
    fusion_text_limit,
    original_run_mapping,
    take_foreign_type,
    translate,
)
from panovlm.config.model_recipe import Recipe

Fields = dict[str, Any]

CERTAIN = frozenset(
    {
        f"{RESAMPLER}.directions",
        f"{RESAMPLER}.cross_view",
        f"{RESAMPLER}.num_attention_heads",
        "models.global_view",
        "models.language_quantization",
        "models.pe_type",
        "models.vision_rope",
        "models.training_placeholder",
        "models.vision_token_fallback_ends",
    }
)
"""Fields that had one value in every model of the original, so that nobody needs to state it."""


def from_metadata(raw: Mapping[str, Any], resampler_type: str) -> Fields:
    """Read a ``checkpoint_metadata.json``.

    Args:
        raw: its contents, complete or not.
        resampler_type: architecture where it names none.
    """
    model, training = section(raw, "model_config"), section(raw, "training_config")
    models = _pick(
        model,
        "vision_name language_model_name resampler_type latent_dimension max_text_length "
        "vicreg_loss_weight overlap_ratio resampler_hidden_dim resampler_config",
    )
    if models["max_text_length"] is not None:  # of the data, and evaluations gave it to the model
        models["fusion_text_limit"] = fusion_text_limit(models["max_text_length"])
    if not isinstance(models["resampler_config"], Mapping):
        models["resampler_config"] = None
    image = _pick(training, "crop_strategy fov_deg overlap_ratio use_vision_processor normalize")
    image["image_size"] = model.get("image_size")
    lora = {"rank": training.get("lora_rank"), "alpha": training.get("lora_alpha")}
    mapping = {"models": models, "image_processing": image, "lora": lora}
    return _dotted(mapping, resampler_type)


def from_hyper_parameters(extras: Mapping[str, Any], resampler_type: str) -> Fields:
    """Read the hyper-parameters inside a checkpoint file.

    ``use_lora`` is left out: the original writes the setting of the run there, also into files
    whose weights carry no adapters.

    Args:
        extras: what the file holds besides its weights.
        resampler_type: architecture where they name none.
    """
    hyper = section(extras, "hyper_parameters")
    data = section(extras, "datamodule_hyper_parameters")
    models = _pick(
        hyper,
        "vision_name language_model_name resampler_type latent_dimension vicreg_loss_weight",
    )
    models["overlap_ratio"] = hyper.get("model_overlap_ratio")
    models["max_text_length"] = data.get("max_text_length")
    if data.get("tokenizer_name") != models["language_model_name"]:
        models["tokenizer_name"] = data.get("tokenizer_name")
    image = _pick(
        data,
        "crop_strategy image_size overlap_ratio fov_deg image_mean image_std "
        "use_vision_processor anyres_patch_size anyres_max_patches normalize",
    )
    lora = {key: hyper.get(f"lora_{key}") for key in ("rank", "alpha", "dropout")}
    mapping = {
        "models": models,
        "image_processing": image,
        "lora": lora,
        "system_messages": {"default": data.get("system_msg")},
    }
    return _dotted(mapping, resampler_type)


def record(raw: Mapping[str, Any]) -> TrainingRecord:
    """Read where in its training a ``checkpoint_metadata.json`` was written, and with what data.

    The original wrote a loss of 0 where none had been measured.
    """
    found = section(raw, "epoch_info")
    epoch, step, loss = (found.get(name) for name in ("current_epoch", "global_step", "val_loss"))
    return TrainingRecord(
        epoch=epoch if isinstance(epoch, int) else None,
        global_step=step if isinstance(step, int) else None,
        val_loss=loss if isinstance(loss, float) and isfinite(loss) and loss > 0 else None,
        stage_config=dict(section(raw, "training_config")),
        data=dict(section(raw, "dataset")),
    )


def is_model_config(raw: Mapping[str, Any]) -> bool:
    """Tell whether a JSON file is a model configuration of the original system."""
    names = {"resampler_type", "vision_name", "vision_model_name"}
    return bool(names & raw.keys()) or isinstance(raw.get("models"), Mapping)


def from_model_config(raw: Mapping[str, Any]) -> Fields:
    """Read a model configuration that was written out whole, its fields flat or in ``models``."""
    block = raw["models"] if isinstance(raw.get("models"), Mapping) else raw
    fields = flatten_mapping(original_run_mapping({"models": block}).mapping)
    # It says nothing about views but the size of one.
    about_views = {name for name in fields if name.startswith("image_processing.")}
    for name in about_views - {"image_processing.image_size"}:
        del fields[name]
    return _without_use(fields)


def from_run_config(mapping: Mapping[str, Any], resampler_type: str | None) -> Fields:
    """Return the fields of a run's ``config.yaml`` that is translated already.

    Args:
        mapping: its contents.
        resampler_type: architecture of today's models, of whose settings ``null`` is a value;
            ``None``: the original system wrote it, and took ``null`` for the default.
    """
    fields = flatten_mapping(mapping)
    for stage in section(section(mapping, "training"), "stage_configs").values():
        if isinstance(stage, Mapping):
            fields |= {f"lora.{key}": value for key, value in section(stage, "lora").items()}
    known = _without_use(fields)
    if resampler_type is None:
        return known
    unset = fields.keys() - known.keys()
    return known | {name: None for name in unset if may_be_unset(name, resampler_type)}


def closed_sections(raw: Mapping[str, Any]) -> frozenset[str]:
    """Return the recipe's sections in which a run's ``config.yaml`` fixes every field.

    What a run's configuration does not mention had the original's default. Only views may have
    been set by a stage for itself, and then nothing is certain about them.

    Args:
        raw: the file as it is written.
    """
    stages = section(section(raw, "training"), "stage_configs").values()
    own_views = any(isinstance(s, Mapping) and s.get("image_processing") for s in stages)
    closed = {name for name in Recipe.model_fields if name == "models" or name in raw}
    return frozenset(closed - {"image_processing"} if own_views else closed)


def section(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a sub-mapping, empty when it is absent or something else."""
    found = mapping.get(name)
    return found if isinstance(found, Mapping) else {}


def stated(values: Mapping[str, Any]) -> Fields:
    """Leave out what is unset: ``null`` states nothing."""
    return {key: value for key, value in values.items() if value is not None}


def _pick(mapping: Mapping[str, Any], names: str) -> dict[str, Any]:
    return {name: mapping.get(name) for name in names.split()}


def _dotted(mapping: Mapping[str, Mapping[str, Any]], resampler_type: str) -> Fields:
    """Translate a nested mapping of original names into the dotted fields that it states."""
    written = {name: stated(values) for name, values in mapping.items()}
    foreign = take_foreign_type(written["models"])
    fields = flatten_mapping(translate(written, resampler_type=resampler_type).mapping)
    fields |= stated({"models.resampler_type": foreign})
    # The original accepted a number of heads and always used eight; a document that names the
    # wrong architecture says nothing about them either.
    fields.pop(f"{RESAMPLER}.num_attention_heads", None)
    return _without_use(fields)


def _without_use(fields: Mapping[str, Any]) -> Fields:
    """Leave out what is unset, and whether a run used adapters: its weights show that."""
    return stated({k: v for k, v in fields.items() if k != "lora.use_lora"})
