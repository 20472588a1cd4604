"""The network with its tokenizer: questions go in, answers come out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from panovlm.errors import ConfigError, DataError
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.language import shared_prefix
from panovlm.models.language.chat import ChatFormat
from panovlm.models.language.tokenizer import vision_token_id
from panovlm.models.network import PanoramaNetwork
from panovlm.models.stream import Request, answer_each
from panovlm.panorama.pipeline import ViewPipeline


class AnsweringNetwork(PanoramaNetwork):
    """A network that answers questions about panoramas.

    Args:
        config: recipe and backbone configurations.
        encoder: ready-made vision tower, as for :class:`PanoramaNetwork`.
        language_model: ready-made language model, likewise.

    Attributes:
        tokenizer: the model's tokenizer, once one is attached.
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
