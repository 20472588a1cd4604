"""What an experiment would train, found out without weights, data or a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import init_empty_weights

from panovlm.config.schema import Settings
from panovlm.models.assemble import backbone_configs
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.model import PanoramaVLM
from panovlm.panorama.views import views_of
from panovlm.training.freeze import ComponentCount, counts, freeze, trainable_parts

BYTES_PER_WEIGHT = 4
BYTES_PER_TRAINED = 4 + 8
"""Gradient, and AdamW's two moments, all in float32."""


@dataclass(frozen=True)
class StagePlan:
    """What one stage trains.

    Attributes:
        name: the stage.
        components: parameters by component.
        memory: bytes of weights, gradients and optimizer state, without activations.
    """

    name: str
    components: list[ComponentCount]
    memory: int


@dataclass(frozen=True)
class Plan:
    """What an experiment would be.

    Attributes:
        views: views per panorama.
        tokens_per_view: tokens S of the tower, and S' after the resampler.
        vision_tokens: tokens T that the language model reads per panorama.
        stages: one entry per stage.
    """

    views: int
    tokens_per_view: tuple[int, int]
    vision_tokens: int
    stages: list[StagePlan]


def plan(settings: Settings) -> Plan:
    """Build the model without weights and count.

    Raises:
        ConfigError: a backbone's configuration cannot be had, or settings do not fit together.
    """
    tower, language = backbone_configs(settings.models)
    recipe = settings.recipe()
    lora = recipe.lora.model_copy(update={"use_lora": False})
    recipe = recipe.model_copy(update={"lora": lora.model_dump()})
    stages: list[StagePlan] = []
    with init_empty_weights(include_buffers=False):
        model = PanoramaVLM(PanoramaVLMConfig(recipe, vision_config=tower, text_config=language))
    image = recipe.image_processing
    if image.image_size is None:
        size = model.vision_backbone.image_size
        image = image.model_copy(update={"image_size": size})
    views = len(views_of(image))
    tokens = _tokens(model, image.image_size or model.vision_backbone.image_size)
    for name in settings.training.stages:
        stage = settings.training.stage_configs[name]
        adapters = stage.lora or (settings.lora if name == "finetune" else None)
        if adapters is not None and adapters.use_lora and not model.recipe.lora.use_lora:
            with init_empty_weights(include_buffers=False):
                model.add_adapters(adapters)
        freeze(model, trainable_parts(name, stage))
        components = counts(model)
        weights = sum(c.total for c in components)
        trained = sum(c.trainable for c in components)
        memory = weights * BYTES_PER_WEIGHT + trained * BYTES_PER_TRAINED
        stages.append(StagePlan(name, components, memory))
    return Plan(views, tokens, model.projector.num_tokens(views, tokens[1]), stages)


def _tokens(model: PanoramaVLM, size: tuple[int, int]) -> tuple[int, int]:
    """Return the tokens of one view behind the tower and behind the resampler, without computing.

    The modules run on torch's meta device, where only shapes are worked out.
    """
    parts = torch.nn.ModuleList((model.vision_backbone, model.resampler_module)).to("meta")
    with torch.no_grad():
        features = parts[0](torch.empty(1, 3, *size, device="meta"))
        resampled = parts[1](features)
    return features.shape[1], resampled.shape[1]
