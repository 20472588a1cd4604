from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig

from panovlm.checkpoint.settle.shapes import Shapes
from panovlm.config.schema import LoRASettings
from panovlm.errors import CheckpointError, ContradictionError
from panovlm.models.language.adapters import built_names
from panovlm.models.language.backbone import build_language_model, language_config
from panovlm.models.language.families import (
    FAMILIES,
    LanguageInference,
    infer_language,
    infer_lora,
    strip_lora_name,
)
from panovlm.models.language.lora import attach_lora
from panovlm.models.language.released import _DEFAULTS, _RELEASED

TINY = {
    "vocab_size": 31,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
PREFIX = "language_model."
LLAMA_ONLY = {"attention_bias", "mlp_bias"}
"""Switches that are observed in every layer of Llama's names; not every family has them."""


def build(**fields):
    with torch.device("meta"):
        return build_language_model(language_config({**TINY, **fields}))


def names(model) -> dict[str, tuple[int, ...]]:
    return {PREFIX + name: tuple(t.shape) for name, t in model.state_dict().items()}


def infer(shapes: dict[str, tuple[int, ...]]) -> LanguageInference:
    return infer_language(Shapes(shapes).under(PREFIX))


def observed(inference: LanguageInference) -> dict[str, object]:
    return {field: seen.value for field, seen in inference.observed.items()}


class TestRoundTrip:
    @pytest.mark.parametrize(
        "fields",
        [
            {"model_type": "qwen2"},
            {"model_type": "qwen2", "num_hidden_layers": 12, "num_key_value_heads": 4},
            {"model_type": "qwen3"},
            {"model_type": "qwen3", "head_dim": 10, "num_key_value_heads": 1},
            {"model_type": "gemma2"},
            {"model_type": "gemma3_text", "head_dim": 10, "num_key_value_heads": 1},
            {"model_type": "qwen3", "attention_bias": True},
            {"model_type": "llama"},
            {"model_type": "llama", "attention_bias": True},
            {"model_type": "llama", "mlp_bias": True},
            {"model_type": "llama", "mlp_bias": True, "attention_bias": True},
        ],
    )
    def test_every_observed_field_is_that_of_the_configuration(self, fields):
        model = build(**fields)
        shapes = names(model)
        inference = infer(shapes)
        config = model.config.to_dict()
        found = observed(inference)
        assert inference.family == fields["model_type"]
        assert found == {field: config[field] for field in found}
        required = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"}
        if fields["model_type"] == "qwen3":
            required |= {"head_dim", "num_attention_heads", "num_key_value_heads"}
        if fields["model_type"] != "llama":
            required |= {"model_type"}
        assert required <= set(found)
        assert not set(found) & set(inference.assumed)
        rebuilt = build_language_model(language_config(inference.config()))
        assert names(rebuilt) == shapes

    def test_without_lm_head_the_table_is_tied(self):
        shapes = names(build(model_type="qwen2", tie_word_embeddings=True))
        inference = infer(shapes)
        assert inference.assumed["tie_word_embeddings"] is False
        del shapes[f"{PREFIX}lm_head.weight"]
        inference = infer(shapes)
        assert observed(inference)["tie_word_embeddings"] is True
        assert "lm_head.weight absent" in inference.observed["tie_word_embeddings"].evidence

    def test_the_evidence_names_tensors_in_the_file(self):
        inference = infer(names(build(model_type="qwen3")))
        evidence = {field: seen.evidence for field, seen in inference.observed.items()}
        assert evidence["hidden_size"] == "language_model.model.embed_tokens.weight[1]"
        assert evidence["num_hidden_layers"] == "language_model.model.layers.0..2"
        assert evidence["head_dim"] == ("language_model.model.layers.0.self_attn.q_norm.weight[0]")
        assert "q_norm.weight present" in evidence["model_type"]

    def test_the_shapes_are_left_as_they_were(self):
        shapes = names(build(model_type="llama"))
        before = dict(shapes)
        infer(shapes)
        assert shapes == before


class TestAssumptions:
    @pytest.mark.parametrize("family", sorted(_DEFAULTS))
    def test_defaults_are_those_of_transformers(self, family):
        config = AutoConfig.for_model(family).to_dict()
        assert _DEFAULTS[family] == {field: config[field] for field in _DEFAULTS[family]}

    @pytest.mark.parametrize(
        ("family", "width", "heads", "groups", "head_dim"),
        [
            ("qwen2", 1024, 16, 16, 64),
            ("qwen2", 2560, 20, 20, 128),
            ("llama", 576, 9, 3, 64),
            ("llama", 2048, 32, 4, 64),
            ("llama", 4096, 32, 8, 128),
            ("llama", 32, 4, 1, 8),
        ],
    )
    def test_usual_head_widths(self, family, width, heads, groups, head_dim):
        model = build(
            model_type=family,
            hidden_size=width,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=head_dim,
        )
        assumed = infer(names(model)).assumed
        assert assumed["head_dim"] == head_dim
        assert assumed["num_attention_heads"] == heads
        assert assumed["num_key_value_heads"] == groups
        assert assumed["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}

    def test_a_released_model_is_known_by_its_sizes(self):
        model = build(
            model_type="qwen2",
            vocab_size=151666,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            head_dim=128,
        )
        inference = infer(names(model))
        assert inference.candidates == ("Qwen2.5-1.5B", "Qwen2.5-Math-1.5B")
        assert inference.disputed == ("max_position_embeddings", "rope_parameters")
        assert inference.assumed["num_attention_heads"] == 12
        assert inference.assumed["rope_parameters"]["rope_theta"] == 1e6

    @pytest.mark.parametrize("sizes", _RELEASED, ids=[next(iter(r)) for r in _RELEASED.values()])
    def test_released_fields_fit_their_sizes_and_can_be_built(self, sizes):
        """Built in full size, on the meta device, the likeliest candidate is recognised."""
        name, fields = next(iter(_RELEASED[sizes].items()))
        fields = {"head_dim": 256 if "27B" not in name else 128, **fields}
        heads, rest = divmod(sizes.query_rows, fields["head_dim"])
        assert rest == 0
        model = build(
            **{"model_type": sizes.model_type}
            | fields
            | {name: getattr(sizes, name) for name in ("hidden_size", "intermediate_size")}
            | {"num_hidden_layers": sizes.num_hidden_layers, "num_attention_heads": heads}
            | {"num_key_value_heads": sizes.key_rows // fields["head_dim"]}
        )
        inference = infer(names(model))
        assert inference.candidates == tuple(_RELEASED[sizes])
        config = model.config.to_dict()
        foreign = {"tie_word_embeddings", *(LLAMA_ONLY - config.keys())}
        found = {k: v for k, v in inference.config().items() if k not in foreign}
        assert found == {field: config[field] for field in found}


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "fault"),
        [
            ({"model_type": "olmo2", "pad_token_id": None}, "input_layernorm.weight is absent"),
            ({"model_type": "phi3", "pad_token_id": None}, "mlp.gate_up_proj.weight is foreign"),
            ({"model_type": "qwen2_moe"}, "mlp.gate.weight is foreign"),
            ({"model_type": "qwen3_moe"}, "mlp.gate.weight is foreign"),
            (
                {"model_type": "cohere", "pad_token_id": None},
                "post_attention_layernorm.weight is absent",
            ),
            ({"model_type": "starcoder2"}, "mlp.gate_proj.weight is absent"),
        ],
    )
    def test_other_families_are_not_claimed(self, fields, fault):
        with pytest.raises(CheckpointError, match="nearest is") as error:
            infer(names(build(**fields)))
        assert fault in str(error.value)

    def test_no_layer_belongs_to_two_families(self):
        for fields in ({}, {"attention_bias": True}, {"mlp_bias": True}):
            for family in ("qwen2", "qwen3", "llama"):
                first = "model.layers.0."
                layer = frozenset(
                    name.removeprefix(first)
                    for name in build(model_type=family, **fields).state_dict()
                    if name.startswith(first)
                )
                claims = [f.model_type for f in FAMILIES if not f.differences(layer)]
                assert claims == [family]

    def test_no_language_model_at_all(self):
        with pytest.raises(CheckpointError, match="no language model"):
            infer({"projector.linear.weight": (3, 3)})
        with pytest.raises(CheckpointError, match=r"transformer\.h"):
            infer(names(build(model_type="gpt2")))

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("model.layers.1.mlp.up_proj.weight", (24, 33)),
            ("model.layers.0.mlp.down_proj.weight", (32, 25)),
            ("model.layers.2.self_attn.o_proj.weight", (32, 31)),
            ("model.layers.2.self_attn.q_norm.weight", (9,)),
            ("model.norm.weight", (31,)),
            ("lm_head.weight", (30, 32)),
        ],
    )
    def test_tensors_that_do_not_fit(self, name, shape):
        shapes = names(build(model_type="qwen3"))
        assert PREFIX + name in shapes
        with pytest.raises(ContradictionError, match=name.replace(".", r"\.")):
            infer({**shapes, PREFIX + name: shape})

    @pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
    def test_absent_tensors(self, name):
        shapes = names(build(model_type="qwen2"))
        del shapes[PREFIX + name]
        with pytest.raises(ContradictionError, match="absent"):
            infer(shapes)

    def test_an_absent_layer(self):
        shapes = names(build(model_type="qwen2"))
        kept = {name: shape for name, shape in shapes.items() if ".layers.1." not in name}
        with pytest.raises(ContradictionError, match=r"lacks \[1\]"):
            infer(kept)

    def test_a_layer_with_more_than_the_first(self):
        shapes = names(build(model_type="llama"))
        shapes[f"{PREFIX}model.layers.2.self_attn.q_norm.weight"] = (8,)
        with pytest.raises(ContradictionError, match="no counterpart in layer 0"):
            infer(shapes)

    def test_query_rows_that_no_head_count_gives(self):
        shapes = names(build(model_type="llama", num_hidden_layers=1))
        for part, shape in {"q": (24, 32), "o": (32, 24)}.items():
            shapes[f"{PREFIX}model.layers.0.self_attn.{part}_proj.weight"] = shape
        for part in "kv":
            shapes[f"{PREFIX}model.layers.0.self_attn.{part}_proj.weight"] = (16, 32)
        with pytest.raises(ContradictionError, match="24 query rows and 16 key rows"):
            infer(shapes)


class TestStripLoRAName:
    @pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
    def test_an_adapted_model_gives_the_plain_names(self, family):
        plain = build(model_type=family).state_dict()
        adapted = attach_lora(build(model_type=family), LoRASettings()).state_dict()
        found = [strip_lora_name(name) for name in adapted]
        weights = [f.name for f in found if f.part in ("plain", "base_layer")]
        assert sorted(weights) == sorted(plain)
        for name in plain:
            assert strip_lora_name(name).name == name
            assert strip_lora_name(name).part == "plain"
        matrices = [f for f in found if f.part in ("lora_A", "lora_B")]
        assert {f.adapter for f in matrices} == {"default"}
        assert {f"{f.module}.weight" for f in matrices} == {
            name for name in plain if name.endswith("_proj.weight")
        }

    @pytest.mark.parametrize(
        ("name", "canonical", "part", "adapter"),
        [
            ("base_model.model.lm_head.weight", "lm_head.weight", "plain", None),
            ("base_model.model.a.q_proj.lora_A.weight", "a.q_proj.lora_A.weight", "lora_A", None),
            ("a.q_proj.lora_B.mine.weight", "a.q_proj.lora_B.weight", "lora_B", "mine"),
            ("a.q_proj.base_layer.bias", "a.q_proj.bias", "base_layer", None),
        ],
    )
    def test_single_names(self, name, canonical, part, adapter):
        found = strip_lora_name(name)
        assert (found.name, found.part, found.adapter) == (canonical, part, adapter)


class TestInferLoRA:
    @staticmethod
    def adapted(family="qwen2", **settings):
        return names(attach_lora(build(model_type=family), LoRASettings(**settings)))

    @staticmethod
    def infer(shapes):
        return infer_lora(Shapes(shapes).under(PREFIX))

    @pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
    @pytest.mark.parametrize(
        "targets", [LoRASettings().target_modules, ("q_proj", "v_proj"), ("q_proj", "lm_head")]
    )
    @pytest.mark.parametrize("rank", [1, 5])
    def test_round_trip(self, family, targets, rank):
        found = self.infer(self.adapted(family, rank=rank, target_modules=targets))
        assert found["rank"].value == rank
        assert found["target_modules"].value == targets
        assert set(found) == {"rank", "use_dora", "target_modules"}
        assert found["use_dora"].value is False
        assert found["rank"].evidence.endswith(".lora_A.default.weight[0]")

    def test_the_language_model_below_the_adapters_is_recognised(self):
        shapes = self.adapted("qwen3", rank=4)
        canonical = {}
        for name, shape in shapes.items():
            found = strip_lora_name(name.removeprefix(PREFIX))
            if found.part in ("plain", "base_layer"):
                canonical[PREFIX + found.name] = shape
        assert infer(canonical).family == "qwen3"

    def test_a_plain_model_has_none(self):
        assert self.infer(names(build(model_type="llama"))) is None

    def test_a_peft_adapter_file(self):
        shapes = {
            name.removeprefix(PREFIX).replace(".default", ""): shape
            for name, shape in self.adapted(rank=4).items()
            if ".lora_" in name or "embed_tokens" in name or "lm_head" in name
        }
        found = infer_lora(Shapes(shapes))
        assert found is not None
        assert found["rank"].value == 4
        assert found["target_modules"].value == LoRASettings().target_modules

    def test_two_ranks_are_a_contradiction(self):
        shapes = self.adapted(rank=4)
        name = f"{PREFIX}base_model.model.model.layers.2.mlp.up_proj.lora_A.default.weight"
        with pytest.raises(ContradictionError, match=r"layers\.2\.mlp\.up_proj\.lora_A"):
            self.infer({**shapes, name: (3, 32)})

    def test_an_adapter_of_other_weights_is_a_contradiction(self):
        shapes = self.adapted(rank=4)
        name = f"{PREFIX}base_model.model.model.layers.2.mlp.up_proj.lora_B.default.weight"
        assert name in shapes
        with pytest.raises(ContradictionError, match=r"\[24, 4\] was expected"):
            self.infer({**shapes, name: (25, 4)})

    @pytest.mark.parametrize("half", ["lora_A", "lora_B"])
    def test_half_an_adapter_is_a_contradiction(self, half):
        shapes = self.adapted()
        del shapes[f"{PREFIX}base_model.model.model.layers.2.mlp.up_proj.{half}.default.weight"]
        with pytest.raises(ContradictionError, match="belong together"):
            self.infer(shapes)

    def test_a_layer_without_adapters_is_a_contradiction(self):
        shapes = self.adapted(target_modules=("q_proj", "up_proj"))
        kept = {n: s for n, s in shapes.items() if not (".layers.1." in n and "up_proj.lora" in n)}
        with pytest.raises(ContradictionError, match=r"up_proj .* not in \[1\]"):
            self.infer(kept)

    def test_two_adapters_are_refused(self):
        shapes = self.adapted()
        for name, shape in list(shapes.items()):
            shapes[name.replace(".default.", ".other.")] = shape
        with pytest.raises(CheckpointError, match="several adapters"):
            self.infer(shapes)

    @pytest.mark.parametrize("in_peft", [True, False])
    def test_dora_shows_in_its_vector(self, in_peft):
        shapes = self.adapted(use_dora=True, target_modules=("q_proj", "up_proj"))
        if not in_peft:  # its own files name no adapter, and the vector without a leaf
            shapes = {
                name.replace(".default", "").replace(
                    "magnitude_vector.weight", "magnitude_vector"
                ): s
                for name, s in shapes.items()
            }
        assert sum("lora_magnitude_vector" in name for name in shapes) == 6
        assert self.infer(shapes)["use_dora"].value is True
        inner = [name.removeprefix(PREFIX) for name in shapes]
        assert set(built_names(inner).values()) == {
            name.removeprefix(PREFIX)
            for name in self.adapted(use_dora=True, target_modules=("q_proj", "up_proj"))
        }

    def test_dora_on_some_layers_is_a_contradiction(self):
        shapes = self.adapted(use_dora=True)
        del shapes[next(name for name in shapes if "lora_magnitude_vector" in name)]
        with pytest.raises(ContradictionError, match="no lora_magnitude_vector"):
            self.infer(shapes)

    def test_a_vector_of_another_length_is_a_contradiction(self):
        shapes = self.adapted(use_dora=True)
        name = next(name for name in shapes if "lora_magnitude_vector" in name)
        with pytest.raises(ContradictionError, match="lora_magnitude_vector"):
            self.infer({**shapes, name: (5,)})

    def test_another_kind_of_adapter_is_refused(self):
        shapes = self.adapted()
        name = f"{PREFIX}base_model.model.model.layers.0.mlp.up_proj.lora_embedding_A.default"
        with pytest.raises(CheckpointError, match="lora_embedding_A"):
            self.infer({**shapes, name: (4, 24)})


def test_inference_needs_no_torch():
    code = (
        "import sys, panovlm.models.language.families; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'peft')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
