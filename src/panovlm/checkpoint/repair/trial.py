"""Trying other settings on a loaded checkpoint, one part of the model at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from panovlm.checkpoint.fields import flatten, nest
from panovlm.checkpoint.probe.candidates import LANGUAGE, TOWER
from panovlm.checkpoint.probe.check import Comparison, compare_part
from panovlm.checkpoint.probe.compare import Difference
from panovlm.checkpoint.probe.measure import COMPONENTS, precisions
from panovlm.checkpoint.probe.record import Part, Probe
from panovlm.config.schema import Recipe
from panovlm.errors import ConfigError, PanoVLMError
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.empty import without_weights
from panovlm.models.language.backbone import build_language_model
from panovlm.models.language.lora import attach_lora
from panovlm.models.model import PanoramaVLM
from panovlm.models.vision.backbone import VisionBackbone
from panovlm.models.vision.directions import TokenDirections
from panovlm.models.vision.projector import PanoramaProjector
from panovlm.models.vision.resampler import ResamplerModule
from panovlm.panorama.views import leading_global

Changes = Mapping[str, Any]


class Trial:
    """A model that can be compared with its probe under other settings.

    Args:
        model: the loaded model, its language model in full precision.
        probe: what its parts computed when it was saved.

    Attributes:
        tried: how many times a part was run.
    """

    def __init__(self, model: PanoramaVLM, probe: Probe) -> None:
        self.model = model
        self.probe = probe
        self.values = flatten(model.config.typed_recipe())
        self.stored = precisions(model)
        self.tried = 0

    def differences(self, part: Part, changes: Changes) -> list[Difference] | None:
        """Return what differs in a part under changed settings.

        Returns:
            The differences; ``None`` if no model can be built with these settings.
        """
        self.tried += 1
        try:
            return self.compare(part, changes).differences
        except PanoVLMError:
            return None

    def compare(self, part: Part, changes: Changes) -> Comparison:
        """Compare a part under changed settings.

        Raises:
            PanoVLMError: no model can be built with them.
        """
        recipe = self._recipe(changes)
        model = self._variant(part, recipe) if part in COMPONENTS else self.model
        return compare_part(model, part, self.probe, self.stored, recipe=recipe)

    def _recipe(self, changes: Changes) -> Recipe:
        """Return the recipe with changed fields, those of backbones included."""
        values = {**self.values}
        for name, value in changes.items():
            section = next((s for s in (TOWER, LANGUAGE) if name.startswith(f"{s}.")), None)
            if section is None:
                values[name] = value
            else:
                values[section] = {**values[section], name.removeprefix(f"{section}."): value}
        return Recipe.model_validate(nest(values))

    def _variant(self, part: Part, recipe: Recipe) -> PanoramaVLM:
        """Return the model with one part built anew around its weights; nothing is copied."""
        name, variant = COMPONENTS[part], copy.copy(self.model)
        with without_weights():
            built = _build(part, recipe, self.model)
        state = getattr(self.model, name).state_dict()
        if any(state[n].shape != tensor.shape for n, tensor in built.state_dict().items()):
            raise ConfigError(f"{COMPONENTS[part]}: the settings do not fit the weights.")
        built.load_state_dict(state, assign=True)
        # The shallow copy shares its table of modules with the model.
        variant.__dict__["_modules"] = {**self.model.__dict__["_modules"], name: built.eval()}
        variant.recipe = recipe
        if part == "language":
            variant.quantize()
        return variant


def _build(part: Part, recipe: Recipe, model: PanoramaVLM) -> nn.Module:
    """Build one part as a recipe describes it, between the other parts of a model."""
    models = recipe.models
    match part:
        case "tower":
            tower = PanoramaVLMConfig.backbone(models.vision_config, "vision_config")
            return VisionBackbone(tower, use_norm=models.use_vicreg_norm)
        case "resampler":
            return ResamplerModule(models, vision_dim=model.vision_backbone.hidden_size)
        case "projector":
            return PanoramaProjector(
                models,
                language_dim=model.projector.linear.out_features,
                leading_global=leading_global(recipe.image_processing),
                directions=TokenDirections(
                    recipe.image_processing, model.vision_backbone, model.resampler_module
                ),
            )
        case _:
            text = PanoramaVLMConfig.backbone(models.language_config, "language_config")
            language = build_language_model(text)
            return attach_lora(language, recipe.lora) if recipe.lora.use_lora else language
