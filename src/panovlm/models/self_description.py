"""The buffer by which a model's weights tell what their shapes cannot."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from panovlm.checkpoint.documents.recipe_record import RecipeRecord
from panovlm.checkpoint.formats.header import RECORD
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.language.lora import require_usual_adapters, settings_in_use


class SelfDescribingModel(PreTrainedModel):
    """A model that keeps its recipe among its weights.

    The buffer is written anew whenever a state dict is taken, so that it always tells the present
    settings, and it is never read from a state dict: a model is as it was built, and what a file
    says is compared with that before, by :mod:`panovlm.checkpoint`.
    """

    config: PanoramaVLMConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    recipe_bytes: Tensor
    unsettled: tuple[str, ...] = ()
    """Settings that had to be assumed when the model was opened."""

    def record(self) -> RecipeRecord:
        """Return what the buffer tells.

        Raises:
            ConfigError: there are adapters that it cannot tell.
        """
        recipe = self.config.typed_recipe()
        lora = settings_in_use(cast(nn.Module, self.language_model), recipe.lora)
        return RecipeRecord(
            recipe=recipe.model_copy(update={"lora": lora}),
            assumed=self.unsettled,
            vision_token_id=self.config.vision_token_id,
        )

    def keep_record(self) -> None:
        """Write the present settings into the buffer, which is made if there is none."""
        known = self._buffers.get(RECORD)
        if known is not None and known.is_meta:
            return  # in a model without weights nothing has a value
        data = torch.frombuffer(bytearray(self.record().to_bytes()), dtype=torch.uint8)
        if known is not None and known.shape == data.shape and known.dtype == data.dtype:
            known.copy_(data)
        else:
            device = data.device if known is None else known.device
            self.register_buffer(RECORD, data.to(device))

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        require_usual_adapters(self, self.config.typed_recipe().lora)
        if RECORD in self._buffers:
            self.keep_record()
        cast(Any, super())._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if (own := self._buffers.get(RECORD)) is not None:
            # torch gives every module a dictionary of its own.
            state_dict[prefix + RECORD] = own.clone()
        cast(Any, super())._load_from_state_dict(state_dict, prefix, *args, **kwargs)
