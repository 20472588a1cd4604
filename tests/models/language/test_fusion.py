from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from panovlm.models.language.fusion import fuse_vision

P = 9  # placeholder id
WIDTH = 3


def embed(ids: torch.Tensor) -> torch.Tensor:
    table = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0))
    return table[ids]


def reference(ids, mask, labels, vision, *, fallback, side, placeholder=P, ends="text"):
    """The fusion written with Python lists, one row at a time."""
    rows = []
    whole = ends == "row" and side == "right"
    for b in range(len(ids)):
        embeds = embed(ids[b])
        text = []  # (embedding, mask, label)
        place = None
        for j in range(ids.shape[1]):
            counts = whole or mask[b, j] == 1
            if placeholder is not None and ids[b, j] == placeholder and counts:
                place = len(text) if place is None else place
            else:
                text.append((embeds[j], int(mask[b, j]), int(labels[b, j])))
        if place is None:
            real = [j for j, (_, m, _) in enumerate(text) if m == 1 or whole] or [0]
            nothing = all(m == 0 for _, m, _ in text) and not whole
            place = real[0] if fallback == "prefix" or nothing else real[-1] + 1
        row = text[:place] + [(v, 1, -100) for v in vision[b]] + text[place:]
        if side == "left":
            row = [entry for entry in row if entry[1] == 1]
        rows.append(row)
    length = max(len(row) for row in rows)
    padded = []
    for row in rows:
        padding = [(torch.zeros(WIDTH), 0, -100)] * (length - len(row))
        padded.append(row + padding if side == "right" else padding + row)
    return (
        torch.stack([torch.stack([e for e, _, _ in row]) for row in padded]),
        torch.tensor([[m for _, m, _ in row] for row in padded]),
        torch.tensor([[label for _, _, label in row] for row in padded]),
    )


@st.composite
def batches(draw):
    B, T = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    L = draw(st.integers(1, 7))
    ids = torch.zeros(B, L, dtype=torch.long)
    mask = torch.zeros(B, L, dtype=torch.long)
    labels = torch.full((B, L), -100)
    for b in range(B):
        n = draw(st.integers(0, L))
        row = torch.tensor(draw(st.lists(st.integers(1, P), min_size=n, max_size=n)), dtype=int)
        at = slice(L - n, L) if draw(st.booleans()) else slice(0, n)
        ids[b, at], mask[b, at], labels[b, at] = row, 1, row
    seed = draw(st.integers(0, 99))
    vision = torch.randn(B, T, WIDTH, generator=torch.Generator().manual_seed(seed))
    return ids, mask, labels, vision


class TestAgainstLists:
    @given(
        batch=batches(),
        fallback=st.sampled_from(["prefix", "suffix"]),
        side=st.sampled_from(["right", "left"]),
        placeholder=st.sampled_from([P, None]),
        ends=st.sampled_from(["text", "row"]),
    )
    @settings(max_examples=200, deadline=None)
    def test_same_as_row_by_row(self, batch, fallback, side, placeholder, ends):
        ids, mask, labels, vision = batch
        fused = fuse_vision(
            embed(ids),
            ids,
            mask,
            labels,
            vision,
            placeholder_id=placeholder,
            fallback=fallback,
            fallback_ends=ends,
            padding_side=side,
        )
        embeds, expected_mask, expected_labels = reference(
            ids,
            mask,
            labels,
            vision,
            fallback=fallback,
            side=side,
            placeholder=placeholder,
            ends=ends,
        )
        assert torch.equal(fused.inputs_embeds, embeds)
        assert torch.equal(fused.attention_mask, expected_mask)
        assert torch.equal(fused.labels, expected_labels)


def fuse(ids, mask=None, *, labels=None, fallback="prefix", side="right"):
    ids = torch.tensor(ids)
    mask = torch.ones_like(ids) if mask is None else torch.tensor(mask)
    vision = torch.arange(1.0, 7.0).reshape(1, 2, 3).repeat(len(ids), 1, 1)
    return fuse_vision(
        embed(ids),
        ids,
        mask,
        labels,
        vision,
        placeholder_id=P,
        fallback=fallback,
        padding_side=side,
    )


class TestByHand:
    vision = torch.arange(1.0, 7.0).reshape(2, 3)

    def test_at_the_first_placeholder_and_the_others_vanish(self):
        fused = fuse([[1, P, 2, P, 3]])
        e = embed(torch.tensor([1, 2, 3]))
        assert_close(fused.inputs_embeds[0], torch.cat([e[:1], self.vision, e[1:]]))
        assert fused.attention_mask.tolist() == [[1] * 5]
        assert fused.labels is None

    def test_without_placeholder_in_front_or_behind(self):
        e = embed(torch.tensor([1, 2]))
        assert_close(fuse([[1, 2]]).inputs_embeds[0], torch.cat([self.vision, e]))
        fused = fuse([[1, 2]], fallback="suffix")
        assert_close(fused.inputs_embeds[0], torch.cat([e, self.vision]))

    def test_suffix_stands_behind_the_text_and_before_its_padding(self):
        fused = fuse([[1, 2, 0, 0]], [[1, 1, 0, 0]], fallback="suffix")
        assert fused.attention_mask.tolist() == [[1, 1, 1, 1, 0, 0]]
        assert_close(fused.inputs_embeds[0, 2:4], self.vision)
        assert_close(fused.inputs_embeds[0, 4:], embed(torch.tensor([0, 0])))

    def test_a_placeholder_id_in_the_padding_is_padding(self):
        fused = fuse([[1, 2, P, P]], [[1, 1, 0, 0]])
        assert fused.attention_mask.tolist() == [[1, 1, 1, 1, 0, 0]]
        assert_close(fused.inputs_embeds[0, :2], self.vision)

    def test_shorter_rows_are_padded_with_zeros_on_the_right(self):
        labels = torch.tensor([[5, 6, 7], [5, 6, 7]])
        fused = fuse([[P, 1, P], [1, 2, 3]], labels=labels)
        assert fused.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
        assert fused.labels.tolist() == [[-100, -100, 6, -100, -100], [-100, -100, 5, 6, 7]]
        assert fused.inputs_embeds[0, 3:].abs().sum() == 0

    def test_left_padding_ends_every_row_with_its_last_token(self):
        fused = fuse([[1, P, 2, 0], [3, 4, 5, 6]], [[1, 1, 1, 0], [1, 1, 1, 1]], side="left")
        assert fused.attention_mask.tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6]
        assert_close(fused.inputs_embeds[:, -1], embed(torch.tensor([2, 6])))
        assert fused.inputs_embeds[0, :2].abs().sum() == 0


def test_gradients_reach_vision_and_text_but_not_what_was_removed():
    ids = torch.tensor([[1, P, 2]])
    text = embed(ids).requires_grad_()
    vision = torch.randn(1, 2, WIDTH, requires_grad=True)
    fused = fuse_vision(
        text, ids, torch.ones_like(ids), None, vision, placeholder_id=P, fallback="prefix"
    )
    fused.inputs_embeds.sum().backward()
    assert text.grad.tolist() == [[[1.0] * 3, [0.0] * 3, [1.0] * 3]]
    assert vision.grad.tolist() == [[[1.0] * 3] * 2]


def test_vision_tokens_take_the_dtype_of_the_text():
    ids = torch.tensor([[1, P]])
    vision = torch.ones(1, 2, WIDTH, dtype=torch.bfloat16)
    mask = torch.ones_like(ids, dtype=torch.bool)
    fused = fuse_vision(embed(ids), ids, mask, None, vision, placeholder_id=P, fallback="prefix")
    assert fused.inputs_embeds.dtype == torch.float32
    assert fused.attention_mask.dtype == torch.bool


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return AutoModelForCausalLM.from_config(config).eval()


class TestInADecoder:
    """A row computes the same alone and padded in a batch."""

    vision = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[1, 2, 0, 0], [1, P, 4, 5]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])

    def fuse(self, model, rows: slice, length: int, fallback, side):
        ids = self.ids[rows, :length]
        return fuse_vision(
            model.get_input_embeddings()(ids),
            ids,
            self.mask[rows, :length],
            None,
            self.vision[rows],
            placeholder_id=P,
            fallback=fallback,
            padding_side=side,
        )

    @pytest.mark.parametrize("fallback", ["prefix", "suffix"])
    @torch.no_grad()
    def test_logits(self, decoder, fallback):
        both = self.fuse(decoder, slice(0, 2), 4, fallback, "right")
        alone = self.fuse(decoder, slice(0, 1), 2, fallback, "right")
        together = decoder(
            inputs_embeds=both.inputs_embeds, attention_mask=both.attention_mask
        ).logits
        single = decoder(inputs_embeds=alone.inputs_embeds).logits
        assert_close(together[0, :6], single[0], atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("fallback", ["prefix", "suffix"])
    @torch.no_grad()
    def test_generation(self, decoder, fallback):
        def generate(fused):
            return decoder.generate(
                inputs_embeds=fused.inputs_embeds,
                attention_mask=fused.attention_mask,
                max_new_tokens=6,
                do_sample=False,
                pad_token_id=0,
            )

        both = generate(self.fuse(decoder, slice(0, 2), 4, fallback, "left"))
        for row, length in ((0, 2), (1, 4)):
            alone = self.fuse(decoder, slice(row, row + 1), length, fallback, "right")
            assert both[row].tolist() == generate(alone)[0].tolist()
