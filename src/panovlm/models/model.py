"""PanoramaVLM: the network with its tokenizer and adapters, and its way from and to files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from panovlm.checkpoint.formats.header import RECORD
from panovlm.config.schema import LoRASettings, Recipe
from panovlm.errors import AssumedSettingsWarning, CheckpointError, ConfigError, DataError
from panovlm.models.answering import Request, answer_each
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.language import shared_prefix
from panovlm.models.language.chat import ChatFormat
from panovlm.models.language.lora import attach_lora, check_targets, merge_lora
from panovlm.models.language.quantized import quantize_linears, quantized, restore_linears
from panovlm.models.language.tokenizer import vision_token_id
from panovlm.models.network import PanoramaNetwork
from panovlm.panorama.pipeline import ViewPipeline

if TYPE_CHECKING:
    from panovlm.checkpoint.resolution import Resolution
    from panovlm.checkpoint.settle.settling import Prefer


class PanoramaVLM(PanoramaNetwork):
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

    def __init__(
        self,
        config: PanoramaVLMConfig,
        *,
        encoder: nn.Module | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config, encoder=encoder, language_model=language_model)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.resolution: Resolution | None = None
        if self.recipe.lora.use_lora:
            self._attach(self.recipe.lora)

    # ------------------------------------------------------------------ answers

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        vision_tokens: Tensor | None = None,
        about: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Continue prompts about panoramas; what those of one panorama share is computed once.

        Args:
            pixel_values: normalised views ``[P, V, 3, h, w]`` of ``P`` panoramas.
            input_ids: prompts ``[B, L]``; absent: the recipe's ``default_generation_prompt``.
            attention_mask: ``[B, L]``; absent: all text.
            vision_tokens: ``[P, T, Dm]`` computed before, instead of ``pixel_values``.
            about: int64 ``[B]``, which panorama each prompt is about; absent: one each, or all
                about the only one.
            **kwargs: as for :meth:`transformers.GenerationMixin.generate`.

        Returns:
            The new token ids ``[B, n]``, without the prompt, padded after the end mark.

        Raises:
            ConfigError: it is not clear which prompt is about which panorama.
        """
        if vision_tokens is None and pixel_values is not None:
            vision_tokens = self.vision_tokens(pixel_values)
        seen = 1 if vision_tokens is None else vision_tokens.shape[0]
        if input_ids is None:
            prompt = self.chat().prompt(self.recipe.models.default_generation_prompt)
            input_ids = torch.tensor([prompt] * seen, device=self.device)
        rows = _panorama_of_rows(about, seen, input_ids)
        inputs = self.fuse(
            None,
            input_ids,
            attention_mask,
            None,
            vision_tokens=None if vision_tokens is None else vision_tokens[rows],
            padding_side="left",
        )
        if self.tokenizer is not None:
            kwargs.setdefault("pad_token_id", self.tokenizer.pad_token_id)
            kwargs.setdefault("eos_token_id", self.tokenizer.eos_token_id)
        return shared_prefix.generate(self.language_model, **inputs, rows=rows, **kwargs)

    def answer(self, panorama: NDArray[np.uint8], question: str, **kwargs: Any) -> str:
        """Answer a question about a panorama; see :meth:`answers`."""
        return self.answers(panorama, [question], **kwargs)[0]

    def answers(
        self, panorama: NDArray[np.uint8], questions: Sequence[str], **kwargs: Any
    ) -> list[str]:
        """Answer questions about a panorama, which is looked at once for all of them.

        Args:
            panorama: equirectangular image ``[H, W, 3]``, uint8.
            questions: the user's texts, each a conversation of its own.
            **kwargs: as for :meth:`transformers.GenerationMixin.generate`.

        Returns:
            One answer per question.
        """
        if not questions:
            return []
        views = torch.from_numpy(ViewPipeline(self.recipe.image_processing)(panorama))
        chat = self.chat()
        ids, mask = chat.prompts(questions)
        made = self.generate(
            views[None].to(self.device), ids.to(self.device), mask.to(self.device), **kwargs
        )
        return [chat.decode_answer(row) for row in made.tolist()]

    def answer_each(
        self, requests: Iterable[Request], *, batch_size: int = 8, **kwargs: Any
    ) -> Iterator[tuple[Request, str | DataError]]:
        """Answer a stream of questions; see :func:`panovlm.models.answering.answer_each`."""
        return answer_each(self, requests, batch_size=batch_size, **kwargs)

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
        return ChatFormat.of(self.recipe, self.tokenizer)

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
        return cast(Any, super()).save_pretrained(*args, **kwargs)

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
            device = torch.accelerator.current_accelerator() or "cpu"
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


def _panorama_of_rows(about: Tensor | None, seen: int, input_ids: Tensor) -> Tensor:
    """Return which of the panoramas each prompt is about, int64 ``[B]``."""
    count = input_ids.shape[0]
    if about is None and seen in (1, count):
        every = torch.arange(count, device=input_ids.device)
        return every if seen == count else torch.zeros_like(every)
    if about is None or about.shape != (count,):
        told = "not told" if about is None else f"of shape {list(about.shape)}"
        raise ConfigError(
            f"there are {count} prompts and {seen} panoramas, but about, which says what each "
            f"prompt is about, is {told}; give it as int64 of shape [{count}]."
        )
    return about


AutoModel.register(PanoramaVLMConfig, PanoramaVLM)
