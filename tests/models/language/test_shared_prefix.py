"""Several questions about one panorama against the same questions one by one."""

from __future__ import annotations

import pytest
import torch

from panovlm.config.schema import LoRASettings, Settings
from panovlm.errors import ConfigError
from panovlm.models.assemble import new_model
from panovlm.models.language import shared_prefix
from panovlm.models.model import PanoramaVLM

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
}
LANGUAGES = {
    "qwen3": {"model_type": "qwen3", **SIZES},
    "llama": {"model_type": "llama", **SIZES},
    # A window shorter than the panorama, in every layer but the last.
    "gemma3": {
        "model_type": "gemma3_text",
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention"],
        **SIZES,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 20, **SIZES},
}
QUESTIONS = [
    "what is left of the red ball ?",
    "a house",
    "what is left of the house",
    "what is left of the ball ?",
    "a ball",
]
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def build(language: str, **models) -> PanoramaVLM:
    torch.manual_seed(0)
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
    }
    settings = Settings.model_validate(
        {
            "models": {
                "vision_config": tower,
                "language_config": LANGUAGES[language],
                "resampler_config": {"hidden_dim": 16, "depth": 1},
                "latent_dimension": 16,
                **models,
            },
            "image_processing": {"crop_strategy": "e2p"},
            "training": {"stage_configs": {s: {} for s in ("vision", "resampler", "finetune")}},
        }
    )
    model = new_model(settings, QUESTIONS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model.double()


def pixels(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 3, 16, 16, generator=generator, dtype=torch.float64)


def padded(model: PanoramaVLM, made: torch.Tensor, width: int) -> list[int]:
    row = made[0].tolist()
    return row + [model.tokenizer.pad_token_id] * (width - len(row))


def one_by_one(model, views, ids, mask, about, width, **kwargs) -> list[list[int]]:
    """Every question in a call of its own, without padding."""
    return [
        padded(model, model.generate(views[place][None], row[own.bool()][None], **kwargs), width)
        for row, own, place in zip(ids, mask, about.tolist(), strict=True)
    ]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions that were read from the cache of a shared beginning, by call."""
    lengths: list[int] = []
    continued = shared_prefix._continued

    def counting(embeds, rest, shared):
        lengths.append(shared)
        return continued(embeds, rest, shared)

    monkeypatch.setattr(shared_prefix, "_continued", counting)
    return lengths


@pytest.mark.parametrize("language", list(LANGUAGES))
@pytest.mark.parametrize("panoramas", [[0, 0, 0, 0, 0], [0, 1, 0, 1, 1]])
def test_answers_are_those_of_single_questions(language, panoramas, counted):
    model, about = build(language), torch.tensor(panoramas)
    views = pixels(2)[: max(panoramas) + 1]
    ids, mask = model.chat().prompts(QUESTIONS)
    assert len(set(mask.sum(1).tolist())) > 2  # so that there is padding
    made = model.generate(views, ids, mask, about=about, **GREEDY)
    tokens = model.vision_tokens(views).shape[1]
    assert counted and min(counted) > tokens  # the system message and the panorama
    assert one_by_one(model, views, ids, mask, about, made.shape[1], **GREEDY) == made.tolist()
    # The answers depend on question and panorama, or nothing would be shown by this.
    assert len(set(map(tuple, made.tolist()))) > 2


@pytest.mark.parametrize("language", ["qwen3", "gemma3"])
@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_prompts_without_placeholder(language, placement, counted):
    model = build(language, vision_token_fallback_position=placement)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 12, (3, 7), generator=generator)
    ids[1, 0] = (ids[0, 0] + 1 - 4) % 8 + 4  # no text in common
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    about = torch.tensor([0, 0, 0])
    made = model.generate(pixels(1), ids, mask, **GREEDY)
    tokens = model.vision_tokens(pixels(1)).shape[1]
    # Behind texts that differ there is nothing to share but the vision tokens themselves.
    assert set(counted) == ({tokens} if placement == "prefix" else set())
    assert one_by_one(model, pixels(1), ids, mask, about, made.shape[1], **GREEDY) == made.tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"repetition_penalty": 1.7},
        {"min_new_tokens": 4},
        {"use_cache": False},
        {"eos_token_id": [*range(10)]},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("language", ["qwen3", "gemma3"])
def test_with_other_arguments(language, options):
    model, about = build(language), torch.zeros(5, dtype=torch.long)
    ids, mask = model.chat().prompts(QUESTIONS)
    given = {**GREEDY, **options}
    made = model.generate(pixels(1), ids, mask, **given)
    assert one_by_one(model, pixels(1), ids, mask, about, made.shape[1], **given) == made.tolist()


def test_with_adapters(counted):
    model, about = build("qwen3"), torch.zeros(5, dtype=torch.long)
    model.add_adapters(LoRASettings(use_lora=True, rank=2))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    ids, mask = model.chat().prompts(QUESTIONS)
    made = model.double().eval().generate(pixels(1), ids, mask, **GREEDY)
    assert counted
    assert one_by_one(model, pixels(1), ids, mask, about, made.shape[1], **GREEDY) == made.tolist()


def test_a_question_that_another_one_begins_with():
    """One token at least is left for each to be read."""
    model, about = build("llama"), torch.zeros(3, dtype=torch.long)
    ids = torch.tensor([[0, 5, 6], [5, 6, 7], [5, 6, 7]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [1, 1, 1]])
    made = model.generate(pixels(1), ids, mask, **GREEDY)
    assert one_by_one(model, pixels(1), ids, mask, about, made.shape[1], **GREEDY) == made.tolist()


def test_the_panorama_is_looked_at_once(monkeypatch):
    model = build("qwen3").float()
    views: list[int] = []
    features = model.vision_features
    monkeypatch.setattr(
        model, "vision_features", lambda values: views.append(len(values)) or features(values)
    )
    erp = torch.randint(0, 256, (64, 128, 3), dtype=torch.uint8).numpy()
    together = model.answers(erp, QUESTIONS, **GREEDY)
    assert views == [1]
    assert together == [model.answer(erp, question, **GREEDY) for question in QUESTIONS]
    assert model.answers(erp, []) == []


def test_it_must_be_clear_what_a_prompt_is_about():
    model = build("qwen3")
    ids, mask = model.chat().prompts(QUESTIONS)
    with pytest.raises(ConfigError, match=r"5 prompts and 2 panoramas.*not told.*\[5\]"):
        model.generate(pixels(2), ids, mask)
    with pytest.raises(ConfigError, match=r"of shape \[2\]"):
        model.generate(pixels(2), ids, mask, about=torch.tensor([0, 1]))
