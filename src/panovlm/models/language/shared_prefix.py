"""Generation for several prompts that begin alike: the language model reads what they share once.

Questions about one panorama share its vision tokens, which are most of a prompt. Keys and values
of the shared beginning are computed for one row per panorama and copied to the rows of all its
questions; only what is left of each question is then read.
"""

from __future__ import annotations

from copy import copy
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

OTHER_WAYS = frozenset(
    {
        "assistant_model",
        "cache_config",
        "cache_implementation",
        "generation_config",
        "num_return_sequences",
        "position_ids",
        "past_key_values",
        "prefill_chunk_size",
        "prompt_lookup_num_tokens",
        "return_dict_in_generate",
        "streamer",
        "use_cache",
    }
)
"""Arguments of ``generate`` that concern the cache or the positions, or change what comes out."""


def generate(
    language_model: Any, inputs_embeds: Tensor, attention_mask: Tensor, rows: Tensor, **kwargs: Any
) -> Tensor:
    """Continue prompts, reading once what those of one panorama share.

    The result is that of ``language_model.generate`` on all rows, within the rounding of sums that
    are added up in another order. Where nothing is shared, or the language model keeps no plain
    cache of keys and values, that is what is called.

    Args:
        language_model: a causal language model of transformers, with or without adapters.
        inputs_embeds: ``[Q, L, Dm]``, padded on the left.
        attention_mask: ``[Q, L]``.
        rows: int64 ``[Q]``, which panorama each row is about.
        **kwargs: as for :meth:`transformers.GenerationMixin.generate`.

    Returns:
        The new ids ``[Q, n]``.
    """
    inputs = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
    groups, group = rows.unique(return_inverse=True)
    cache = empty_cache(language_model, kwargs) if len(groups) < len(rows) else None
    if cache is None:
        return language_model.generate(**inputs, **kwargs)
    lengths = attention_mask.sum(dim=1)
    aligned = _aligned(inputs_embeds, lengths)
    first = torch.stack([(group == number).nonzero()[0, 0] for number in range(len(groups))])
    shared = _shared_length(aligned, lengths, first[group])
    if shared == 0:
        return language_model.generate(**inputs, **kwargs)
    language_model.get_decoder()(
        inputs_embeds=aligned[first, :shared], past_key_values=cache, use_cache=True
    )
    rest = lengths - shared
    made = torch.full((len(rows), 0), 0, device=rows.device)
    for part in _parts(rest, apart=any(cache.is_sliding)):
        new = language_model.generate(
            **_continued(inputs_embeds[part], rest[part], shared),
            past_key_values=_rows_of(cache, group[part], int(kwargs.get("num_beams") or 1)),
            **kwargs,
        )
        made = _placed(made, new, part, int(kwargs["pad_token_id"]))
    return made


def empty_cache(language_model: Any, kwargs: dict[str, Any]) -> DynamicCache | None:
    """Return a cache that can be copied from row to row; ``None``: there is none to be had."""
    own = getattr(language_model.generation_config, "cache_implementation", None)
    if own is not None or kwargs.keys() & OTHER_WAYS or kwargs.get("pad_token_id") is None:
        return None
    if not language_model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=language_model.config)
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return cache if plain and cache.layers else None


def _aligned(embeds: Tensor, lengths: Tensor) -> Tensor:
    """Return rows that are padded on the left so that they all begin in column 0."""
    L = embeds.shape[1]
    columns = torch.arange(L, device=embeds.device) + (L - lengths)[:, None]
    index = columns.clamp(max=L - 1)[..., None].expand_as(embeds)
    return embeds.gather(1, index)


def _shared_length(aligned: Tensor, lengths: Tensor, first: Tensor) -> int:
    """Return with how many positions every row begins like row ``first``; each keeps one more."""
    same = (aligned == aligned[first]).all(dim=2).int().cumprod(dim=1).sum(dim=1)
    return int(torch.minimum(same, lengths - 1).min())


def _parts(rest: Tensor, *, apart: bool) -> list[Tensor]:
    """Return the rows that are continued together.

    Rows of unequal length are padded behind what they share. Layers that look back over a window
    count the padding, so that with them (``apart``) only rows of one length go together.
    """
    if not apart:
        return [torch.arange(len(rest), device=rest.device)]
    return [(rest == length).nonzero()[:, 0] for length in rest.unique()]


def _continued(embeds: Tensor, rest: Tensor, shared: int) -> dict[str, Tensor]:
    """Return the inputs of rows whose first ``shared`` positions are in the cache.

    ``generate`` wants a row's whole length and reads the end of it.
    """
    longest = int(rest.max())
    own = embeds[:, embeds.shape[1] - longest :]
    read = torch.arange(longest, device=rest.device) >= longest - rest[:, None]
    before = own.new_zeros(len(own), shared, own.shape[2])
    known = read.new_ones(len(own), shared)
    return {
        "inputs_embeds": torch.cat([before, own], dim=1),
        "attention_mask": torch.cat([known, read], dim=1).long(),
    }


def copied(cache: DynamicCache) -> DynamicCache:
    """Return a cache that goes its own way; what both hold by now is held once."""
    copied = copy(cache)
    copied.layers = [copy(layer) for layer in cache.layers]
    return copied


def _rows_of(cache: DynamicCache, group: Tensor, beams: int) -> DynamicCache:
    """Return the cache with a row for every row's panorama, ``beams`` times each."""
    rows = copied(cache)
    rows.reorder_cache(cast("Any", group.repeat_interleave(beams)))
    return rows


def _placed(made: Tensor, new: Tensor, part: Tensor, pad_id: int) -> Tensor:
    """Put the ids of some rows into those of all, widened to the longest."""
    width = max(made.shape[1], new.shape[1])
    wider = made.new_full((made.shape[0], width), pad_id)
    wider[:, : made.shape[1]] = made
    wider[part, : new.shape[1]] = new
    return wider
