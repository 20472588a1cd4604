"""Answers made side by side against ``generate`` for each prompt alone."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, StoppingCriteriaList
from transformers.generation import MaxLengthCriteria

from panovlm.config.schema import LoRASettings
from panovlm.errors import ConfigError
from panovlm.models.language.continuous import Beginning, ContinuousBatch
from panovlm.models.language.lora import attach_lora, check_targets

WORDS = 40
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
WINDOWS = {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]}
LANGUAGES = {
    "qwen2": {"model_type": "qwen2", **SIZES},
    "qwen3": {"model_type": "qwen3", **SIZES},
    "llama": {"model_type": "llama", **SIZES},
    # Windows shorter than every prompt, and one that answers grow out of.
    "gemma3": {"model_type": "gemma3_text", **SIZES, **WINDOWS},
    "mistral": {"model_type": "mistral", "sliding_window": 9, **SIZES},
    "mistral, longer window": {"model_type": "mistral", "sliding_window": 36, **SIZES},
    "llama4, chunks": {
        "model_type": "llama4_text",
        "attention_chunk_size": 9,
        "num_local_experts": 2,
        "intermediate_size_mlp": 40,
        **SIZES,
    },
    # Positions that are learnt, and distances instead of positions.
    "gpt2": {"model_type": "gpt2", **SIZES, "n_embd": 24, "n_head": 4, "n_layer": 2},
    "bloom": {"model_type": "bloom", **SIZES, "n_head": 4, "n_layer": 2},
}
GREEDY = {"do_sample": False, "max_new_tokens": 24, "pad_token_id": 0}
ENDS = [1, 3, 5, 8, 13, 21, 34]
"""Tokens that end an answer, so that answers are of all lengths."""


def language(name: str, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LANGUAGES[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    head = model.get_output_embeddings()  # which is no copy of the embeddings any more
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
    return model.to(dtype)


def prompts(model, count: int = 14) -> list[tuple[str, Tensor]]:
    """Prompts of 11 to 40 positions, each begins like all others of its letter."""
    generator = torch.Generator().manual_seed(1)
    width = model.get_input_embeddings().weight.shape[1]

    def random(length: int) -> Tensor:
        return torch.randn(1, length, width, generator=generator).to(model.dtype)

    begin = {"a": random(10), "b": random(25), "c": random(17)}
    letters = ["aababbbcaabcba"[number % 14] for number in range(count)]
    return [
        (letter, torch.cat([begin[letter], random(1 + (7 * number) % 15)], dim=1))
        for number, letter in enumerate(letters)
    ]


def alone(model, embeds: Tensor, **kwargs) -> list[int]:
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    return model.generate(inputs_embeds=embeds, attention_mask=mask, **kwargs)[0].tolist()


@torch.no_grad()
def side_by_side(
    model, given: Iterable[tuple[str, Tensor]], at_once: int, **kwargs
) -> tuple[dict[int, list[int]], int]:
    """Return the answers by number, and how many steps they took."""
    batch, known, made, steps = ContinuousBatch[int](model, kwargs), {}, {}, 0
    waiting = list(enumerate(given))
    while waiting or len(batch):
        while waiting and len(batch) < at_once:
            number, (letter, embeds) = waiting.pop(0)
            like: Beginning | None = known.get(letter)
            mask = torch.ones(embeds.shape[:2], dtype=torch.long)
            inputs = {"inputs_embeds": embeds, "attention_mask": mask}
            known[letter] = batch.add(number, inputs, like)
        steps += len(batch) > 0
        batch.step()
        made.update(batch.finished())
    return made, steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", list(LANGUAGES))
def test_answers_are_those_of_prompts_alone(name: str, dtype: torch.dtype):
    model = language(name, dtype)
    given = prompts(model)
    options = {**GREEDY, "eos_token_id": ENDS}
    expected = [alone(model, embeds, **options) for _, embeds in given]
    # Of all lengths, and different ones; or nothing would be shown by this.
    assert len({len(ids) for ids in expected}) > 3 and len(set(map(tuple, expected))) > 8
    made, steps = side_by_side(model, given, 4, **options)
    assert [made[number] for number in range(len(given))] == expected
    ends = [0] * 4  # places are taken as soon as they are free; the first token takes no step
    for ids in expected:
        heapq.heapreplace(ends, ends[0] + len(ids) - 1)
    assert steps == max(ends)


def test_a_prompt_is_read_only_where_it_differs(monkeypatch: pytest.MonkeyPatch):
    model = language("qwen3")
    read: list[int] = []
    forward = model.model.layers[0].forward
    monkeypatch.setattr(
        model.model.layers[0],
        "forward",
        lambda hidden, *args, **kwargs: (
            read.append(hidden.shape[1]) or forward(hidden, *args, **kwargs)
        ),
    )
    given = prompts(model)
    side_by_side(model, given, 4, **{**GREEDY, "max_new_tokens": 1})
    begun = {"a": 10, "b": 25, "c": 17}
    left = dict(begun)  # letters that were not read so far
    expected = [embeds.shape[1] - begun[one] + left.pop(one, 0) for one, embeds in given]
    assert read == expected


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_prompts_that_others_begin_with_and_that_have_nothing_in_common(name: str):
    model = language(name)
    longest = prompts(model)[1][1]
    other = prompts(model)[4][1]
    given = [("a", one) for one in (longest, longest, longest[:, :12], longest[:, :1], other)]
    expected = [alone(model, embeds, **GREEDY) for _, embeds in given]
    made, _ = side_by_side(model, given, 5, **GREEDY)
    assert [made[number] for number in range(len(given))] == expected


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 5},
        {"max_new_tokens": 1},
        {"eos_token_id": None},
        {"do_sample": True, "top_k": 1},
        {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(3)])},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_with_other_arguments(name: str, options: dict[str, object]):
    model = language(name)
    given = prompts(model)
    options = {**GREEDY, "eos_token_id": ENDS, **options}
    expected = [alone(model, embeds, **options) for _, embeds in given]
    made, _ = side_by_side(model, given, 5, **options)
    assert [made[number] for number in range(len(given))] == expected


def test_sampled_tokens_are_those_of_the_same_draws():
    model = language("llama")
    given = prompts(model, 6)
    options = {"do_sample": True, "temperature": 2.0, "top_k": 12, "top_p": 0.9}
    options |= {"eos_token_id": ENDS, "pad_token_id": 0, "max_new_tokens": 24}
    torch.manual_seed(1)
    expected = [alone(model, embeds, **options) for _, embeds in given]
    torch.manual_seed(1)
    made, _ = side_by_side(model, given, 1, **options)
    assert [made[number] for number in range(len(given))] == expected


def test_with_adapters():
    model = language("qwen3")
    settings = LoRASettings(use_lora=True, rank=2)
    check_targets(model, settings)
    plain = [alone(model, embeds, **GREEDY, eos_token_id=ENDS) for _, embeds in prompts(model)]
    adapted = attach_lora(model, settings).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_()
    given = prompts(adapted)
    options = {**GREEDY, "eos_token_id": ENDS}
    expected = [alone(adapted, embeds, **options) for _, embeds in given]
    assert expected != plain
    made, _ = side_by_side(adapted, given, 4, **options)
    assert [made[number] for number in range(len(given))] == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_beams": 3}, "beam search with num_beams 3; set num_beams to 1"),
        ({"num_beams": 2, "do_sample": True}, "beam sample with num_beams 2"),
        ({"use_cache": False}, "use_cache cannot be kept"),
        ({"stop_strings": ["ball"], "streamer": None}, "stop_strings, streamer cannot be kept"),
    ],
)
def test_what_cannot_be_done_row_by_row_is_refused(options: dict[str, object], told: str):
    model = language("qwen3")
    with pytest.raises(ConfigError, match=told):
        side_by_side(model, prompts(model, 1), 2, **{**GREEDY, **options})


def test_models_that_keep_something_else_are_refused():
    config = AutoConfig.for_model("mamba", **SIZES, state_size=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ConfigError, match=r"MambaForCausalLM keeps something else.*answers\(\)"):
        ContinuousBatch[int](model, GREEDY)
