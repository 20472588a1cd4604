from __future__ import annotations

import json
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from panovlm.errors import CheckpointError, ConfigError
from panovlm.models.language.tokenizer import (
    VISION_TOKEN,
    load_tokenizer,
    prepare_tokenizer,
    tokenizer_files,
    tokenizer_from_files,
    vision_token_id,
    word_tokenizer,
)


def bare_tokenizer(**special: object) -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({"a": 0, "b": 1, "<u>": 2}, unk_token="<u>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


class TestPrepare:
    def test_end_token_pads_and_both_tokens_are_added(self):
        tokenizer = bare_tokenizer(eos_token="</s>", bos_token="<s>")
        size = len(tokenizer)
        assert prepare_tokenizer(tokenizer)
        assert tokenizer.pad_token == "</s>"
        assert len(tokenizer) == size + 2
        assert tokenizer.convert_tokens_to_ids([VISION_TOKEN, "<|endoftext|>"]) == [size, size + 1]
        assert vision_token_id(tokenizer) == size

    def test_without_pad_and_end_token_endoftext_is_both(self):
        tokenizer = bare_tokenizer()
        assert prepare_tokenizer(tokenizer)
        assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
        assert tokenizer.pad_token_id == tokenizer.eos_token_id == 3
        assert len(tokenizer) == 5

    def test_a_pad_token_is_kept_and_endoftext_as_end_token_is_not_added_again(self):
        tokenizer = bare_tokenizer(eos_token="<|endoftext|>", pad_token="<pad>")
        size = len(tokenizer)
        assert prepare_tokenizer(tokenizer)
        assert tokenizer.pad_token == "<pad>"
        assert len(tokenizer) == size + 1

    def test_special_tokens_that_were_there_stay_special(self):
        tokenizer = bare_tokenizer(eos_token="</s>", extra_special_tokens=["<tool>"])
        prepare_tokenizer(tokenizer)
        assert {"</s>", "<tool>", VISION_TOKEN} <= set(tokenizer.all_special_tokens)
        ids = tokenizer(f"a <tool> {VISION_TOKEN} b")["input_ids"]
        assert len(ids) == 4
        assert tokenizer.decode(ids, skip_special_tokens=True).split() == ["a", "b"]

    def test_a_second_time_changes_nothing(self):
        tokenizer = bare_tokenizer(eos_token="</s>")
        prepare_tokenizer(tokenizer)
        before = tokenizer_files(tokenizer)
        assert not prepare_tokenizer(tokenizer)
        assert tokenizer_files(tokenizer) == before

    def test_known_but_ordinary_tokens_become_special_without_growth(self):
        backend = Tokenizer(WordLevel({"a": 0, VISION_TOKEN: 1, "<|endoftext|>": 2}))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="a")
        assert not prepare_tokenizer(tokenizer)
        assert {VISION_TOKEN, "<|endoftext|>"} <= set(tokenizer.all_special_tokens)
        assert vision_token_id(tokenizer) == 1

    def test_an_unprepared_tokenizer_has_no_placeholder(self):
        with pytest.raises(ConfigError, match="prepare_tokenizer"):
            vision_token_id(bare_tokenizer())


class TestWordTokenizer:
    texts = ("Where is the red cube?", "It's at 45.5°, left (behind you).", "Yes.")

    def test_text_comes_back_with_normal_spacing(self):
        tokenizer = word_tokenizer(self.texts)
        text = "Where is  the cube?\nIt's (left), 45.5°."
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == "Where is the cube? It's (left), 45.5°."

    def test_a_word_is_one_token_wherever_it_stands(self):
        tokenizer = word_tokenizer(self.texts)
        vocabulary = tokenizer.get_vocab()
        ids = tokenizer("red\nred red, red")["input_ids"]
        assert [i for i in ids if i == vocabulary["red"]] == [vocabulary["red"]] * 4

    def test_case_is_kept_and_unknown_words_become_unk(self):
        tokenizer = word_tokenizer(self.texts)
        assert tokenizer.tokenize("yes Yes zebra") == ["<unk>", "Yes", "<unk>"]

    def test_ids_do_not_depend_on_the_order_of_the_texts(self):
        texts = list(self.texts) * 2
        vocabulary = word_tokenizer(texts).get_vocab()
        random.Random(0).shuffle(texts)
        assert word_tokenizer(iter(texts)).get_vocab() == vocabulary
        ids = sorted(vocabulary.values())
        assert ids == list(range(len(ids)))

    def test_chat_template_handles_several_turns_no_system_and_a_prompt(self):
        tokenizer = word_tokenizer(["hi there ok"])
        messages = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "there"},
            {"role": "user", "content": "ok"},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == (
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nthere<|im_end|>\n"
            "<|im_start|>user\nok<|im_end|>\n<|im_start|>assistant\n"
        )
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokenizer("hi<|im_end|>")["input_ids"], True) == "hi"

    def test_preparing_adds_the_placeholder_only(self):
        tokenizer = word_tokenizer(self.texts)
        size = len(tokenizer)
        assert prepare_tokenizer(tokenizer)
        assert len(tokenizer) == size + 1
        assert tokenizer.pad_token == "<|endoftext|>"
        assert tokenizer.eos_token == "<|im_end|>"

    # Control characters that Python and Unicode do not both count as white space are left out.
    text = st.text(
        st.characters(exclude_categories=["Cs", "Cc", "Cf"], exclude_characters="￭")
        | st.sampled_from(" \n\t.,?!'°-_(\"#"),
        max_size=60,
    )

    @given(text=text)
    @settings(max_examples=150, deadline=None)
    def test_decoding_inverts_encoding_up_to_white_space(self, text: str):
        assume("<unk>" not in text and "<|" not in text)  # special tokens are no words
        tokenizer = word_tokenizer([text])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == " ".join(text.split())


class TestFiles:
    @pytest.fixture
    def tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = word_tokenizer(["Where is the red cube? Left, at 45.5°."])
        prepare_tokenizer(tokenizer)
        return tokenizer

    def test_round_trip_is_exact(self, tokenizer):
        files = tokenizer_files(tokenizer)
        assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(files)
        copy = tokenizer_from_files(files)
        assert tokenizer_files(copy) == files
        assert copy.get_vocab() == tokenizer.get_vocab()
        assert copy.chat_template == tokenizer.chat_template
        assert copy.special_tokens_map == tokenizer.special_tokens_map
        text = f"{VISION_TOKEN}\nWhere is the cube? <|im_end|>"
        assert copy(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert not prepare_tokenizer(copy)

    def test_several_chat_templates_survive(self, tokenizer):
        tokenizer.chat_template = {"default": "a", "tool_use": "b"}
        files = tokenizer_files(tokenizer)
        assert any("/" in name for name in files)
        copy = tokenizer_from_files(files)
        assert copy.chat_template == {"default": "a", "tool_use": "b"}
        assert tokenizer_files(copy) == files

    def test_truncation_of_an_earlier_call_is_not_stored(self, tokenizer):
        expected = tokenizer_files(tokenizer)
        tokenizer("Where is the red cube", truncation=True, max_length=2, padding="max_length")
        assert tokenizer_files(tokenizer) == expected

    def test_no_trace_of_the_folder_it_came_from(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        loaded = load_tokenizer(str(tmp_path))
        assert tokenizer_files(loaded) == tokenizer_files(tokenizer)
        assert str(tmp_path).encode() not in b"".join(tokenizer_files(loaded).values())

    @pytest.mark.parametrize(
        "name", ["../evil.json", "/etc/evil", "a/../../evil", "..\\evil", "C:evil", "", "x\0y"]
    )
    def test_names_that_leave_the_folder_are_refused(self, tokenizer, name):
        with pytest.raises(CheckpointError, match="plain relative names"):
            tokenizer_from_files({**tokenizer_files(tokenizer), name: b"{}"})

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("tokenizer.json", b'{"version": "1.0", "trunc'),
            ("tokenizer.json", b"{}"),
            ("tokenizer.json", b"\xff\xfe\x00"),
            ("tokenizer.json", b'{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel"}}'),
            ("tokenizer_config.json", b"[1]"),
            ("tokenizer_config.json", b'{"tokenizer_class": 3}'),
            ("chat_template.jinja", b"\xff\xfe"),
        ],
    )
    def test_damaged_content_is_named(self, tokenizer, name, content):
        with pytest.raises(CheckpointError, match=r"stored tokenizer .*damaged"):
            tokenizer_from_files({**tokenizer_files(tokenizer), name: content})

    @pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
    def test_missing_files_are_an_error(self, tokenizer, name):
        files = tokenizer_files(tokenizer)
        del files[name]
        with pytest.raises(CheckpointError, match="stored tokenizer"):
            tokenizer_from_files(files)

    def test_code_in_the_files_is_not_run(self, tokenizer, tmp_path):
        files = tokenizer_files(tokenizer)
        config = json.loads(files["tokenizer_config.json"])
        config["tokenizer_class"] = "Evil"
        config["auto_map"] = {"AutoTokenizer": ["evil.Evil", None]}
        mark = tmp_path / "ran"
        code = f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n".encode()
        files |= {"tokenizer_config.json": json.dumps(config).encode(), "evil.py": code}
        with pytest.raises(CheckpointError):
            tokenizer_from_files(files)
        assert not mark.exists()


class TestLoad:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("", "no tokenizer is named"),
            ("/no/such/folder", "does not exist"),
            ("./nothing", "does not exist"),
            ("runs/a/b", "does not exist"),
            ("nobody/no-such-tokenizer", "HF_HUB_OFFLINE"),
        ],
    )
    def test_what_is_missing_is_named(self, name, message):
        with pytest.raises(ConfigError, match=message):
            load_tokenizer(name)

    def test_a_folder_without_tokenizer_is_an_error(self, tmp_path):
        with pytest.raises(ConfigError, match="holds none that can be read"):
            load_tokenizer(str(tmp_path))

    def test_a_file_is_an_error(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(ConfigError, match="is a file"):
            load_tokenizer(str(tmp_path / "tokenizer.json"))
