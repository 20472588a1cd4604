"""PanoramaVLM: the wiring of tower, resampler, projector and language model.

Shapes: ``B`` batch, ``V`` views, ``S`` tokens per view, ``S'`` after the resampler, ``Dv`` vision
width, ``D`` latent_dimension, ``Dm`` language-model width, ``T`` vision tokens, ``L`` text length.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from panovlm.config.schema import LoRASettings, Recipe
from panovlm.errors import CheckpointError, ConfigError
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.language.backbone import build_language_model
from panovlm.models.language.chat import ChatFormat
from panovlm.models.language.fusion import fuse_vision
from panovlm.models.language.lora import attach_lora, merge_lora
from panovlm.models.language.segments import segment_mask, segment_positions
from panovlm.models.language.tokenizer import vision_token_id
from panovlm.models.vision.backbone import VisionBackbone
from panovlm.models.vision.projector import PanoramaProjector
from panovlm.models.vision.resampler import ResamplerModule
from panovlm.models.vision.vicreg import VICRegProjector
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.views import leading_global

if TYPE_CHECKING:
    from panovlm.checkpoint.resolution import Resolution


class PanoramaVLM(PreTrainedModel):
    """A vision-language model that reads a panorama as a set of views.

    Args:
        config: recipe and backbone configurations.
        encoder: ready-made vision tower to use instead of building one from ``config``.
        language_model: ready-made language model, likewise.

    Attributes:
        recipe: everything that decides what the model computes.
        tokenizer: the model's tokenizer, once one is attached.
        resolution: where every setting came from, when the model was loaded from a checkpoint.
    """

    config_class = PanoramaVLMConfig
    base_model_prefix = "panovlm"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(
        self,
        config: PanoramaVLMConfig,
        *,
        encoder: nn.Module | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.recipe: Recipe = config.typed_recipe()
        models = self.recipe.models
        self.vision_backbone = VisionBackbone(
            config.vision_config, use_norm=models.use_vicreg_norm, encoder=encoder
        )
        self.resampler_module = ResamplerModule(models, vision_dim=self.vision_backbone.hidden_size)
        self.vicreg_projector = VICRegProjector(models) if models.use_vicreg_projector else None
        self.language_model: nn.Module = language_model or build_language_model(config.text_config)
        width = config.text_config.get_text_config().hidden_size
        self.leading_global = leading_global(self.recipe.image_processing)
        self.projector = PanoramaProjector(
            models, language_dim=width, leading_global=self.leading_global
        )
        self.text_projection = nn.Linear(width, width) if models.use_text_projection else None
        if models.layout != "original":
            # Present in every checkpoint of this family, so that a file that lost its metadata is
            # not taken for one of the original system, whose defaults differ.
            self.register_buffer("layout", torch.ones(1, dtype=torch.uint8))
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.resolution: Resolution | None = None
        self.post_init()
        if self.recipe.lora.use_lora:
            self._attach(self.recipe.lora)

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: every module here initialises itself when it is constructed."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the text embedding table."""
        return cast(Any, self.language_model).get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text embedding table."""
        cast(Any, self.language_model).set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the language model's head."""
        return cast(Any, self.language_model).get_output_embeddings()

    # ------------------------------------------------------------------ vision

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """Return the tower's tokens.

        Args:
            pixel_values: normalised views ``[B, V, 3, h, w]``; ``[B, 3, h, w]`` counts as one view.

        Returns:
            ``[B·V, S, Dv]``.
        """
        views = _as_views(pixel_values)
        pixels = views.flatten(0, 1)
        return self.vision_backbone(pixels.to(_dtype(self.vision_backbone)))

    def resampled_features(self, pixel_values: Tensor) -> Tensor:
        """Return the resampler's tokens ``[B·V, S', D]`` of views ``[B, V, 3, h, w]``."""
        tokens = self.vision_features(pixel_values)
        return self.resampler_module(tokens.to(_dtype(self.resampler_module)))

    def vision_tokens(self, pixel_values: Tensor) -> Tensor:
        """Return what the language model reads, ``[B, T, Dm]``, of views ``[B, V, 3, h, w]``."""
        tokens = self.resampled_features(pixel_values)
        num_views = _as_views(pixel_values).shape[1]
        return self.projector(tokens.to(_dtype(self.projector)), num_views)

    # ------------------------------------------------------------------ language

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        segments: Tensor | None = None,
        vision_tokens: Tensor | None = None,
        project_text: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the whole model.

        Args:
            pixel_values: normalised views ``[B, V, 3, h, w]``.
            input_ids: text ``[B, L]``; the vision tokens go where the placeholder stands.
            attention_mask: ``[B, L]``, 1 for text, 0 for padding; absent: all text.
            labels: ``[B, L]``, -100 where no loss is taken.
            segments: ``[B, L]``, for several conversations about one panorama in a row: 0 where a
                token belongs to all of them, 1, 2, ... where to one, -1 at padding. The vision
                tokens belong to all. Each conversation is computed as if it stood alone.
            vision_tokens: ``[B, T, Dm]`` computed before, instead of ``pixel_values``.
            project_text: apply the text projection (stage resampler of models that have one).
            **kwargs: passed to the language model.

        Returns:
            ``.logits`` ``[B, T + L - placeholders, vocabulary]``, and ``.loss`` (the language
            model's shifted cross-entropy) when ``labels`` are given.

        Raises:
            ConfigError: no text was given.
        """
        if input_ids is None:
            raise ConfigError("forward needs input_ids; for pixels alone use vision_tokens().")
        inputs = self._fuse(
            pixel_values,
            input_ids,
            attention_mask,
            labels,
            segments=segments,
            vision_tokens=vision_tokens,
            project_text=project_text,
        )
        return self.language_model(**inputs, **kwargs)

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        vision_tokens: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Continue a prompt about a panorama.

        Args:
            pixel_values: normalised views ``[B, V, 3, h, w]``.
            input_ids: prompts ``[B, L]``; absent: the recipe's ``default_generation_prompt``.
            attention_mask: ``[B, L]``; absent: all text.
            vision_tokens: ``[B, T, Dm]`` computed before, instead of ``pixel_values``.
            **kwargs: as for :meth:`transformers.GenerationMixin.generate`.

        Returns:
            The new token ids ``[B, n]``, without the prompt, padded after the end mark.
        """
        if input_ids is None:
            source = vision_tokens if pixel_values is None else pixel_values
            prompt = self.chat().prompt(self.recipe.models.default_generation_prompt)
            rows = 1 if source is None else source.shape[0]
            input_ids = torch.tensor([prompt] * rows, device=self.device)
        inputs = self._fuse(
            pixel_values,
            input_ids,
            attention_mask,
            None,
            vision_tokens=vision_tokens,
            padding_side="left",
        )
        if self.tokenizer is not None:
            kwargs.setdefault("pad_token_id", self.tokenizer.pad_token_id)
            kwargs.setdefault("eos_token_id", self.tokenizer.eos_token_id)
        return cast(Any, self.language_model).generate(**inputs, **kwargs)

    def answer(self, panorama: NDArray[np.uint8], question: str, **kwargs: Any) -> str:
        """Answer a question about a panorama.

        Args:
            panorama: equirectangular image ``[H, W, 3]``, uint8.
            question: the user's text.
            **kwargs: as for :meth:`transformers.GenerationMixin.generate`.
        """
        views = torch.from_numpy(ViewPipeline(self.recipe.image_processing)(panorama))
        chat = self.chat()
        prompt = torch.tensor([chat.prompt(question)], device=self.device)
        ids = self.generate(views[None].to(self.device), prompt, **kwargs)
        return chat.decode_answer(ids[0].tolist())

    def _fuse(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        *,
        segments: Tensor | None = None,
        vision_tokens: Tensor | None = None,
        project_text: bool = False,
        padding_side: Literal["right", "left"] = "right",
    ) -> dict[str, Tensor]:
        """Return the language model's inputs with the vision tokens in their place."""
        embeds: Tensor = self.get_input_embeddings()(input_ids)
        if project_text and self.text_projection is not None:
            embeds = self.text_projection(embeds)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if vision_tokens is None and pixel_values is not None:
            vision_tokens = self.vision_tokens(pixel_values)
        if vision_tokens is None:
            vision_tokens = embeds.new_zeros(embeds.shape[0], 0, embeds.shape[2])
        fused = fuse_vision(
            embeds,
            input_ids,
            attention_mask,
            labels,
            vision_tokens.to(embeds.dtype),
            placeholder_id=self.config.vision_token_id,
            fallback=self.recipe.models.vision_token_fallback_position,
            padding_side=padding_side,
            segments=segments,
        )
        inputs = {"inputs_embeds": fused.inputs_embeds, "attention_mask": fused.attention_mask}
        if fused.labels is not None:
            inputs["labels"] = fused.labels
        if fused.segments is not None:
            inputs["attention_mask"] = segment_mask(fused.segments, fused.inputs_embeds.dtype)
            inputs["position_ids"] = segment_positions(fused.segments)
        return inputs

    # ------------------------------------------------------------------ parts

    def attach_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make ``tokenizer`` the model's own.

        Raises:
            ConfigError: it has more tokens than the embedding table has rows (the table may be
                padded beyond the vocabulary).
        """
        rows = cast(Tensor, self.get_input_embeddings().weight).shape[0]
        if len(tokenizer) > rows:
            raise ConfigError(
                f"the tokenizer has {len(tokenizer)} tokens, the language model's embedding table "
                f"only {rows} rows; they do not belong together. Set models.tokenizer_name to the "
                "tokenizer that the model was trained with."
            )
        self.tokenizer = tokenizer
        self.config.vision_token_id = vision_token_id(tokenizer)

    def chat(self) -> ChatFormat:
        """Return the conversation format that the model was trained with.

        Raises:
            ConfigError: the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise ConfigError(
                "the model has no tokenizer; load it from a checkpoint that carries one, or name "
                "one with --set models.tokenizer_name=FOLDER_OR_HUB_NAME."
            )
        models = self.recipe.models
        return ChatFormat(
            self.tokenizer,
            model_name=models.language_model_name,
            system_message=self.recipe.system_messages.default,
            training_placeholder=models.training_placeholder,
        )

    def add_adapters(self, settings: LoRASettings) -> None:
        """Attach fresh low-rank adapters to the language model and record them in the recipe."""
        self._attach(settings)
        lora = settings.model_copy(update={"use_lora": True})
        self.set_recipe(self.recipe.model_copy(update={"lora": lora.model_dump()}))

    def merge_adapters(self) -> None:
        """Add the adapters into the language model's weights, and say so in the recipe.

        Raises:
            ConfigError: the model has no adapters.
        """
        self.language_model = merge_lora(cast(PeftModel, self.language_model))
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        lora = self.recipe.lora.model_copy(update={"use_lora": False})
        self.set_recipe(self.recipe.model_copy(update={"lora": lora.model_dump()}))

    def _attach(self, settings: LoRASettings) -> None:
        self.language_model = attach_lora(cast(PreTrainedModel, self.language_model), settings)
        # The wrapper moves tied weights to other names.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    def set_recipe(self, recipe: Recipe) -> None:
        """Replace the recipe where it has no bearing on the modules that are already built."""
        self.recipe = recipe
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
        faults = {
            "missing": sorted(info["missing_keys"]),
            "unexpected": sorted(info["unexpected_keys"]),
            "of another shape": sorted(str(fault[0]) for fault in info["mismatched_keys"]),
        }
        told = [f"{len(keys)} {what}, first {keys[0]}" for what, keys in faults.items() if keys]
        if told:
            raise CheckpointError(
                f"the weights in {pretrained_model_name_or_path} are not those of its config.json: "
                f"{'; '.join(told)}. The folder is incomplete or mixed; save the model again."
            )
        return (model, info) if output_loading_info else model

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        prefer: Literal["weights", "metadata"] | None = None,
        strict: bool = False,
        overrides: Mapping[str, Any] | None = None,
        weights: Literal["model", "ema"] | None = None,
    ) -> Self:
        """Load a checkpoint as the model that was trained, or raise.

        Args:
            path: checkpoint file, or a folder that holds one.
            device: where the weights go; ``"auto"`` is an accelerator if there is one.
            dtype: floating-point type of the weights; unset: as they are in the file.
            prefer: which side to take where metadata and weights contradict each other.
            strict: refuse settings that neither metadata nor weights tell.
            overrides: settings by dotted name, such as ``{"models.overlap_ratio": 0.25}``.
            weights: which copy to take where a file holds the live weights (``"model"``) and their
                running average (``"ema"``); such a file is refused without a choice.

        Returns:
            The model in evaluation mode, with ``.tokenizer`` and ``.resolution``.

        Raises:
            CheckpointError: the file cannot be opened, does not fit, or is ambiguous.
            ContradictionError: metadata and weights disagree and ``prefer`` does not settle it.
        """
        from panovlm.checkpoint.load import load_checkpoint

        if device == "auto":
            device = torch.accelerator.current_accelerator() or "cpu"
        return cast(
            Self,
            load_checkpoint(
                Path(path),
                device=torch.device(device),
                dtype=dtype,
                prefer=prefer,
                strict=strict,
                overrides=overrides,
                weights=weights,
            ),
        )


def _as_views(pixel_values: Tensor) -> Tensor:
    """Return ``[B, V, 3, h, w]``; four dimensions mean one view."""
    if pixel_values.ndim == 4:
        return pixel_values.unsqueeze(1)
    if pixel_values.ndim != 5:
        raise ConfigError(
            f"pixel_values has shape {list(pixel_values.shape)}; [B, V, 3, h, w] was expected."
        )
    return pixel_values


def _dtype(module: nn.Module) -> torch.dtype:
    """Return the type of a component's weights (components may be stored in different ones)."""
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


AutoModel.register(PanoramaVLMConfig, PanoramaVLM)
