"""Questions that share a panorama give the same loss as each with a panorama of its own."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from panovlm.config.schema import Settings
from panovlm.data.collate import collate
from panovlm.data.packing import pack
from panovlm.models.assemble import new_model
from panovlm.models.language.chat import IGNORED

TURNS = [
    [("what is left of the red ball ?", "a house"), ("where is it ?", "left"), ("what ?", "ball")],
    [("is it red ?", "it is a red house")],
    [("what is left ?", "the house is left"), ("a ball ?", "a ball")],
]


def build(language: str, attention: str, **models: object):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    settings = Settings.model_validate(
        {
            "models": {
                "vision_config": {
                    "model_type": "siglip_vision_model",
                    "num_attention_heads": 4,
                    "image_size": 16,
                    "patch_size": 8,
                    **sizes,
                },
                "language_config": {
                    "model_type": language,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "head_dim": 8,
                    **sizes,
                },
                "resampler_type": "mlp",
                "latent_dimension": 16,
                **models,
            },
            "training": {"stage_configs": {"finetune": {}}, "stages": ["finetune"]},
        }
    )
    model = new_model(settings, (text for row in TURNS for turn in row for text in turn))
    model.language_model.set_attn_implementation(attention)
    return model.double().eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("language", ["qwen2", "qwen3", "llama", "gemma3_text"])
def test_the_loss_and_its_gradients_are_those_of_separate_rows(
    language: str, attention: str
) -> None:
    model = build(language, attention)
    chat = model.chat()
    pixels = torch.randn(3, 4, 3, 16, 16, dtype=torch.float64)
    together, apart = [], []
    for view, turns in zip(pixels, TURNS, strict=True):
        examples = [chat.training_example([turn], None) for turn in turns]
        packed = pack(examples, chat)
        item = {"pixel_values": view, "source": "", "input_ids": packed.ids}
        item |= {"labels": packed.labels}
        together.append(item | ({"segments": packed.segments} if len(turns) > 1 else {}))
        apart += [
            {"pixel_values": view, "source": "", "input_ids": ids, "labels": labels}
            for ids, labels in examples
        ]
    results = []
    for items in (together, apart):
        batch = collate(items, pad_id=0)
        batch.pop("source")
        loss = model(**batch).loss
        model.zero_grad()
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss, grads))
    (packed_loss, packed_grads), (loss, grads) = results
    # The norms of these models compute in float32, whatever the model's dtype.
    assert_close(packed_loss, loss, rtol=1e-6, atol=1e-6)
    assert packed_grads.keys() == grads.keys()
    for name, grad in grads.items():
        assert_close(packed_grads[name], grad, rtol=1e-4, atol=1e-6, msg=name)


def test_without_segments_the_questions_would_see_each_other() -> None:
    model = build("qwen2", "sdpa")
    chat = model.chat()
    packed = pack([chat.training_example([turn], None) for turn in TURNS[0]], chat)
    ids, labels = torch.tensor([packed.ids]), torch.tensor([packed.labels])
    pixels = torch.randn(1, 4, 3, 16, 16, dtype=torch.float64)
    segments = torch.tensor([packed.segments])
    apart = model(pixels, ids, labels=labels, segments=segments)
    mixed = model(pixels, ids, labels=labels)
    assert (labels != IGNORED).any()
    assert abs(apart.loss - mixed.loss) > 1e-6


def test_a_limit_of_the_text_is_one_of_each_question() -> None:
    """The data keep every question below it; a row of several may be longer."""
    model = build("qwen2", "sdpa", fusion_text_limit=40)
    chat = model.chat()
    packed = pack([chat.training_example([turn], 40) for turn in TURNS[0]], chat)
    assert len(packed.ids) > 40
    ids, labels = torch.tensor([packed.ids]), torch.tensor([packed.labels])
    pixels = torch.randn(1, 4, 3, 16, 16, dtype=torch.float64)
    limited = model(pixels, ids, labels=labels, segments=torch.tensor([packed.segments]))
    free = build("qwen2", "sdpa")(
        pixels, ids, labels=labels, segments=torch.tensor([packed.segments])
    )
    assert_close(limited.logits, free.logits, rtol=0, atol=1e-9)
