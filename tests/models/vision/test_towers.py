"""Names and shapes of vision towers against the towers that transformers builds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    PreTrainedConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
)

from panovlm.checkpoint.settle.shapes import Observed, Shapes
from panovlm.errors import CheckpointError, ContradictionError
from panovlm.models.vision.released import published
from panovlm.models.vision.tower_names import current_names
from panovlm.models.vision.towers import FAMILIES, infer_tower

PREFIX = "vision_backbone.encoder."
VIT = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
DINO = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
}

SIGLIP_NAMES = {
    "embeddings.patch_embedding.weight",
    "embeddings.patch_embedding.bias",
    "embeddings.position_embedding.weight",
    *(
        f"encoder.layers.{i}.{module}.{leaf}"
        for i in range(3)
        for module in (
            "layer_norm1",
            "layer_norm2",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.out_proj",
            "mlp.fc1",
            "mlp.fc2",
        )
        for leaf in ("weight", "bias")
    ),
    "post_layernorm.weight",
    "post_layernorm.bias",
}
HEAD_NAMES = {
    "head.probe",
    "head.attention.in_proj_weight",
    "head.attention.in_proj_bias",
    "head.attention.out_proj.weight",
    "head.attention.out_proj.bias",
    *(
        f"head.{m}.{leaf}"
        for m in ("layernorm", "mlp.fc1", "mlp.fc2")
        for leaf in ("weight", "bias")
    ),
}
CLIP_NAMES = (SIGLIP_NAMES - {"embeddings.patch_embedding.bias"}) | {
    "embeddings.class_embedding",
    "pre_layrnorm.weight",
    "pre_layrnorm.bias",
}
DINOV2_NAMES_OF_4 = {
    "embeddings.cls_token",
    "embeddings.mask_token",
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.projection.bias",
    *(
        f"encoder.layer.{i}.{module}.{leaf}"
        for i in range(2)
        for module in (
            "norm1",
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
            "attention.output.dense",
            "norm2",
            "mlp.fc1",
            "mlp.fc2",
        )
        for leaf in ("weight", "bias")
    ),
    *(f"encoder.layer.{i}.layer_scale{n}.lambda1" for i in range(2) for n in (1, 2)),
    "layernorm.weight",
    "layernorm.bias",
}


def shapes_of(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        tower = AutoModel.from_config(config)
    return {PREFIX + name: tuple(value.shape) for name, value in tower.state_dict().items()}


def names_of(config: PreTrainedConfig) -> set[str]:
    return {name.removeprefix(PREFIX) for name in shapes_of(config)}


def infer(shapes: dict[str, tuple[int, ...]]):
    return infer_tower(Shapes(shapes, PREFIX))


def fields(shapes: dict[str, tuple[int, ...]]) -> dict[str, object]:
    found = infer(shapes)
    return {**found.assumed, **{name: seen.value for name, seen in found.observed.items()}}


CASES = {
    "siglip": SiglipVisionConfig(**VIT, image_size=20, patch_size=4),
    "siglip without head": SiglipVisionConfig(
        **VIT, image_size=8, patch_size=2, vision_use_head=False
    ),
    "siglip naflex": Siglip2VisionConfig(**VIT, patch_size=4, num_patches=16),
    "clip": CLIPVisionConfig(**VIT, image_size=20, patch_size=4),
    "dinov2": Dinov2Config(**DINO),
    "dinov2 wide": Dinov2Config(**DINO, mlp_ratio=3, qkv_bias=False, use_mask_token=False),
    "dinov2 swiglu": Dinov2Config(**DINO, use_swiglu_ffn=True),
    "dinov2 registers": Dinov2WithRegistersConfig(**DINO, num_register_tokens=3),
    "dinov3": DINOv3ViTConfig(**VIT, patch_size=4, num_register_tokens=4),
    "dinov3 gated": DINOv3ViTConfig(
        **VIT,
        patch_size=2,
        num_register_tokens=4,
        use_gated_mlp=True,
        hidden_act="silu",
        query_bias=False,
        value_bias=False,
    ),
    "dinov3 plain": DINOv3ViTConfig(**VIT, key_bias=True, proj_bias=False, mlp_bias=False),
}


def test_names_are_those_of_old_checkpoints():
    assert names_of(CASES["siglip"]) == SIGLIP_NAMES | HEAD_NAMES
    assert names_of(CASES["siglip without head"]) == SIGLIP_NAMES
    assert names_of(CASES["clip"]) == CLIP_NAMES


def test_dinov2_names_of_transformers_4_become_todays():
    renamed = {name: today for name in DINOV2_NAMES_OF_4 for today in current_names(name)}
    assert renamed.keys() == DINOV2_NAMES_OF_4
    assert set(renamed.values()) == names_of(CASES["dinov2"])
    layer = "encoder.layer.1.attention."
    assert renamed[layer + "attention.query.weight"] == layer + "q_proj.weight"
    assert renamed[layer + "attention.key.bias"] == layer + "k_proj.bias"
    assert renamed[layer + "attention.value.weight"] == layer + "v_proj.weight"
    assert renamed[layer + "output.dense.bias"] == layer + "o_proj.bias"


def test_dinov3_names_of_transformers_4_become_todays():
    today = names_of(CASES["dinov3 gated"])
    before = {name.replace("model.layer.", "layer.") for name in today}
    assert before != today
    assert {new for name in before for new in current_names(name)} == today


def test_gated_layers_of_dinov3_have_another_activation():
    assert infer(shapes_of(CASES["dinov3"])).assumed["hidden_act"] == "gelu"
    assert infer(shapes_of(CASES["dinov3 gated"])).assumed["hidden_act"] == "silu"


def test_fused_swiglu_of_transformers_4_becomes_gate_and_up():
    mlp = "encoder.layer.11.mlp."
    for leaf in ("weight", "bias"):
        parts = (f"{mlp}gate_proj.{leaf}", f"{mlp}up_proj.{leaf}")
        assert current_names(f"{mlp}weights_in.{leaf}") == parts
        assert current_names(f"{mlp}weights_out.{leaf}") == (f"{mlp}down_proj.{leaf}",)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_todays_names_stay(config):
    for name in names_of(config):
        assert current_names(name) == (name,)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_observed_fields_are_those_of_the_tower(config):
    found = infer(shapes_of(config))
    assert found.family == config.model_type
    recorded = config.to_dict()
    for field, seen in found.observed.items():
        assert seen.value == recorded[field], field
        assert PREFIX in seen.evidence, field


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_inferred_configuration_builds_the_same_shapes(config):
    shapes = shapes_of(config)
    rebuilt = AutoConfig.for_model(config.model_type, **fields(shapes))
    assert shapes_of(rebuilt) == shapes


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_exactly_one_family_claims_a_tower(config):
    shapes = Shapes(shapes_of(config), PREFIX)
    claims = [family.model_type for family in FAMILIES if not family.missing(shapes)]
    assert claims == [config.model_type]


@pytest.mark.parametrize(
    "config",
    [
        SiglipVisionConfig(),
        Siglip2VisionConfig(),
        CLIPVisionConfig(),
        Dinov2Config(),
        DINOv3ViTConfig(),
    ],
)
def test_assumed_fields_are_the_defaults_of_transformers(config):
    """The default configurations are those of published base models."""
    assumed = infer(shapes_of(config)).assumed
    rotary = {"rope_theta", "image_size"} if config.model_type == "dinov3_vit" else set()
    assert set(assumed) == {"num_attention_heads", "hidden_act", "layer_norm_eps"} | rotary
    recorded = config.to_dict()
    assert assumed == {field: recorded[field] for field in assumed}


@pytest.mark.parametrize(
    ("family", "width", "heads"),
    [
        ("siglip_vision_model", 1024, 16),
        ("siglip_vision_model", 1152, 16),  # So400m: heads of 72
        ("clip_vision_model", 1280, 16),  # ViT-H: heads of 80
        ("dinov2", 384, 6),
        ("dinov3_vit", 1280, 20),
        ("dinov3_vit", 4096, 32),  # 7B: heads of 128
        ("dinov2", 1536, 24),
        ("dinov2", 32, 1),
        ("dinov2", 100, 2),  # 64 does not divide it; 50 is the nearest width that does
    ],
)
def test_rule_for_heads(family, width, heads):
    (found,) = (f for f in FAMILIES if f.model_type == family)
    seen = {"hidden_size": Observed(width, "")}
    assert found.assume(seen)["num_attention_heads"] == heads


def test_published_size_that_is_no_multiple_of_the_patch():
    config = SiglipVisionConfig(**VIT, image_size=384, patch_size=14)
    assert infer(shapes_of(config)).observed["image_size"].value == 384


def test_evidence_names_the_tensor():
    observed = infer(shapes_of(CASES["siglip"])).observed
    assert observed["hidden_size"].evidence == PREFIX + "embeddings.patch_embedding.weight[0]"
    assert observed["num_hidden_layers"].evidence == PREFIX + "encoder.layers.0..2"
    assert "position_embedding.weight[0]" in observed["image_size"].evidence


def test_unknown_tower_names_the_nearest_and_what_it_lacks():
    shapes = shapes_of(CASES["clip"])
    del shapes[PREFIX + "embeddings.class_embedding"]
    with pytest.raises(CheckpointError) as error:
        infer(shapes)
    message = str(error.value)
    assert "The nearest is clip_vision_model" in message
    assert "embeddings.class_embedding is absent" in message
    assert "models.vision_config" in message


def test_no_torch_is_needed():
    code = "import sys, panovlm.models.vision.towers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_tower_at_all():
    with pytest.raises(CheckpointError, match="no known vision tower"):
        infer({})


@pytest.mark.parametrize(
    ("case", "name", "shape"),
    [
        ("siglip", "embeddings.position_embedding.weight", (25, 23)),
        ("siglip", "embeddings.patch_embedding.weight", (24, 3, 4, 5)),
        ("siglip", "encoder.layers.0.mlp.fc2.weight", (24, 41)),
        ("clip", "encoder.layers.0.self_attn.q_proj.weight", (23, 24)),
        ("dinov2", "embeddings.position_embeddings", (1, 10, 25)),
        ("dinov3", "embeddings.register_tokens", (1, 4, 25)),
        ("dinov3", "model.layer.0.mlp.down_proj.weight", (24, 41)),
        ("dinov2", "encoder.layer.0.mlp.fc1.weight", (97, 24)),
        ("siglip naflex", "embeddings.patch_embedding.weight", (24, 47)),
    ],
)
def test_tensors_that_do_not_fit_together(case, name, shape):
    shapes = {**shapes_of(CASES[case]), PREFIX + name: shape}
    with pytest.raises(ContradictionError, match=name.replace(".", r"\.")):
        infer(shapes)


def test_missing_block_is_reported():
    shapes = shapes_of(CASES["siglip"])
    cut = {name: shape for name, shape in shapes.items() if ".layers.1." not in name}
    with pytest.raises(ContradictionError, match=r"lacks \[1\]"):
        infer(cut)


def test_grid_that_is_no_square():
    shapes = {
        **shapes_of(CASES["siglip"]),
        PREFIX + "embeddings.position_embedding.weight": (24, 24),
    }
    with pytest.raises(CheckpointError, match="form no square"):
        infer(shapes)


@pytest.mark.parametrize(
    ("family", "fields", "name"),
    [
        ("siglip_vision_model", (1152, 27, 4304, 14), "SigLIP/SigLIP 2 So400m, patches of 14"),
        ("siglip_vision_model", (768, 12, 3072, 16), "SigLIP/SigLIP 2 base, patches of 16"),
        ("clip_vision_model", (1024, 24, 4096, 14), "CLIP ViT-L, patches of 14"),
        ("dinov2", (1024, 24, None, 14), "DINOv2 large, patches of 14"),
        ("dinov3_vit", (1024, 24, 4096, 16), "DINOv3 large, patches of 16"),
        ("siglip_vision_model", (768, 12, 3073, 16), None),
        ("siglip_vision_model", (768, 11, 3072, 16), None),
        ("clip_vision_model", (1024, 24, 4096, 15), None),
    ],
)
def test_published_towers_are_named_by_their_sizes(family, fields, name) -> None:
    keys = ("hidden_size", "num_hidden_layers", "intermediate_size", "patch_size")
    seen = {k: Observed(v, "") for k, v in zip(keys, fields, strict=True) if v is not None}
    assert published(family, seen) == (() if name is None else (name,))
