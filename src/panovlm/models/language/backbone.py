"""The causal language model: its configuration, an untrained build, the weights on disk."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from panovlm.errors import CheckpointError, ConfigError
from panovlm.models.language.pretrained import brief, reading
from panovlm.models.sizes import UNUSABLE, possible_sizes

_OPTION = "models.language_model_name"


def language_config(source: str | Mapping[str, Any]) -> PreTrainedConfig:
    """Return the configuration of a language model.

    Args:
        source: folder, hub id, or the configuration as a mapping with its ``model_type``.

    Raises:
        ConfigError: it cannot be read, its ``model_type`` is unknown, or the weights that belong to
            it are stored quantised.
    """
    if isinstance(source, str):
        with reading("language model configuration", source, _OPTION) as place:
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        _refuse_quantized(config, source)
        return config
    try:
        return AutoConfig.for_model(**source)
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise ConfigError(
            "models.language_config needs a 'model_type' such as 'qwen2' and fields of that "
            f"family; transformers said: {brief(error)}"
        ) from error


def _refuse_quantized(config: PreTrainedConfig, name: str) -> None:
    """Refuse a model of which there are rounded weights only.

    transformers would load it with layers of its own, and nothing would tell that it is quantised.

    Raises:
        ConfigError: it is one.
    """
    told = getattr(config, "quantization_config", None)
    if told is None:
        return
    stated = dict(told if isinstance(told, Mapping) else told.to_dict())
    method = stated.get("quant_method")
    again = ""
    if method == "bitsandbytes":
        kind = "int8" if stated.get("load_in_8bit") else stated.get("bnb_4bit_quant_type", "fp4")
        again = f" --set models.language_quantization={kind} (quantised when it is loaded)"
    raise ConfigError(
        f"the weights of the language model {name!r} are stored quantised "
        f"({method or 'its config.json says'}), which is not read. Name the model in full "
        f"precision that it was made from: --set {_OPTION}=NAME{again}."
    )


def build_language_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Build an untrained model; under ``torch.device("meta")`` it takes no memory.

    The model has a copy of ``config``, so that resizing its embeddings changes no other model.

    Raises:
        ConfigError: ``config`` is not that of a causal language model, or has unusable values.
    """
    try:
        with possible_sizes():
            model = AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=False)
    except UNUSABLE as error:
        raise ConfigError(
            f"cannot build a causal language model from a {type(config).__name__}: "
            f"{type(error).__name__}: {brief(error).removesuffix('.')}. Look for a value in "
            "models.language_config (or in the model's own config.json) that the family does not "
            "have."
        ) from error
    return cast("PreTrainedModel", model)


def load_language_model(name_or_path: str) -> PreTrainedModel:
    """Read a trained language model, in the dtype of its files.

    transformers only prints which weights a file lacks and fills them with random numbers; here
    that is an error.

    Raises:
        ConfigError: it is missing or cannot be read.
        CheckpointError: its weights are not exactly those of its configuration.
    """
    language_config(name_or_path)  # which refuses what is stored quantised
    with reading("language model", name_or_path, _OPTION) as source:
        model, info = cast(
            "tuple[PreTrainedModel, dict[str, Any]]",
            AutoModelForCausalLM.from_pretrained(
                source,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that the error below can name them all
            ),
        )
    mismatched = [
        f"{key} {list(found)} for {list(own)}" for key, found, own in info["mismatched_keys"]
    ]
    faults = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "of another shape": sorted(mismatched),
    }
    if any(faults.values()):
        found = "; ".join(
            f"{len(keys)} {kind}, such as {', '.join(keys[:3])}"
            for kind, keys in faults.items()
            if keys
        )
        raise CheckpointError(
            f"the weights of the language model {name_or_path!r} are not those of its "
            f"config.json ({type(model).__name__}): {found}. Correct {_OPTION} or the files."
        )
    return model


def resize_embeddings(language_model: PreTrainedModel, size: int) -> None:
    """Give the token embeddings and the output layer ``size`` rows, in place.

    New rows are drawn around the mean of the old ones (Hewitt 2021, "Initializing new word
    embeddings for pretrained language models"), so that no new token becomes the most probable
    one. With fewer rows than before, the last ones are cut off: a vocabulary padded beyond the
    tokenizer's length shrinks.
    """
    # Old rows on the meta device have no mean.
    on_meta = language_model.get_input_embeddings().weight.is_meta
    language_model.resize_token_embeddings(size, mean_resizing=not on_meta)
