"""Conversations as token ids: training examples with labels, prompts, and decoded answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Literal, Self, cast

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from panovlm.config.schema import Recipe
from panovlm.errors import ConfigError, DataError
from panovlm.models.language.tokenizer import CHATML_TEMPLATE, VISION_TOKEN, vision_token_id

IGNORED = -100
"""Label of a position that does not count in the loss."""

AUTO_FLOOR = 64
"""Fewest text tokens per sample that an automatic limit allows."""
AUTO_CAP = 2048
"""Most text tokens per sample that an automatic limit allows."""
AUTO_SCAN_LIMIT = 1000
"""Texts that ``auto:dataset`` measures."""

Message = dict[str, str]

_BRACKET_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '[' + message['role'] | upper + ']\n' + message['content'] + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '[ASSISTANT]\n' }}{% endif %}"
)
# No space after the header of a prompt: tokenizers join it to the word that follows, so with one
# a prompt would be no beginning of the training text.
_PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


class ChatFormat:
    """Renders conversations with the tokenizer's chat template, thinking switched off.

    A tokenizer without template gets one by ``model_name``: names with "llama" headers in
    brackets, names with "qwen" ChatML, others ``User: ..`` and ``Assistant: ..`` lines.

    Args:
        tokenizer: tokenizer prepared by ``prepare_tokenizer``.
        model_name: name of the language model.
        system_message: text of the system turn; empty: there is none.
        training_placeholder: whether training texts hold ``<|vision|>`` where prompts have it;
            the original system trained without.

    Raises:
        ConfigError: the tokenizer was not prepared.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_name: str,
        system_message: str,
        training_placeholder: bool,
    ) -> None:
        self.tokenizer = tokenizer
        self.placeholder_id = vision_token_id(tokenizer)
        self.model_name = model_name
        self.system_message = system_message
        self.training_placeholder = training_placeholder
        self._template = None if tokenizer.chat_template else _fallback_template(model_name)

    @classmethod
    def of(cls, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Return the format that a recipe describes; errors as for the class."""
        models = recipe.models
        return cls(
            tokenizer,
            model_name=models.language_model_name,
            system_message=recipe.system_messages.default,
            training_placeholder=models.training_placeholder,
        )

    def training_text(self, turns: Sequence[tuple[str, str]]) -> str:
        """Return the text of a training conversation, as it is tokenised."""
        return self._render(self._conversation(turns))

    def training_example(
        self, turns: Sequence[tuple[str, str]], max_length: int | None
    ) -> tuple[list[int], list[int]]:
        """Tokenise a conversation and mark what is to be learnt.

        Labels are the ids of the assistant turns, with their header, end mark and the white
        space after it, and -100 everywhere else. No padding is added.

        Args:
            turns: (user text, answer) pairs, in order.
            max_length: ids to keep, counted from the left; None keeps all. An answer that lies
                behind the cut has no label left.

        Returns:
            Ids and labels, equally long.

        Raises:
            DataError: there is no turn.
            ConfigError: the chat template refuses the conversation, or the place of a turn
                cannot be told from its output.
        """
        messages = self._conversation(turns)
        text = self._render(messages)
        ids = self._tokenise(text)
        labels = [IGNORED] * len(ids)
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = self._around(messages, index, text)
                start, stop = self._position(ids, before), self._position(ids, after)
                labels[start:stop] = ids[start:stop]
        return ids[:max_length], labels[:max_length]

    def prompt(self, question: str) -> list[int]:
        """Return the ids that ask ``question`` and open the assistant's turn.

        The question stands behind ``<|vision|>`` and a newline, unless it has the placeholder.

        Raises:
            ConfigError: the chat template refuses the conversation.
        """
        messages = [*self._system(), {"role": "user", "content": _with_placeholder(question)}]
        return self._tokenise(self._render(messages, answer_next=True))

    def prompts(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return several prompts, padded on the left, so that all answers begin in one column.

        Returns:
            Ids and attention mask (1 on text), both int64 [B, L].

        Raises:
            ConfigError: the chat template refuses a conversation.
        """
        prompts = [self.prompt(question) for question in questions]
        length = max(len(prompt) for prompt in prompts)
        pad = [cast("int", self.tokenizer.pad_token_id)]
        gaps = [length - len(prompt) for prompt in prompts]
        ids = [pad * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)]
        mask = [[0] * gap + [1] * (length - gap) for gap in gaps]
        return torch.tensor(ids), torch.tensor(mask)

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return generated ids as text, without special tokens and outer white space."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return cast("str", text).strip()

    def _system(self) -> list[Message]:
        message = self.system_message
        return [{"role": "system", "content": message}] if message else []

    def _conversation(self, turns: Sequence[tuple[str, str]]) -> list[Message]:
        """Return the messages of a training conversation."""
        if not turns:
            raise DataError("a training conversation needs at least one question with its answer.")
        messages = self._system()
        for number, (question, answer) in enumerate(turns):
            if self.training_placeholder and number == 0:
                question = _with_placeholder(question)
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        return messages

    def _render(self, messages: Sequence[Message], *, answer_next: bool = False) -> str:
        """Return the conversation as text."""
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=answer_next,
                enable_thinking=False,
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ConfigError(
                f"the chat template of {self.model_name!r} refuses the turns {roles}: {error}. "
                "If it knows no system turn, set system_messages.default to an empty string."
            ) from error
        return cast("str", text)

    def _tokenise(self, text: str) -> list[int]:
        # A template writes the tokens that open and close a text itself.
        return cast("list[int]", self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _around(self, messages: Sequence[Message], index: int, text: str) -> tuple[str, str]:
        """Return the beginnings of ``text`` that end before and after turn ``index``."""
        before = self._render(messages[:index])
        after = self._render(messages[: index + 1])
        if not text.startswith(after) and index + 1 < len(messages):
            after = self._before_next(messages, index, before)
        if not (text.startswith(after) and after.startswith(before)):
            raise self._untraceable("an earlier turn looks different once a later one is added")
        return before, after

    def _before_next(self, messages: Sequence[Message], index: int, before: str) -> str:
        """Return the text before turn ``index + 1``.

        Some templates (Qwen3's) write the last assistant turn differently from earlier ones, so
        a conversation that stops there is no beginning of the longer one. The text of the turn
        after it is known all the same: it is what that turn adds to a conversation without turn
        ``index``. Where the guess is wrong, the caller finds that the texts do not fit together.
        """
        following = messages[index + 1]
        through = self._render(messages[: index + 2])
        added = self._render([*messages[:index], following]).removeprefix(before)
        if not (added and through.endswith(added)):
            raise self._untraceable("the turn after an answer depends on the answer")
        return through.removesuffix(added)

    def _position(self, ids: list[int], beginning: str) -> int:
        """Return how many of ``ids`` the text ``beginning`` takes."""
        part = self._tokenise(beginning)
        if ids[: len(part)] != part:
            raise self._untraceable("a token reaches over the border of a turn")
        return len(part)

    def _untraceable(self, reason: str) -> ConfigError:
        return ConfigError(
            f"cannot tell which tokens of {self.model_name!r} belong to the answers: {reason} by "
            "its chat template. Train with questions_per_sample 1, or set models.tokenizer_name "
            "to a tokenizer with another chat template."
        )


def resolve_max_length(
    setting: int | Literal["auto", "auto:dataset"],
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
) -> int:
    """Return how many text tokens a sample may have.

    Args:
        setting: a number is taken as it is. ``"auto"``: the tokenizer's own limit, at least
            :data:`AUTO_FLOOR` and at most :data:`AUTO_CAP`. ``"auto:dataset"``: the longest of
            the first :data:`AUTO_SCAN_LIMIT` texts, between the same bounds and never more than
            ``"auto"`` gives.
        tokenizer: tokenizer of the language model.
        texts: training texts (:meth:`ChatFormat.training_text`), read for ``"auto:dataset"`` only.
    """
    if isinstance(setting, int):
        return setting
    limit = max(AUTO_FLOOR, min(tokenizer.model_max_length, AUTO_CAP))
    if setting == "auto":
        return limit
    scanned = islice(texts, AUTO_SCAN_LIMIT)
    lengths = (len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in scanned)
    return min(limit, max(AUTO_FLOOR, max(lengths, default=AUTO_FLOOR)))


def _fallback_template(model_name: str) -> str:
    """Return the template of a tokenizer that has none."""
    name = model_name.lower()
    if "llama" in name:
        return _BRACKET_TEMPLATE
    return CHATML_TEMPLATE if "qwen" in name else _PLAIN_TEMPLATE


def _with_placeholder(question: str) -> str:
    """Return the question behind the vision placeholder."""
    return question if VISION_TOKEN in question else f"{VISION_TOKEN}\n{question}"
