from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from panovlm.config.schema import LoRASettings
from panovlm.errors import ConfigError
from panovlm.models.language.backbone import build_language_model, language_config
from panovlm.models.language.lora import attach_lora, check_targets, merge_lora

FAMILIES = pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
ALL = LoRASettings().target_modules


def build(family: str, device: str = "cpu", **changes):
    sizes = {
        "vocab_size": 30,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
    }
    torch.manual_seed(0)
    with torch.device(device):
        return build_language_model(language_config({"model_type": family, **sizes, **changes}))


def shapes(model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def expected_names(plain: dict[str, tuple[int, ...]], targets, rank: int):
    """The names and shapes of an adapted model, written from those of the plain one."""
    found = {}
    for name, shape in plain.items():
        module, _, leaf = name.rpartition(".")
        wrapped = f"base_model.model.{module}"
        if module.rsplit(".", 1)[-1] not in targets:
            found[f"{wrapped}.{leaf}"] = shape
            continue
        found[f"{wrapped}.base_layer.{leaf}"] = shape
        if leaf == "weight":
            found[f"{wrapped}.lora_A.default.weight"] = (rank, shape[1])
            found[f"{wrapped}.lora_B.default.weight"] = (shape[0], rank)
    return found


class TestNames:
    @FAMILIES
    @pytest.mark.parametrize("targets", [ALL, ("q_proj", "v_proj"), ("down_proj",)])
    def test_names_and_shapes(self, family, targets):
        model = build(family)
        expected = expected_names(shapes(model), targets, rank=3)
        adapted = attach_lora(model, LoRASettings(rank=3, target_modules=targets))
        assert shapes(adapted) == expected
        name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.default.weight"
        assert (name in expected) == ("down_proj" in targets)

    @FAMILIES
    def test_a_meta_model_gets_the_same_without_memory(self, family):
        settings = LoRASettings(rank=3)
        real = attach_lora(build(family), settings)
        meta = attach_lora(build(family, "meta"), settings)
        assert shapes(meta) == shapes(real)
        assert all(p.is_meta for p in meta.parameters())
        assert [p.requires_grad for p in meta.parameters()] == [
            p.requires_grad for p in real.parameters()
        ]

    def test_weights_of_a_real_model_can_be_assigned_to_a_meta_one(self):
        settings = LoRASettings(rank=3, dropout=0.0)
        real, meta = (attach_lora(build("qwen2", d), settings) for d in ("cpu", "meta"))
        meta.load_state_dict(real.state_dict(), strict=True, assign=True)
        assert not any(p.is_meta for p in meta.parameters())


class TestTraining:
    @FAMILIES
    def test_only_adapters_are_trained_and_they_learn(self, family):
        model = build(family)
        ids = torch.tensor([[1, 2, 3, 4]])
        with torch.no_grad():
            before = model(ids).logits
        adapted = attach_lora(model, LoRASettings(rank=2, dropout=0.0))
        with torch.no_grad():
            assert_close(adapted(ids).logits, before)  # B starts at zero
        trainable = {n for n, p in adapted.named_parameters() if p.requires_grad}
        assert trainable == {n for n in shapes(adapted) if ".lora_" in n}
        frozen = {n: p.clone() for n, p in adapted.named_parameters() if n not in trainable}
        step = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
        losses = []
        for _ in range(10):
            loss = adapted(ids, labels=ids).loss
            losses.append(loss.item())
            step.zero_grad()
            loss.backward()
            step.step()
        assert losses[-1] < losses[0]
        after = dict(adapted.named_parameters())
        assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())

    def test_scale_is_alpha_over_rank(self):
        model = build("qwen2")
        weight = model.model.layers[0].mlp.up_proj.weight.detach().clone()
        adapted = attach_lora(
            model, LoRASettings(rank=2, alpha=6.0, dropout=0.0, target_modules=("up_proj",))
        )
        layer = adapted.base_model.model.model.layers[0].mlp.up_proj
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.nn.init.normal_(B)
        x = torch.randn(5, 16)
        expected = x @ (weight + 6.0 / 2 * B @ A).T
        assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


class TestDoRA:
    SETTINGS = LoRASettings(
        rank=2, alpha=6.0, dropout=0.0, use_dora=True, target_modules=("up_proj",)
    )

    def test_rows_have_the_lengths_of_the_vector(self):
        model = build("qwen2")
        layer = model.model.layers[0].mlp.up_proj
        weight = layer.weight.detach().double()
        adapted = attach_lora(model, self.SETTINGS)
        layer = adapted.base_model.model.model.layers[0].mlp.up_proj
        lengths = layer.lora_magnitude_vector["default"].weight
        assert_close(lengths.double(), weight.square().sum(1).sqrt(), rtol=1e-5, atol=1e-6)
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.nn.init.normal_(B)
        torch.nn.init.normal_(lengths, 2.0)
        turned = weight + 6.0 / 2 * B.double() @ A.double()
        rows = turned / turned.square().sum(1, keepdim=True).sqrt() * lengths.double()[:, None]
        x = torch.randn(5, 16)
        assert_close(layer(x).double(), x.double() @ rows.T, atol=1e-5, rtol=1e-5)
        merged = merge_lora(adapted).model.layers[0].mlp.up_proj
        assert_close(merged.weight.double(), rows, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_names_and_shapes(self, device):
        plain = shapes(build("llama"))
        vectors = {
            f"base_model.model.{name[:-7]}.lora_magnitude_vector.default.weight": shape[:1]
            for name, shape in plain.items()
            if name.endswith("up_proj.weight")
        }
        adapted = attach_lora(build("llama", device), self.SETTINGS)
        assert shapes(adapted) == {**expected_names(plain, ("up_proj",), rank=2), **vectors}
        assert {n for n, p in adapted.named_parameters() if p.requires_grad} == {
            name for name in shapes(adapted) if ".lora_" in name
        }


class TestPresets:
    ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
    MLP = ("gate_proj", "up_proj", "down_proj")

    @FAMILIES
    @pytest.mark.parametrize(
        ("preset", "names"),
        [("attention", ATTENTION), ("mlp", MLP), ("all-linear", ATTENTION + MLP)],
    )
    def test_llama_like(self, family, preset, names):
        targets = check_targets(build(family), LoRASettings(target_modules=preset))
        assert set(targets) == set(names)
        by_name, by_preset = (
            shapes(attach_lora(build(family), LoRASettings(target_modules=t)))
            for t in (names, preset)
        )
        assert by_name == by_preset

    @pytest.mark.parametrize(
        ("family", "attention", "mlp"),
        [
            ("phi3", {"qkv_proj", "o_proj"}, {"gate_up_proj", "down_proj"}),
            ("phi", {"q_proj", "k_proj", "v_proj", "dense"}, {"fc1", "fc2"}),
            ("opt", {"q_proj", "k_proj", "v_proj", "out_proj"}, None),
        ],
    )
    def test_other_names(self, family, attention, mlp):
        changes = (
            {"pad_token_id": 0, "word_embed_proj_dim": 16} if family in ("phi3", "opt") else {}
        )
        model = build(family, **changes)
        assert set(check_targets(model, LoRASettings(target_modules="attention"))) == attention
        if mlp is None:  # its two layers stand beside the attention, in no block of their own
            with pytest.raises(ConfigError, match=r"target_modules mlp: .* no such layers"):
                check_targets(model, LoRASettings(target_modules="mlp"))
        else:
            assert set(check_targets(model, LoRASettings(target_modules="mlp"))) == mlp

    def test_names_that_mean_more_than_the_block(self):
        model = build("llama")
        model.model.layers[0].self_attn.gate_proj = torch.nn.Linear(2, 2)
        with pytest.raises(ConfigError, match=r"same names as model\.layers\.0\.mlp\.gate_proj"):
            check_targets(model, LoRASettings(target_modules="attention"))

    def test_the_output_layer_is_left_out(self):
        targets = check_targets(
            build("llama", tie_word_embeddings=False), LoRASettings(target_modules="all-linear")
        )
        assert "lm_head" not in targets


class TestMerge:
    @FAMILIES
    def test_a_merged_model_is_plain_and_computes_the_same(self, family):
        plain = shapes(build(family))
        adapted = attach_lora(build(family), LoRASettings(rank=2, alpha=7.0, dropout=0.0))
        for name, tensor in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(tensor)
        ids = torch.tensor([[1, 2, 3]])
        with torch.no_grad():
            before = adapted.eval()(ids).logits
            merged = merge_lora(adapted)
            assert_close(merged(ids).logits, before, atol=1e-4, rtol=1e-4)
            assert not torch.allclose(build(family)(ids).logits, before, atol=1e-2)
        assert shapes(merged) == plain

    def test_a_plain_model_cannot_be_merged(self):
        with pytest.raises(ConfigError, match="no adapters"):
            merge_lora(build("qwen2"))


class TestRefusals:
    def test_targets_without_linear_are_named_with_those_that_exist(self):
        settings = LoRASettings(target_modules=("q_proj", "query", "norm"))
        with pytest.raises(ConfigError) as error:
            attach_lora(build("qwen2"), settings)
        assert "['query', 'norm']" in str(error.value)
        assert "Qwen2ForCausalLM" in str(error.value)
        assert "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj" in str(error.value)

    def test_part_of_a_name_is_no_match(self):
        with pytest.raises(ConfigError, match="'proj'"):
            attach_lora(build("llama"), LoRASettings(target_modules=("proj",)))

    def test_an_empty_list_is_refused(self):
        with pytest.raises(ConfigError, match="empty"):
            attach_lora(build("llama"), LoRASettings(target_modules=()))

    def test_layers_that_peft_refuses(self):
        sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
        model = build_language_model(language_config({"model_type": "mamba", **sizes}))
        with pytest.raises(ConfigError, match=r"target_modules cannot be .*out_proj.*incompatible"):
            attach_lora(model, LoRASettings(target_modules="all-linear"))

    def test_adapters_are_not_stacked(self):
        adapted = attach_lora(build("llama"), LoRASettings())
        with pytest.raises(ConfigError, match="already"):
            attach_lora(adapted, LoRASettings())

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_a_tied_output_layer_is_refused(self, device):
        settings = LoRASettings(target_modules=("q_proj", "lm_head"))
        with pytest.raises(ConfigError, match="lm_head shares its weight"):
            attach_lora(build("qwen2", device, tie_word_embeddings=True), settings)
        attach_lora(build("qwen2", device, tie_word_embeddings=False), settings)
