from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from panovlm.errors import CheckpointError, ConfigError
from panovlm.models.language.backbone import (
    build_language_model,
    language_config,
    load_language_model,
    resize_embeddings,
)

SIZES = {
    "model_type": "qwen2",
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def build(device: str = "cpu", **changes):
    torch.manual_seed(0)
    with torch.device(device):
        return build_language_model(language_config({**SIZES, **changes}))


class TestConfig:
    def test_a_mapping_and_its_folder_give_the_same(self, tmp_path):
        config = language_config(SIZES)
        config.save_pretrained(tmp_path)
        read = language_config(str(tmp_path)).to_dict()
        assert read.pop("_name_or_path") == str(tmp_path)
        assert {"_name_or_path": "", **read} == config.to_dict()
        assert language_config(config.to_dict()).to_dict() == config.to_dict()

    @pytest.mark.parametrize(
        "source", [{}, {"model_type": "no-such"}, {**SIZES, "vocab_size": "many"}]
    )
    def test_a_wrong_mapping_is_refused(self, source):
        with pytest.raises(ConfigError, match=r"models\.language_config"):
            language_config(source)

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match="does not exist"):
            language_config(str(tmp_path / "none"))
        with pytest.raises(ConfigError, match="language model configuration"):
            language_config(str(tmp_path))


class TestBuild:
    def test_meta_and_real_have_the_same_names_and_shapes(self):
        meta, real = build("meta"), build()
        assert all(p.is_meta for p in meta.parameters())
        assert {n: p.shape for n, p in meta.state_dict().items()} == {
            n: p.shape for n, p in real.state_dict().items()
        }

    def test_another_kind_of_model_is_refused(self):
        with pytest.raises(ConfigError, match="SiglipVisionConfig"):
            build_language_model(language_config({"model_type": "siglip_vision_model"}))

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"hidden_act": "sillu"}, "KeyError: 'sillu'"),
            ({"num_key_value_heads": 0}, "ZeroDivisionError"),
            ({"rope_parameters": {"rope_type": "foo", "rope_theta": 1.0}}, "KeyError: 'foo'"),
        ],
    )
    def test_values_that_the_family_does_not_have(self, changes, told):
        with pytest.raises(ConfigError, match=rf"{told}.* a value in models\.language_config"):
            build("meta", **changes)

    def test_models_of_one_configuration_are_independent(self):
        config = language_config(SIZES)
        resize_embeddings(build_language_model(config), 40)
        assert config.vocab_size == 30
        assert build_language_model(config).get_input_embeddings().weight.shape == (30, 16)


class TestLoad:
    @pytest.fixture
    def folder(self, tmp_path):
        build().save_pretrained(tmp_path)
        return tmp_path

    @staticmethod
    def rewrite(folder, change):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    @pytest.mark.parametrize("tied", [True, False])
    def test_weights_come_back(self, tmp_path, tied):
        model = build(tie_word_embeddings=tied)
        model.save_pretrained(tmp_path)
        loaded = load_language_model(str(tmp_path))
        assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
        assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied

    def test_the_dtype_of_the_files_is_kept(self, tmp_path):
        build().to(torch.bfloat16).save_pretrained(tmp_path)
        assert load_language_model(str(tmp_path)).dtype == torch.bfloat16

    def test_missing_weights_are_an_error_not_random(self, folder):
        self.rewrite(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
        with pytest.raises(CheckpointError, match=r"1 missing.*layers\.1\.mlp\.up_proj"):
            load_language_model(str(folder))

    def test_unexpected_weights_are_an_error(self, folder):
        self.rewrite(folder, lambda t: t.update(extra=torch.zeros(1)))
        with pytest.raises(CheckpointError, match="1 unexpected, such as extra"):
            load_language_model(str(folder))

    def test_another_shape_is_an_error(self, folder):
        self.rewrite(folder, lambda t: t.update({"model.norm.weight": torch.zeros(8)}))
        with pytest.raises(CheckpointError, match=r"model\.norm\.weight \[8\] for \[16\]"):
            load_language_model(str(folder))

    def test_a_truncated_file_is_an_error(self, folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ConfigError, match="cannot read the language model"):
            load_language_model(str(folder))

    def test_offline_without_cache_is_an_error(self):
        with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
            load_language_model("nobody/no-such-model")


class TestResize:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("device", ["cpu", "meta"])
    @pytest.mark.parametrize("size", [20, 30, 41])
    def test_both_tables_get_the_size(self, tied, device, size):
        model = build(device, tie_word_embeddings=tied)
        resize_embeddings(model, size)
        table, head = model.get_input_embeddings().weight, model.lm_head.weight
        assert table.shape == head.shape == (size, 16)
        assert (table is head) == tied
        assert model.config.vocab_size == size
        assert table.is_meta == (device == "meta")

    @pytest.mark.parametrize("size", [20, 41])
    def test_old_rows_are_kept(self, size):
        model = build(tie_word_embeddings=False)
        table = model.get_input_embeddings().weight.detach().clone()
        head = model.lm_head.weight.detach().clone()
        resize_embeddings(model, size)
        rows = min(size, 30)
        assert torch.equal(model.get_input_embeddings().weight[:rows], table[:rows])
        assert torch.equal(model.lm_head.weight[:rows], head[:rows])

    def test_new_rows_lie_near_the_mean(self):
        model = build(tie_word_embeddings=False)
        table = model.get_input_embeddings().weight
        with torch.no_grad():
            table.add_(5.0)
        resize_embeddings(model, 33)
        new = model.get_input_embeddings().weight[30:]
        assert_close(new, torch.full_like(new, 5.0), atol=0.2, rtol=0)
