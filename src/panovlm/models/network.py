"""The network: tower, resampler, projector and language model, and the way of tensors through them.

Shapes: ``B`` batch, ``V`` views, ``S`` tokens per view, ``S'`` after the resampler, ``Dv`` vision
width, ``D`` latent_dimension, ``Dm`` language-model width, ``T`` vision tokens, ``L`` text length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from panovlm.config.schema import Recipe
from panovlm.errors import ConfigError
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.language.backbone import build_language_model
from panovlm.models.language.fusion import fuse_vision
from panovlm.models.language.rotary import VisionRope
from panovlm.models.language.segments import segment_mask, segment_positions
from panovlm.models.precision import in_dtype_of
from panovlm.models.self_description import SelfDescribingModel
from panovlm.models.vision.backbone import VisionBackbone
from panovlm.models.vision.directions import TokenDirections
from panovlm.models.vision.grid import Grid, ViewGrid
from panovlm.models.vision.projector import PanoramaProjector
from panovlm.models.vision.resampler import ResamplerModule
from panovlm.models.vision.seen import SeenViews, Views, as_views
from panovlm.models.vision.vicreg import VICRegProjector
from panovlm.panorama.views import leading_global


class PanoramaNetwork(SelfDescribingModel):
    """The parts of a :class:`~panovlm.models.model.PanoramaVLM` and their wiring.

    Args:
        config: recipe and backbone configurations.
        encoder: ready-made vision tower to use instead of building one from ``config``.
        language_model: ready-made language model, likewise.

    Attributes:
        recipe: everything that decides what the model computes.
        directions: where the resampled tokens look.
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
        self.directions = TokenDirections(
            self.recipe.image_processing, self.vision_backbone, self.resampler_module
        )
        self.projector = PanoramaProjector(
            models,
            language_dim=width,
            leading_global=self.leading_global,
            directions=self.directions,
        )
        closed = models.vision_rope == "closed_yaw"
        self.vision_rope = VisionRope(self.language_model) if closed else None
        self.text_projection = nn.Linear(width, width) if models.use_text_projection else None
        if models.layout != "original":
            # Present in every checkpoint of this family, so that a file that lost its metadata
            # tells its settings all the same, and is not taken for one of the original system.
            self.keep_record()
        self.post_init()

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the model; what is computed and not stored keeps its type.

        ``.to(torch.bfloat16)`` would round the frequencies of rotary positions as well. A
        checkpoint holds no such buffer, so that the loaded model would have other ones.
        """
        computed = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name in module._non_persistent_buffers_set and buffer.is_floating_point()
        ]
        cast(Any, super())._apply(fn, recurse)
        for module, name, before in computed:
            after = module.get_buffer(name)
            if after.dtype != before.dtype:
                module.register_buffer(name, before.to(after.device), persistent=False)
        return self

    # ------------------------------------------------------------------ vision

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """Return the tower's tokens.

        Args:
            pixel_values: normalised views ``[B, V, 3, h, w]``; ``[B, 3, h, w]`` counts as one view.

        Returns:
            ``[B·V, S, Dv]``.
        """
        pixels = as_views(pixel_values).flatten(0, 1)
        return self.vision_backbone(in_dtype_of(self.vision_backbone, pixels))

    def seen(self, views: Views) -> SeenViews:
        """Return what the tower makes of views, unless that is what is given."""
        if isinstance(views, SeenViews):
            return views
        views = as_views(views)
        features = self.vision_features(views).unflatten(0, views.shape[:2])
        return SeenViews(features, (views.shape[-2], views.shape[-1]))

    def resampled_features(self, pixel_values: Views) -> Tensor:
        """Return the resampler's tokens ``[B·V, S', D]`` of views ``[B, V, 3, h, w]``."""
        return self.resampled(pixel_values)[0]

    def resampled(self, pixel_values: Views) -> tuple[Tensor, Grid | None]:
        """Return the resampler's tokens and how a view's lie (``None``: as their number tells).

        Args:
            pixel_values: normalised views ``[B, V, 3, h, w]``, or what the tower makes of them.

        Returns:
            ``[B·V, S', D]``, and their rows and columns.

        Raises:
            ConfigError: the resampler's settings do not fit the views.
        """
        seen = self.seen(pixel_values)
        features = seen.features.flatten(0, 1)
        grid = self.view_grid(seen.size, features.shape[1])
        tokens = self.resampler_module(
            in_dtype_of(self.resampler_module, features),
            grid,
            num_views=seen.num_views,
            apart=self.projector.apart,
        )
        return tokens, self.resampler_module.grid(grid)

    def view_grid(self, size: tuple[int, int], count: int) -> ViewGrid | None:
        """Return where the tower's tokens lie, if the resampler must know it.

        Args:
            size: (height, width) of a view in pixels.
            count: tokens S of a view.

        Raises:
            ConfigError: it must, and the tower does not tell.
        """
        known = self.resampler_module.reads_grid
        return self.vision_backbone.view_grid(size, count) if known else None

    def vision_tokens(self, pixel_values: Views) -> Tensor:
        """Return what the language model reads, ``[B, T, Dm]``, of views ``[B, V, 3, h, w]``."""
        seen = self.seen(pixel_values)
        tokens, grid = self.resampled(seen)
        num_views = seen.num_views
        if self.vision_rope is not None:
            self.vision_rope.know(self.projector.places(num_views, tokens.shape[1], grid))
        return self.projector(in_dtype_of(self.projector, tokens), num_views, grid)

    # ------------------------------------------------------------------ language

    def forward(
        self,
        pixel_values: Views | None = None,
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
            pixel_values: normalised views ``[B, V, 3, h, w]``, or what the tower makes of them.
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
        inputs = self.fuse(
            pixel_values,
            input_ids,
            attention_mask,
            labels,
            segments=segments,
            vision_tokens=vision_tokens,
            project_text=project_text,
        )
        return self.language_model(**inputs, **kwargs)

    def fuse(
        self,
        pixel_values: Views | None,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        *,
        segments: Tensor | None = None,
        vision_tokens: Tensor | None = None,
        project_text: bool = False,
        padding_side: Literal["right", "left"] = "right",
    ) -> dict[str, Tensor]:
        """Return the language model's inputs with the vision tokens in their place.

        Models with a ``fusion_text_limit`` first cut the text behind it; of several conversations
        in a row, the data keep each below it.

        Args:
            pixel_values: normalised views ``[B, V, 3, h, w]``, or what the tower makes of them.
            input_ids: text ``[B, L]``.
            attention_mask: ``[B, L]``; absent: all text.
            labels: ``[B, L]``, -100 where no loss is taken.
            segments: ``[B, L]``, as for :meth:`forward`.
            vision_tokens: ``[B, T, Dm]`` computed before, instead of ``pixel_values``.
            project_text: apply the text projection, where there is one.
            padding_side: side of rows that end up shorter than others.

        Returns:
            ``inputs_embeds``, ``attention_mask`` and, when given, ``labels``; with ``segments``
            also ``position_ids``, as with ``vision_rope`` closed_yaw.
        """
        models = self.recipe.models
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        limit = models.fusion_text_limit
        if limit is not None and padding_side == "left":
            attention_mask = attention_mask * (attention_mask.cumsum(dim=1) <= limit)
        elif limit is not None and segments is None:
            input_ids, attention_mask = input_ids[:, :limit], attention_mask[:, :limit]
            labels = None if labels is None else labels[:, :limit]
        embeds: Tensor = self.get_input_embeddings()(input_ids)
        if project_text and self.text_projection is not None:
            embeds = self.text_projection(embeds)
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
            fallback=models.vision_token_fallback_position,
            fallback_ends=models.vision_token_fallback_ends,
            padding_side=padding_side,
            segments=segments,
        )
        inputs = {"inputs_embeds": fused.inputs_embeds, "attention_mask": fused.attention_mask}
        if fused.labels is not None:
            inputs["labels"] = fused.labels
        if fused.segments is not None:
            inputs["attention_mask"] = segment_mask(fused.segments, fused.inputs_embeds.dtype)
            inputs["position_ids"] = segment_positions(fused.segments)
        if self.vision_rope is not None and fused.numbers is not None:
            base = inputs.get("position_ids", (fused.attention_mask.cumsum(1) - 1).clamp(min=0))
            count = vision_tokens.shape[1]
            inputs["position_ids"] = self.vision_rope.positions(base, fused.numbers, count)
        return inputs
