"""The model's configuration in Hugging Face form: two backbone configurations and a recipe."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any, ClassVar, cast

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from panovlm.config.schema import Recipe
from panovlm.errors import ConfigError


class PanoramaVLMConfig(PreTrainedConfig):
    """Composite configuration of :class:`~panovlm.models.model.PanoramaVLM`.

    Args:
        recipe: a :class:`~panovlm.config.schema.Recipe`, or its plain dictionary as ``config.json``
            holds it. The backbones' configurations inside it may be absent when they are given as
            ``vision_config`` and ``text_config``.
        vision_config: Hugging Face configuration of the tower, as an object or a dictionary.
        text_config: the same of the language model.
        vision_token_id: id of the vision placeholder; ``None`` when no tokenizer is known.
        **kwargs: what every Hugging Face configuration takes.

    Raises:
        ConfigError: a backbone's configuration is missing or of an unknown type.
    """

    model_type = "panovlm"
    sub_configs: ClassVar[dict[str, Any]] = {  # pyright: ignore[reportIncompatibleMethodOverride]
        "vision_config": AutoConfig,
        "text_config": AutoConfig,
    }
    has_no_defaults_at_init = True

    def __init__(
        self,
        recipe: Recipe | dict[str, Any] | None = None,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        vision_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        typed = recipe if isinstance(recipe, Recipe) else Recipe.model_validate(recipe or {})
        self.vision_config = self.backbone(
            vision_config or typed.models.vision_config, "vision_config"
        )
        self.text_config = self.backbone(
            text_config or typed.models.language_config, "language_config"
        )
        bare = typed.models.model_copy(update={"vision_config": None, "language_config": None})
        self.recipe = typed.model_copy(update={"models": bare.model_dump()}).model_dump(mode="json")
        self.vision_token_id = vision_token_id
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    def typed_recipe(self) -> Recipe:
        """Return the whole recipe, backbones' configurations included."""
        bare = Recipe.model_validate(self.recipe)
        models = {
            **bare.models.model_dump(),
            "vision_config": _plain(self.vision_config),
            "language_config": _plain(self.text_config),
        }
        return bare.model_copy(update={"models": models})

    @staticmethod
    def backbone(config: PreTrainedConfig | dict[str, Any] | None, name: str) -> PreTrainedConfig:
        """Return a backbone's configuration as an object of its own class.

        Args:
            config: the object itself, or a dictionary with its ``model_type``.
            name: setting that it comes from, for the message.

        Raises:
            ConfigError: it is missing, or transformers cannot use it.
        """
        if isinstance(config, PreTrainedConfig):
            # A model sets its attention implementation in the configurations inside its own;
            # a ready-made backbone must not lose its own setting by that.
            return deepcopy(config)
        if config is None or "model_type" not in config:
            raise ConfigError(
                f"models.{name} is missing or has no model_type; give the backbone's Hugging Face "
                "configuration there, or a name whose configuration can be read."
            )
        try:
            return AutoConfig.for_model(**config)
        except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"models.{name} cannot be used: {reason}") from error


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a configuration as it reads in JSON, so that what was stored equals what was built."""
    return cast(dict[str, Any], json.loads(config.to_json_string(use_diff=False)))


AutoConfig.register("panovlm", PanoramaVLMConfig)
