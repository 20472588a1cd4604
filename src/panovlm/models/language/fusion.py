"""Fusion: the vision tokens of a sample take their place among its text embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from panovlm.models.language.chat import IGNORED


@dataclass(frozen=True)
class Fused:
    """Input of the language model after fusion, all rows of one length L'."""

    inputs_embeds: Tensor
    """[B, L', Dm]."""
    attention_mask: Tensor
    """[B, L'], 0 at padding; dtype of the mask given."""
    labels: Tensor | None
    """[B, L'], -100 at vision tokens and padding; None when none were given."""
    segments: Tensor | None = None
    """[B, L'], 0 at vision tokens and -1 at padding; None when none were given."""
    numbers: Tensor | None = None
    """[B, L'], 1 to T at the vision tokens, 0 elsewhere."""


def fuse_vision(
    text_embeds: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor | None,
    vision_tokens: Tensor,
    *,
    placeholder_id: int | None,
    fallback: Literal["prefix", "suffix"],
    fallback_ends: Literal["text", "row"] = "text",
    padding_side: Literal["right", "left"] = "right",
    segments: Tensor | None = None,
) -> Fused:
    """Insert the vision tokens of every sample into its text.

    All placeholders of a row are removed, and its T vision tokens inserted where the first one
    was. In a row without placeholder they go directly before the first text position (prefix) or
    directly behind the last one (suffix); padding (mask 0) is no text, so where they go does not
    depend on the other rows of the batch, unless ``fallback_ends`` says so. Vision tokens have
    mask 1 and label -100. Rows that end up shorter than others get zero embeddings, mask 0 and
    label -100 on ``padding_side``.

    Args:
        text_embeds: [B, L, Dm], embeddings of ``input_ids`` (what a placeholder embeds to is
            not used).
        input_ids: [B, L].
        attention_mask: [B, L], 1 at text and 0 at padding.
        labels: [B, L] or None.
        vision_tokens: [B, T, Dm]; converted to the dtype of ``text_embeds``.
        placeholder_id: id of ``<|vision|>``; None: no row has one.
        fallback: place of the vision tokens in a row without placeholder.
        fallback_ends: ``"row"`` takes padding for text when places are looked for, as long as
            ``padding_side`` keeps it.
        padding_side: ``"right"`` keeps padded positions of the input as they are. ``"left"``
            replaces them by padding in front, so that every row ends with its last text or
            vision token, as generation needs it.
        segments: [B, L], which conversation of its row a token belongs to, or None.
    """
    B, L, Dm = text_embeds.shape
    T = vision_tokens.shape[1]
    is_text = attention_mask.bool()
    whole_rows = fallback_ends == "row" and padding_side == "right"
    counted = torch.ones_like(is_text) if whole_rows else is_text
    if placeholder_id is None:
        is_placeholder = torch.zeros_like(is_text)
    else:
        is_placeholder = (input_ids == placeholder_id) & counted
    insert_at = torch.where(
        is_placeholder.any(dim=1), _first(is_placeholder), _fallback_position(counted, fallback)
    )[:, None]  # [B, 1]: the vision tokens stand before this text position

    # Sort key of every row's L text positions, then its T vision tokens; what is left out has
    # the largest key and so ends up behind everything that stays.
    position = torch.arange(L, device=input_ids.device)
    text_key = position + T * (position >= insert_at)
    text_key = text_key.masked_fill(is_placeholder, L + T)
    vision_key = insert_at + torch.arange(T, device=input_ids.device)
    order = torch.cat([text_key, vision_key], dim=1).argsort(dim=1, stable=True)

    embeds = torch.cat([text_embeds, vision_tokens.to(text_embeds.dtype)], dim=1)
    mask = torch.cat([attention_mask, attention_mask.new_ones(B, T)], dim=1)
    removed = torch.cat([is_placeholder, is_placeholder.new_zeros(B, T)], dim=1)
    if padding_side == "left":
        removed = removed | (mask == 0)
        stays = ~removed.gather(1, order)
        order = order.gather(1, stays.int().argsort(dim=1, stable=True))
    surplus = int(removed.sum(dim=1).min())
    order = order[:, surplus:] if padding_side == "left" else order[:, : L + T - surplus]

    embeds = embeds.masked_fill(removed[..., None], 0)
    embeds = embeds.gather(1, order[..., None].expand(-1, -1, Dm))

    def fused(values: Tensor, at_vision: int | Tensor, at_padding: int) -> Tensor:
        vision = torch.as_tensor(at_vision, dtype=values.dtype, device=values.device)
        whole = torch.cat([values, vision.expand(B, T)], dim=1)
        return whole.masked_fill(removed, at_padding).gather(1, order)

    return Fused(
        embeds,
        mask.masked_fill(removed, 0).gather(1, order),
        None if labels is None else fused(labels, IGNORED, IGNORED),
        None if segments is None else fused(segments, 0, -1),
        fused(torch.zeros_like(input_ids), torch.arange(1, T + 1, device=input_ids.device), 0),
    )


def _first(flags: Tensor) -> Tensor:
    """Return the index of the first true entry of every row, [B, L] → [B] (0 if there is none)."""
    if flags.shape[1] == 0:
        return torch.zeros(flags.shape[0], dtype=torch.long, device=flags.device)
    return flags.int().argmax(dim=1)


def _fallback_position(is_text: Tensor, fallback: Literal["prefix", "suffix"]) -> Tensor:
    """Return the text position before which vision tokens go without placeholder, [B]."""
    if fallback == "prefix":
        return _first(is_text)
    behind_last = is_text.shape[1] - _first(is_text.flip(1))
    return torch.where(is_text.any(dim=1), behind_last, 0)
