"""PanoramaVLM: the network with its adapters, and its way from and to files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModel, PreTrainedModel

from panovlm.checkpoint.formats.header import RECORD
from panovlm.config.schema import LoRASettings, Recipe
from panovlm.errors import AssumedSettingsWarning, CheckpointError, ConfigError
from panovlm.models.answering import AnsweringNetwork
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.language.lora import attach_lora, check_targets, merge_lora
from panovlm.models.language.quantized import quantize_linears, quantized, restore_linears

if TYPE_CHECKING:
    from panovlm.checkpoint.resolution import Resolution
    from panovlm.checkpoint.settle.settling import Prefer


class PanoramaVLM(AnsweringNetwork):
    """A vision-language model that reads a panorama as a set of views.

    Args:
        config: recipe and backbone configurations.
        encoder: ready-made vision tower to use instead of building one from ``config``.
        language_model: ready-made language model, likewise.

    Attributes:
        recipe: everything that decides what the model computes.
        resolution: where every setting came from, when the model was loaded from a checkpoint.
    """

    def __init__(
        self,
        config: PanoramaVLMConfig,
        *,
        encoder: nn.Module | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config, encoder=encoder, language_model=language_model)
        self.resolution: Resolution | None = None
        if self.recipe.lora.use_lora:
            self._attach(self.recipe.lora)

    def add_adapters(self, settings: LoRASettings) -> None:
        """Attach fresh low-rank adapters to the language model and record them in the recipe."""
        self._attach(settings)

    def quantize(self) -> None:
        """Make the language model the one that ``models.language_quantization`` says.

        It is built, and given its weights, in full precision; this is to be called after that.

        Raises:
            MissingDependencyError: bitsandbytes is not installed.
            ConfigError: the language model has nothing to quantise, or is quantised already.
        """
        kind = self.recipe.models.language_quantization
        if kind != "none":
            quantize_linears(self.language_model, kind)

    @property
    def is_quantized(self) -> bool:
        """Whether the language model has quantised layers."""
        return next(quantized(self.language_model), None) is not None

    def merge_adapters(self) -> None:
        """Add the adapters into the language model's weights, and say so in the recipe.

        Those of a quantised model become what it computes with, in float32, and it is then no
        longer quantised: the sums would not survive another rounding.

        Raises:
            ConfigError: the model has no adapters.
        """
        restore_linears(self.language_model)
        self.language_model = merge_lora(cast(PeftModel, self.language_model))
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        lora = self.recipe.lora.model_copy(update={"use_lora": False})
        models = self.recipe.models.model_copy(update={"language_quantization": "none"})
        merged = {"lora": lora.model_dump(), "models": models.model_dump()}
        self.set_recipe(self.recipe.model_copy(update=merged))

    def _attach(self, settings: LoRASettings) -> None:
        targets = check_targets(self.language_model, settings)
        self.language_model = attach_lora(cast(PreTrainedModel, self.language_model), settings)
        # The wrapper moves tied weights to other names.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        lora = settings.model_copy(update={"use_lora": True, "target_modules": targets})
        self.set_recipe(self.recipe.model_copy(update={"lora": lora.model_dump()}))

    def set_recipe(self, recipe: Recipe) -> None:
        """Replace the recipe where it has no bearing on the modules that are already built."""
        self.recipe = recipe
        self.directions.follow(recipe.image_processing)
        self.config.recipe = PanoramaVLMConfig(recipe).recipe

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a folder that ``save_pretrained`` wrote; see :class:`transformers.PreTrainedModel`.

        transformers only prints which weights a file lacks and fills them with random numbers;
        here that is an error.

        Raises:
            CheckpointError: the weights are not exactly those of the configuration.
        """
        load = cast(Any, super()).from_pretrained
        model, info = load(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        faults = {  # the settings among the weights are the model's own
            "missing": sorted(set(info["missing_keys"]) - {RECORD}),
            "unexpected": sorted(info["unexpected_keys"]),
            "of another shape": sorted(str(fault[0]) for fault in info["mismatched_keys"]),
        }
        told = [f"{len(keys)} {what}, first {keys[0]}" for what, keys in faults.items() if keys]
        if told:
            raise CheckpointError(
                f"the weights in {pretrained_model_name_or_path} are not those of its config.json: "
                f"{'; '.join(told)}. The folder is incomplete or mixed; save the model again."
            )
        cast(Self, model).quantize()
        return (model, info) if output_loading_info else model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Write a folder for :meth:`from_pretrained`; see :class:`transformers.PreTrainedModel`.

        Raises:
            ConfigError: the language model is quantised, so that its weights are not here.
        """
        if self.is_quantized:
            raise ConfigError(
                "the language model is quantised; the weights that it was made from are not here. "
                "save_checkpoint (panovlm.checkpoint.saving.save) refers to them, and `panovlm "
                "convert CHECKPOINT OUT --to huggingface` writes them out."
            )
        # transformers would give backbones of some families the names of its older versions, which
        # only its own loader turns back.
        return cast(Any, super()).save_pretrained(*args, save_original_format=False, **kwargs)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        prefer: Prefer | None = None,
        strict: bool = False,
        overrides: Mapping[str, Any] | None = None,
        weights: Literal["model", "ema"] | None = None,
        probe: bool = True,
    ) -> Self:
        """Load a checkpoint as the model that was trained, or raise.

        Args:
            path: checkpoint file, or a folder that holds one.
            device: where the weights go; ``"auto"`` is an accelerator if there is one.
            dtype: floating-point type of the weights; unset: as they are in the file.
            prefer: which side to take where metadata and weights contradict each other, for all
                fields or by dotted field.
            strict: refuse settings that neither metadata nor weights tell.
            overrides: settings by dotted name, such as ``{"models.overlap_ratio": 0.25}``.
            weights: which copy to take where a file holds the live weights (``"model"``) and their
                running average (``"ema"``); such a file is refused without a choice.
            probe: compare what the model computes on a small fixed input with what it computed
                when the checkpoint was written, where the checkpoint tells.

        Returns:
            The model in evaluation mode, with ``.tokenizer`` and ``.resolution``.

        Raises:
            CheckpointError: the file cannot be opened, does not fit, is ambiguous, or is not the
                model that its probe was taken of.
            ContradictionError: metadata and weights disagree and ``prefer`` does not settle it.

        Warns:
            AssumedSettingsWarning: settings that decide what the model computes had to be assumed.
        """
        from panovlm.checkpoint.loading.load import load_checkpoint

        if device == "auto":
            # torch names the accelerator that it was built for on machines without one as well.
            device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        model = load_checkpoint(
            Path(path),
            device=torch.device(device),
            dtype=dtype,
            prefer=prefer,
            strict=strict,
            overrides=overrides,
            weights=weights,
            probe=probe,
        )
        if model.resolution is not None and model.resolution.assumed:
            told = model.resolution.told_assumed()
            warnings.warn(told, AssumedSettingsWarning, stacklevel=2)
        return cast(Self, model)


AutoModel.register(PanoramaVLMConfig, PanoramaVLM)
