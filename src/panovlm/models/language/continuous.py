"""Continuous batching: answers of different lengths are generated side by side.

A row leaves the batch as soon as its answer ends, and another one takes its place at once. The
continuous batching of transformers begins with token ids only, vision tokens have none; from there
come, for every row, the logits processors and stopping criteria that ``generate`` would use.

Every row stands at the right end of the batch, behind padding where others are longer, as
``generate`` has it; so nothing lies between the tokens of a row, and layers that look back over a
window see what they see in a row alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from panovlm.errors import ConfigError
from panovlm.models.language.shared_prefix import OTHER_WAYS, copied, empty_cache

Ticket = TypeVar("Ticket")

_REFUSED = OTHER_WAYS | {"custom_generate", "stop_strings"}
_ONE_TOKEN_AT_A_TIME = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
_PROMPT = ("inputs_embeds", "attention_mask", "position_ids", "past_key_values")
"""What of a model's arguments belongs to one row."""


@dataclass(frozen=True)
class Beginning:
    """A prompt that was read, for others that begin like it."""

    embeds: Tensor
    """[1, L, Dm]."""
    cache: DynamicCache
    """Its keys and values, those behind the windows of layers as well."""


@dataclass(eq=False)
class _Row:
    """An answer in the making."""

    ids: Tensor
    """The new tokens, [1, n]; the last one is still to be read."""
    cache: DynamicCache
    """What was read before the row came into the batch."""
    length: int
    """Positions that were read."""
    position: Tensor | None
    """Position of the last token, [1, 1]; ``None``: the model takes none."""
    processors: Any
    """Its :class:`transformers.LogitsProcessorList`."""
    criteria: Any
    """Its :class:`transformers.StoppingCriteriaList`."""
    sample: bool
    options: Mapping[str, Any]
    """Further arguments of the model, the same for all rows."""
    done: bool = False

    def take(self, logits: Tensor) -> None:
        """Choose the next token as ``generate`` does, by logits ``[1, vocabulary]``."""
        scores = self.processors(self.ids, logits.to(torch.float32, copy=True))
        if self.sample:
            token = torch.multinomial(scores.softmax(dim=-1), num_samples=1)
        else:
            token = scores.argmax(dim=-1, keepdim=True)
        self.ids = torch.cat([self.ids, token], dim=1)
        self.done = bool(self.criteria(self.ids, None).all())


class ContinuousBatch(Generic[Ticket]):
    """Prompts that are being continued, each with a ticket by which its answer is known.

    Args:
        language_model: a causal language model of transformers, with or without adapters.
        kwargs: as for :meth:`transformers.GenerationMixin.generate`.

    Raises:
        ConfigError: the model, or one of the arguments, cannot be had row by row.
    """

    def __init__(self, language_model: Any, kwargs: Mapping[str, Any]) -> None:
        if refused := sorted(kwargs.keys() & _REFUSED):
            raise ConfigError(
                f"{', '.join(refused)} cannot be kept for every answer of a continuous batch by "
                "itself; leave it out, or use answers(), which generates batches of fixed rows."
            )
        self._language_model = language_model
        self._kwargs = dict(kwargs)
        self._batch = self._empty()
        self._held: list[_Row] = []
        self._waiting: dict[_Row, Ticket] = {}
        self._finished: list[tuple[Ticket, list[int]]] = []

    def __len__(self) -> int:
        """Return how many answers are in the making."""
        return len(self._waiting)

    def add(
        self, ticket: Ticket, inputs: Mapping[str, Tensor], like: Beginning | None = None
    ) -> Beginning:
        """Read a prompt and choose the first token of its answer.

        Args:
            ticket: what its answer is given back with.
            inputs: ``inputs_embeds`` ``[1, L, Dm]``, without padding, and what else ``generate``
                needs to know of them.
            like: a prompt read before; what both begin with is not read again.

        Returns:
            The prompt that later ones can begin like: ``like``, or this one.

        Raises:
            ConfigError: the answer cannot be made one token after the other.
        """
        embeds = inputs["inputs_embeds"]
        cache = self._empty() if like is None else _shared(like, embeds)
        cache.activate_past_recording()
        row: _Row = self._language_model.generate(
            **inputs, past_key_values=cache, custom_generate=_begun, **self._kwargs
        )
        self._waiting[row] = ticket
        self._part()
        return like or Beginning(embeds, cache)

    def step(self) -> None:
        """Read the last token of every row and choose the next one; without rows, do nothing."""
        if not self._waiting:
            return
        rows = list(self._waiting)
        width = max(row.length for row in rows)
        self._arrange(rows, width)
        device = rows[0].ids.device
        padding = torch.tensor([width - row.length for row in rows], device=device)[:, None]
        inputs: dict[str, Any] = {
            "past_key_values": self._batch,
            "attention_mask": (torch.arange(width + 1, device=device) >= padding).long(),
        }
        positions = [row.position for row in rows if row.position is not None]
        if positions:
            inputs["position_ids"] = torch.cat(positions)
        last = torch.cat([row.ids[:, -1:] for row in rows])
        logits = _read(_unwrapped(self._language_model), last, **inputs, **rows[0].options)
        for row, own in zip(rows, logits.split(1), strict=True):
            row.length += 1
            row.position = None if row.position is None else row.position + 1
            row.take(own)
        self._part()

    def finished(self) -> list[tuple[Ticket, list[int]]]:
        """Return the answers that ended since the last call, as ids with their end mark."""
        finished, self._finished = self._finished, []
        return finished

    def _part(self) -> None:
        """Let the rows go whose answers have ended."""
        for row in [row for row in self._waiting if row.done]:
            self._finished.append((self._waiting.pop(row), row.ids[0].tolist()))

    def _arrange(self, rows: Sequence[_Row], width: int) -> None:
        """Give every row its place in the cache, and none to those that left."""
        if rows == self._held:
            return
        kept = [place for place, row in enumerate(self._held) if row in self._waiting]
        parts = [row.cache for row in rows[len(kept) :]]
        if kept:
            self._batch.batch_select_indices(torch.tensor(kept, device=rows[0].ids.device))
            parts.insert(0, self._batch)
        self._batch = _together(self._empty(), parts, width)
        self._held = list(rows)

    def _empty(self) -> DynamicCache:
        cache = empty_cache(self._language_model, self._kwargs)
        if cache is None:
            raise ConfigError(
                f"{type(_unwrapped(self._language_model)).__name__} keeps something else than keys "
                "and values of what it has read, which rows cannot bring into a batch and take "
                "with them; use answers(), which generates batches of fixed rows."
            )
        return cache


def _begun(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> _Row:
    """Read a prompt, in place of the loop of ``generate``, which has prepared the rest."""
    mode = generation_config.get_generation_mode()
    if mode not in _ONE_TOKEN_AT_A_TIME or len(input_ids) > 1:
        raise ConfigError(
            f"continuous batches make each answer one token after the other, but the settings of "
            f"generation ask for {mode.value.replace('_', ' ')} with num_beams "
            f"{generation_config.num_beams}; set num_beams to 1, or use answers()."
        )
    cache: DynamicCache = model_kwargs["past_key_values"]
    length = model_kwargs["inputs_embeds"].shape[1]
    unread = length - cache.get_seq_length()
    logits = _read(model, input_ids, unread, is_first_iteration=True, **model_kwargs)
    positions = model_kwargs.get("position_ids")
    row = _Row(
        ids=input_ids,
        cache=cache,
        length=length,
        position=None if positions is None else positions[:, -1:] + 1,
        processors=logits_processor,
        criteria=stopping_criteria,
        sample=generation_config.do_sample,
        options={name: given for name, given in model_kwargs.items() if name not in _PROMPT},
    )
    row.take(logits)
    return row


def _read(model: Any, ids: Tensor, unread: int = 1, **inputs: Any) -> Tensor:
    """Read the last ``unread`` positions; return the logits behind the last, [B, vocabulary]."""
    given = model.prepare_inputs_for_generation(ids, next_sequence_length=unread, **inputs)
    return model(**given, return_dict=True).logits[:, -1]


def _unwrapped(language_model: Any) -> Any:
    """Return a language model without the wrapper of its adapters, which work all the same."""
    wrapped = hasattr(language_model, "get_base_model")
    return language_model.get_base_model() if wrapped else language_model


def _shared(like: Beginning, embeds: Tensor) -> DynamicCache:
    """Return the cache of what a prompt begins like another; one position is left to be read."""
    longest = min(like.embeds.shape[1], embeds.shape[1] - 1)
    same = (like.embeds[0, :longest] == embeds[0, :longest]).all(dim=1)
    cache = copied(like.cache)
    cache.crop(int(same.int().cumprod(dim=0).sum()) - like.embeds.shape[1])
    return cache


def _together(empty: DynamicCache, parts: Sequence[DynamicCache], width: int) -> DynamicCache:
    """Put the rows of caches below each other, all at the right end of ``width`` columns."""
    for layer, *own in zip(empty.layers, *(part.layers for part in parts), strict=True):
        columns = min(width, layer.sliding_window - 1) if layer.is_sliding else width
        layer.lazy_initialization(own[0].keys, own[0].values)
        layer.keys = torch.cat([_end(one.keys, columns) for one in own])
        layer.values = torch.cat([_end(one.values, columns) for one in own])
        if layer.is_sliding:
            layer.cumulative_length = width
    return empty


def _end(states: Tensor, columns: int) -> Tensor:
    """Return the last columns of keys or values ``[B, H, L, D]``, behind zeros if too few."""
    missing = columns - states.shape[2]
    return functional.pad(states, (0, 0, missing, 0)) if missing > 0 else states[:, :, -missing:]
