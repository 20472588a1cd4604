"""A new model from an experiment's settings: pretrained backbones, or untrained ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from panovlm.config.schema import ModelSettings, Settings
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.language.backbone import (
    build_language_model,
    language_config,
    load_language_model,
    resize_embeddings,
)
from panovlm.models.language.quantized import require_library
from panovlm.models.language.tokenizer import (
    load_tokenizer,
    prepare_tokenizer,
    vision_token_id,
    word_tokenizer,
)
from panovlm.models.model import PanoramaVLM
from panovlm.models.sizes import possible_sizes
from panovlm.models.vision.pretrained import load_tower, tower_config, tower_processor


@possible_sizes()
def new_model(settings: Settings, texts: Iterable[str]) -> PanoramaVLM:
    """Build the model of an experiment.

    A backbone whose configuration is given is built untrained from it; otherwise it is loaded by
    its name, with its weights.

    Args:
        settings: the experiment.
        texts: training texts; a word tokenizer is made of them when the language model is built
            untrained and no tokenizer is named.

    Raises:
        ConfigError: a backbone or tokenizer cannot be had, or no tensor can be as large as the
            settings ask.
        CheckpointError: a backbone's weights are not those of its configuration.
        MissingDependencyError: the language model is to be quantised, and bitsandbytes is missing.
    """
    models = settings.models
    if models.language_quantization != "none":
        require_library(models.language_quantization)
    tokenizer, language_model = _language(models, texts)
    encoder, tower = _tower(models)
    recipe = settings.recipe()
    lora = recipe.lora.model_copy(update={"use_lora": False})
    config = PanoramaVLMConfig(
        recipe.model_copy(update={"lora": lora.model_dump()}),
        vision_config=tower,
        text_config=language_model.config,
        vision_token_id=vision_token_id(tokenizer),
    )
    model = PanoramaVLM(config, encoder=encoder, language_model=language_model)
    model.attach_tokenizer(tokenizer)
    model.quantize()
    _settle_image_processing(model, pretrained=encoder is not None)
    return model


def _settle_image_processing(model: PanoramaVLM, *, pretrained: bool) -> None:
    """Record what the tower decides: the size of a view, and its image processor."""
    image, models = model.recipe.image_processing, model.recipe.models
    update: dict[str, Any] = {}
    if image.image_size is None:
        update["image_size"] = model.vision_backbone.image_size
    if image.vision_processor is None and pretrained:
        update["vision_processor"] = tower_processor(models.vision_name)
    settled = image.model_copy(update=update)
    model.set_recipe(model.recipe.model_copy(update={"image_processing": settled.model_dump()}))


def backbone_configs(models: ModelSettings) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    """Return the configurations of tower and language model, given or read by name.

    Raises:
        ConfigError: one of them cannot be had.
    """
    if models.vision_config is None:
        tower = tower_config(models.vision_name)
    else:
        tower = PanoramaVLMConfig.backbone(models.vision_config, "vision_config")
    if models.language_config is None:
        language = language_config(models.language_model_name)
    else:
        language = PanoramaVLMConfig.backbone(models.language_config, "language_config")
    return tower, language


def _language(
    models: ModelSettings, texts: Iterable[str]
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Return tokenizer and language model, the embeddings as long as the vocabulary."""
    if models.language_config is None:
        tokenizer = load_tokenizer(models.tokenizer_name or models.language_model_name)
        grown = prepare_tokenizer(tokenizer)
        language_model = load_language_model(models.language_model_name)
        if grown:
            resize_embeddings(language_model, len(tokenizer))
        return tokenizer, language_model
    if models.tokenizer_name is not None:
        tokenizer = load_tokenizer(models.tokenizer_name)
    else:
        tokenizer = word_tokenizer(texts)
    prepare_tokenizer(tokenizer)
    config = language_config(
        {
            **models.language_config,
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
        }
    )
    return tokenizer, build_language_model(config)


def _tower(models: ModelSettings) -> tuple[PreTrainedModel | None, PreTrainedConfig]:
    """Return the pretrained tower (``None``: to be built untrained) and its configuration."""
    if models.vision_config is None:
        encoder = load_tower(models.vision_name)
        return encoder, tower_config(models.vision_name)
    config = PanoramaVLMConfig.backbone(models.vision_config, "vision_config")
    return None, config
