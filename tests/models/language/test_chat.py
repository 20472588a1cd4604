from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from panovlm.errors import ConfigError, DataError
from panovlm.models.language import chat
from panovlm.models.language.chat import ChatFormat, resolve_max_length
from panovlm.models.language.tokenizer import (
    CHATML_TEMPLATE,
    VISION_TOKEN,
    prepare_tokenizer,
    vision_token_id,
    word_tokenizer,
)

TURNS = [
    ("Where is the red cube?", "Left of you."),
    ("And the sphere?", "Behind, near the seam.\n\nHigh up."),
    ("Is it round?", "Yes"),
]
CORPUS = [text for turn in TURNS for text in turn] + ["system user assistant helpful"]

# What Qwen3's template does: an empty think block only in the last assistant turn, and in the
# header of a prompt with thinking switched off.
QWEN3_TEMPLATE = (
    "{%- set ns = namespace(last=-1) %}"
    "{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}"
    "{%- endif %}{%- endfor %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and loop.index0 > ns.last %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- message.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
GEMMA_LIKE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
# Numbers the turns from the end, so that every turn changes when one is added.
COUNTDOWN = "{% for m in messages %}{{ loop.revindex ~ m['role'] ~ m['content'] }}{% endfor %}"


def bpe_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as Qwen and Llama have, trained on a few sentences."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = template
    prepare_tokenizer(tokenizer)
    return tokenizer


def words_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer(CORPUS)
    tokenizer.chat_template = template
    prepare_tokenizer(tokenizer)
    return tokenizer


def chat_format(
    tokenizer: PreTrainedTokenizerFast,
    *,
    name: str = "Qwen/Qwen2.5-0.5B-Instruct",
    system: str = "Be helpful",
    placeholder: bool = True,
) -> ChatFormat:
    return ChatFormat(
        tokenizer, model_name=name, system_message=system, training_placeholder=placeholder
    )


def spans_by_offsets(tokenizer, text: str, pattern: str) -> tuple[list[int], list[int]]:
    """Ids and labels found by a search in the text and the characters of every token."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    spans = [match.span() for match in re.finditer(pattern, text, flags=re.DOTALL)]
    inside = [any(a <= start and end <= b for a, b in spans) for start, end in offsets]
    return ids, [i if wanted else -100 for i, wanted in zip(ids, inside, strict=True)]


TOKENIZERS = pytest.mark.parametrize("make", [bpe_tokenizer, words_tokenizer])
CHATML_TURN = r"<\|im_start\|>assistant\n.*?<\|im_end\|>\n"


class TestTrainingExample:
    @TOKENIZERS
    @pytest.mark.parametrize("count", [1, 2, 3])
    @pytest.mark.parametrize("system", ["", "Be helpful"])
    @pytest.mark.parametrize("template", [CHATML_TEMPLATE, QWEN3_TEMPLATE])
    def test_labels_are_the_assistant_turns(self, make: Callable, count, system, template):
        tokenizer = make(template)
        form = chat_format(tokenizer, system=system)
        ids, labels = form.training_example(TURNS[:count], None)
        text = form.training_text(TURNS[:count])
        assert (ids, labels) == spans_by_offsets(tokenizer, text, CHATML_TURN)
        assert labels.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == count

    def test_text_of_a_conversation_with_system_message(self):
        text = chat_format(bpe_tokenizer(CHATML_TEMPLATE)).training_text(TURNS[:2])
        assert text == (
            "<|im_start|>system\nBe helpful<|im_end|>\n"
            "<|im_start|>user\n<|vision|>\nWhere is the red cube?<|im_end|>\n"
            "<|im_start|>assistant\nLeft of you.<|im_end|>\n"
            "<|im_start|>user\nAnd the sphere?<|im_end|>\n"
            "<|im_start|>assistant\nBehind, near the seam.\n\nHigh up.<|im_end|>\n"
        )

    def test_qwen3_think_block_stands_in_the_last_turn_only(self):
        form = chat_format(bpe_tokenizer(QWEN3_TEMPLATE), system="")
        text = form.training_text(TURNS)
        assert text.count("<think>") == 1
        assert "assistant\n<think>\n\n</think>\n\nYes<|im_end|>\n" in text

    @TOKENIZERS
    def test_without_placeholder_the_text_is_the_users(self, make: Callable):
        tokenizer = make(CHATML_TEMPLATE)
        form = chat_format(tokenizer, placeholder=False)
        ids, _ = form.training_example(TURNS, None)
        assert vision_token_id(tokenizer) not in ids
        assert "user\nWhere is the red cube?<|im_end|>" in form.training_text(TURNS)

    def test_the_placeholder_is_set_once_and_only_in_the_first_turn(self):
        tokenizer = bpe_tokenizer(CHATML_TEMPLATE)
        form = chat_format(tokenizer)
        ids, _ = form.training_example(TURNS, None)
        assert ids.count(vision_token_id(tokenizer)) == 1
        ids, _ = form.training_example([(f"Look: {VISION_TOKEN} here", "ok")], None)
        assert ids.count(vision_token_id(tokenizer)) == 1
        assert f"user\nLook: {VISION_TOKEN} here<" in form.training_text(
            [(f"Look: {VISION_TOKEN} here", "ok")]
        )

    @TOKENIZERS
    def test_cut_on_the_right(self, make: Callable):
        form = chat_format(make(CHATML_TEMPLATE))
        ids, labels = form.training_example(TURNS, None)
        for length in (1, 20, len(ids), len(ids) + 5):
            assert form.training_example(TURNS, length) == (ids[:length], labels[:length])

    @TOKENIZERS
    @pytest.mark.parametrize("template", [CHATML_TEMPLATE, QWEN3_TEMPLATE, None])
    @pytest.mark.parametrize("name", ["Qwen/Qwen2", "meta-llama/Llama-2", "other/model"])
    def test_a_prompt_begins_the_training_example(self, make: Callable, template, name):
        form = chat_format(make(template), name=name)
        prompt = form.prompt(TURNS[0][0])
        ids, labels = form.training_example(TURNS[:1], None)
        assert ids[: len(prompt)] == prompt
        assert all(label != -100 for label in labels[len(prompt) :])

    @given(
        turns=st.lists(
            st.tuples(st.text(max_size=15), st.text(max_size=15)), min_size=1, max_size=3
        )
    )
    @settings(max_examples=60, deadline=None)
    def test_any_text_is_labelled_as_a_search_finds_it(self, turns):
        for tokenizer in (BPE_CHATML, BPE_QWEN3):
            form = chat_format(tokenizer)
            expected = spans_by_offsets(tokenizer, form.training_text(turns), CHATML_TURN)
            assert form.training_example(turns, None) == expected

    def test_an_unprepared_tokenizer_is_refused(self):
        with pytest.raises(ConfigError, match="prepare_tokenizer"):
            chat_format(word_tokenizer(CORPUS))

    def test_no_turn_is_an_error(self):
        with pytest.raises(DataError, match="at least one"):
            chat_format(bpe_tokenizer(CHATML_TEMPLATE)).training_example([], None)

    def test_a_template_that_rewrites_earlier_turns_is_refused(self):
        form = chat_format(bpe_tokenizer(COUNTDOWN))
        with pytest.raises(ConfigError, match="which tokens"):
            form.training_example(TURNS[:1], None)

    def test_a_turn_that_begins_inside_a_token_is_refused(self):
        no_border = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        form = chat_format(bpe_tokenizer(no_border), system="", placeholder=False)
        with pytest.raises(ConfigError, match="reaches over the border"):
            form.training_example([("Whe", "re")], None)

    def test_a_template_without_system_turn(self):
        tokenizer = bpe_tokenizer(GEMMA_LIKE)
        with pytest.raises(ConfigError, match=r"System role not supported.*empty string"):
            chat_format(tokenizer).prompt("Where?")
        ids, labels = chat_format(tokenizer, system="").training_example(TURNS, None)
        text = chat_format(tokenizer, system="").training_text(TURNS)
        assert (ids, labels) == spans_by_offsets(tokenizer, text, CHATML_TURN)


BPE_CHATML = bpe_tokenizer(CHATML_TEMPLATE)
BPE_QWEN3 = bpe_tokenizer(QWEN3_TEMPLATE)


class TestFallbackFormats:
    """Tokenizers without chat template, by the name of the model."""

    @pytest.mark.parametrize(
        ("name", "text", "header", "turn"),
        [
            (
                "meta-llama/Llama-2-7b",
                "[SYSTEM]\nBe helpful\n[USER]\nWhere?\n[ASSISTANT]\nLeft\n",
                "[ASSISTANT]\n",
                r"\[ASSISTANT\]\nLeft\n",
            ),
            (
                "Qwen/Qwen2.5-0.5B",
                "<|im_start|>system\nBe helpful<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n"
                "<|im_start|>assistant\nLeft<|im_end|>\n",
                "<|im_start|>assistant\n",
                CHATML_TURN,
            ),
            (
                "EleutherAI/pythia",
                "Be helpful\n\nUser: Where?\nAssistant: Left\n",
                "Assistant:",
                r"Assistant: Left\n",
            ),
        ],
    )
    def test_format(self, name, text, header, turn):
        tokenizer = bpe_tokenizer(None)
        form = chat_format(tokenizer, name=name, placeholder=False)
        assert form.training_text([("Where?", "Left")]) == text
        ids, labels = form.training_example([("Where?", "Left")], None)
        assert (ids, labels) == spans_by_offsets(tokenizer, text, turn)
        question = text.replace("Where?", f"{VISION_TOKEN}\nWhere?")
        expected = re.sub(turn, lambda _: header, question)
        assert tokenizer.decode(form.prompt("Where?")) == expected

    def test_without_system_message(self):
        form = chat_format(bpe_tokenizer(None), name="x", system="", placeholder=True)
        assert form.training_text([("a", "b"), ("c", "d")]) == (
            "User: <|vision|>\na\nAssistant: b\nUser: c\nAssistant: d\n"
        )


class TestPrompt:
    def test_placeholder_before_the_question_and_thinking_off(self):
        tokenizer = bpe_tokenizer(QWEN3_TEMPLATE)
        form = chat_format(tokenizer, system="", placeholder=False)
        assert tokenizer.decode(form.prompt("Where?")) == (
            "<|im_start|>user\n<|vision|>\nWhere?<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )

    def test_a_placeholder_of_the_user_stays_alone(self):
        tokenizer = bpe_tokenizer(CHATML_TEMPLATE)
        ids = chat_format(tokenizer).prompt(f"Left of {VISION_TOKEN}?")
        assert ids.count(vision_token_id(tokenizer)) == 1
        assert f"user\nLeft of {VISION_TOKEN}?<" in tokenizer.decode(ids)

    def test_answers_lose_special_tokens_and_outer_space(self):
        tokenizer = bpe_tokenizer(CHATML_TEMPLATE)
        ids = tokenizer("\n Left of you. <|im_end|>\n<|endoftext|>")["input_ids"]
        assert chat_format(tokenizer).decode_answer(ids) == "Left of you."

    def test_a_tokenizers_own_opening_token_is_not_doubled(self):
        tokenizer = bpe_tokenizer("<|im_start|>{{ messages[-1]['content'] }}")
        backend = tokenizer.backend_tokenizer
        start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        backend.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
        )
        assert tokenizer("a")["input_ids"][0] == start
        assert chat_format(tokenizer).prompt("a").count(start) == 1


class TestResolveMaxLength:
    def test_a_number_is_taken_as_it_is(self):
        assert resolve_max_length(7, bpe_tokenizer(None), iter(())) == 7

    @pytest.mark.parametrize(
        ("limit", "expected"),
        [(10, chat.AUTO_FLOOR), (1000, 1000), (int(1e30), chat.AUTO_CAP)],
    )
    def test_auto_is_the_tokenizers_limit_within_bounds(self, limit, expected):
        tokenizer = words_tokenizer(None)
        tokenizer.model_max_length = limit
        assert resolve_max_length("auto", tokenizer, ["never read"]) == expected

    def test_auto_dataset_is_the_longest_text_within_bounds(self):
        tokenizer = words_tokenizer(None)
        tokenizer.model_max_length = 500
        measure = lambda *counts: resolve_max_length(  # noqa: E731
            "auto:dataset", tokenizer, (" ".join(["red"] * n) for n in counts)
        )
        assert measure(3, 123, 80) == 123
        assert measure(3) == measure() == chat.AUTO_FLOOR
        assert measure(600) == 500
        assert measure(*[100] * chat.AUTO_SCAN_LIMIT, 400) == 100
