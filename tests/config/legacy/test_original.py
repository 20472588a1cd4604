"""What a run of the original system computed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from panovlm.config.base import StrictModel
from panovlm.config.legacy import ORIGINAL_DEFAULTS, original_run_mapping
from panovlm.config.schema import DEFAULT_SYSTEM_MESSAGE, RESAMPLER_CONFIGS, Recipe

# The documented defaults of the original system, field by field.
DOCUMENTED: dict[str, Any] = {
    "models.vision_name": "google/siglip-base-patch16-224",
    "models.language_model_name": "Qwen/Qwen2.5-0.5B-Instruct",
    "models.resampler_type": "mlp",
    "models.latent_dimension": 768,
    "models.use_vicreg_norm": True,
    "models.use_vicreg_projector": True,
    "models.vicreg_projector_dim": None,
    "models.vicreg_projector_hidden": None,
    "models.vicreg_projector_depth": 2,
    "models.vicreg_projector_ln": True,
    "models.vicreg_loss_weight": 1.0,
    "models.vicreg_similarity_weight": 25.0,
    "models.vicreg_variance_weight": 25.0,
    "models.vicreg_covariance_weight": 1.0,
    "models.vicreg_gamma": 1.0,
    "models.vicreg_mode": "pairwise",
    "models.overlap_ratio": 0.5,
    "models.global_view": "first_view",
    "models.use_projection_positional_encoding": False,
    "models.pe_spatial_encoding_type": "sinusoidal",
    "models.pe_enable_continuity": True,
    "models.pe_temperature": 10000.0,
    "models.pe_dropout": 0.0,
    "models.stitching_mode": "drop_overlap",
    "models.stitch_target_cols": 0,
    "models.stitch_target_to_view_width": False,
    "models.stitch_interp": "nearest",
    "models.use_text_projection": False,
    "models.training_placeholder": False,
    "models.vision_token_fallback_position": "prefix",
    "models.max_text_length": 512,
    "models.fusion_text_limit": 512,
    "models.vision_token_fallback_ends": "row",
    "models.default_generation_prompt": "Describe the panoramic scene.",
    "image_processing.crop_strategy": "e2p",
    "image_processing.overlap_ratio": 0.5,
    "image_processing.fov_deg": 90.0,
    "image_processing.use_vision_processor": True,
    "image_processing.anyres_patch_size": 336,
    "image_processing.anyres_max_patches": 12,
    "image_processing.normalize": True,
    "image_processing.image_mean": None,
    "image_processing.image_std": None,
    "lora.use_lora": False,
    "lora.rank": 16,
    "lora.alpha": 32,
    "lora.dropout": 0.1,
    "lora.target_modules": (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    ),
    "generation.max_new_tokens": 128,
    "generation.min_new_tokens": 5,
    "generation.do_sample": True,
    "generation.temperature": 0.6,
    "generation.top_p": 0.95,
    "generation.top_k": 20,
    "generation.repetition_penalty": 1.1,
    "generation.length_penalty": 1.0,
    "generation.num_beams": 1,
    "system_messages.default": "You are a helpful AI assistant specialized in analyzing "
    "panoramic images.",
}
DOCUMENTED_PRESETS = {
    "mlp": {"depth": 3, "hidden_dim": 1536, "use_ln": True},
    "bimamba": {
        "depth": 4,
        "hidden_dim": 1024,
        "d_state": 64,
        "d_conv": 4,
        "expand": 1.75,
        "cross_view": False,
        "dropout": 0.05,
        "norm_first": True,
        "directions": "mean",  # no setting there; its blocks compute 0.5 * (forward + backward)
    },
    "qformer": {
        "num_query_tokens": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "dropout": 0.1,
    },
}
NOT_IN_THE_ORIGINAL = {
    "models.vision_config",
    "models.language_config",
    "models.tokenizer_name",
    "models.layout",
    "image_processing.vision_processor",
}
# What it had no choice of; with these values it is done as it did.
AS_IN_THE_ORIGINAL = {
    "models.overlap_loss": "vicreg",
    "models.overlap_pairs": "columns",
    "models.overlap_gather": None,  # not for its only loss
    "models.pe_type": "columns",
    "image_processing.rendering": "exact",
    "models.vision_rope": "sequence",
    "models.language_quantization": "none",
    "lora.use_dora": False,
}
# Settings of what these values leave out.
WITHOUT_BEARING = {
    "image_processing.pitch_rows",
    "image_processing.poles",
    "image_processing.icosahedral_views",
    "models.overlap_temperature",
    "models.overlap_dense_weight",
    "models.overlap_redundancy_weight",
    "models.pe_highest_frequency",
}
# Its schema said 224 x 224, but an unset size came from the tower, as it does today.
FROM_THE_TOWER = {"image_processing.image_size"}


def leaves(settings: StrictModel, at: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, StrictModel):
            yield from leaves(value, f"{at}{name}.")
        else:
            yield at + name, value


def test_every_field_has_the_documented_default_or_is_listed() -> None:
    today = {k: v for k, v in leaves(Recipe()) if not k.startswith("models.resampler_config.")}
    listed = {*NOT_IN_THE_ORIGINAL, *FROM_THE_TOWER, *AS_IN_THE_ORIGINAL, *WITHOUT_BEARING}
    assert set(today) == {*DOCUMENTED, *listed}
    assert {name: today[name] for name in AS_IN_THE_ORIGINAL} == AS_IN_THE_ORIGINAL
    for name, value in DOCUMENTED.items():
        assert ORIGINAL_DEFAULTS.get(name, today[name]) == value, name
    for name, value in ORIGINAL_DEFAULTS.items():
        assert today[name] != value, name
    assert ORIGINAL_DEFAULTS["models.layout"] == "original"
    for name in (NOT_IN_THE_ORIGINAL | FROM_THE_TOWER) - {"models.layout"}:
        assert today[name] is None, name


def test_the_presets_are_those_of_the_original() -> None:
    presets = {name: RESAMPLER_CONFIGS[name].model_dump() for name in DOCUMENTED_PRESETS}
    assert presets == DOCUMENTED_PRESETS


def test_the_listed_defaults_are_valid() -> None:
    nested: dict[str, Any] = {}
    for name, value in ORIGINAL_DEFAULTS.items():
        block, field = name.split(".")
        nested.setdefault(block, {})[field] = value
    assert dict(leaves(Recipe.model_validate(nested))).items() >= ORIGINAL_DEFAULTS.items()


def read(raw: dict[str, Any]) -> dict[str, Any]:
    before = copy.deepcopy(raw)
    mapping = original_run_mapping(raw).mapping
    assert raw == before
    return mapping


def test_only_what_the_file_fixes_is_returned() -> None:
    assert read({"models": {"vision_model_name": "v", "resampler_type": "bi_mamba"}}) == {
        "models": {"vision_name": "v", "resampler_type": "bimamba"},
        "image_processing": {"use_vision_processor": False},
    }
    assert read({}) == {"image_processing": {"use_vision_processor": False}}


@pytest.mark.parametrize(
    ("models", "fixed"),
    [
        # Without resampler_config, flat fields override the preset.
        (
            {"resampler_type": "bimamba", "resampler_hidden_dim": 64, "latent_dimension": 96},
            {"latent_dimension": 96, "resampler_config": {"hidden_dim": 64}},
        ),
        # With it they count nothing, and the outer latent_dimension neither.
        (
            {
                "resampler_type": "bimamba",
                "resampler_hidden_dim": 64,
                "latent_dimension": 96,
                "resampler_config": {"num_layers": 2},
            },
            {
                "latent_dimension": 768,
                "resampler_config": {"depth": 2, "dropout": 0.1, "norm_first": True},
            },
        ),
        (
            {
                "resampler_type": "bimamba",
                "latent_dimension": 96,
                "resampler_config": {"latent_dimension": 48, "norm_first": False, "dropout": 0.3},
            },
            {"latent_dimension": 48, "resampler_config": {"norm_first": False, "dropout": 0.3}},
        ),
        (
            {"resampler_type": "mlp", "resampler_config": {"depth": 2, "num_views": 8}},
            {"latent_dimension": 768, "resampler_config": {"depth": 2}},
        ),
        (
            {"resampler_type": "mlp", "latent_dimension": 96, "resampler_config": None},
            {"latent_dimension": 96, "resampler_config": None},
        ),
        # Every Q-Former has eight heads.
        (
            {"resampler_type": "qformer", "resampler_attention_heads": 4},
            {"resampler_config": {"num_attention_heads": 8}},
        ),
        (
            {
                "resampler_type": "qformer",
                "resampler_config": {"num_attention_heads": 12, "hidden_dim": 9},
            },
            {
                "latent_dimension": 768,
                "resampler_config": {"num_attention_heads": 8, "dropout": 0.1},
            },
        ),
    ],
)
def test_the_resampler(models: dict[str, Any], fixed: dict[str, Any]) -> None:
    found = read({"models": models})["models"]
    assert found == {"resampler_type": models["resampler_type"], **fixed}


def test_a_replaced_latent_dimension_is_noted() -> None:
    raw = {"models": {"latent_dimension": 96, "resampler_config": {"depth": 1}}}
    [note] = original_run_mapping(raw).notes
    assert note.startswith("models.latent_dimension: the run used 768:")


def test_only_the_models_block_reached_the_model() -> None:
    raw = {
        "models": {"overlap_ratio": 0.25},
        "image_processing": {
            "overlap_ratio": 0.75,
            "stitching_mode": "concat",
            "stitch_interp": "linear",
            "use_vision_processor": True,
        },
    }
    assert read(raw) == {
        "models": {"overlap_ratio": 0.25},
        "image_processing": {"overlap_ratio": 0.75, "use_vision_processor": True},
    }


def test_views_on_which_stages_differ_are_not_fixed() -> None:
    raw = {
        "image_processing": {"crop_strategy": "e2p", "fov_deg": 90, "use_vision_processor": True},
        "training": {
            "stage_configs": {
                "vision": {"image_processing": {"crop_strategy": "cubemap", "fov_deg": 90}},
                "finetune": {"image_processing": {"use_vision_processor": False}},
                "resampler": None,
            }
        },
    }
    translated = original_run_mapping(raw)
    assert translated.mapping == {"image_processing": {"fov_deg": 90}}
    assert translated.notes == [
        "image_processing.crop_strategy: left out; stage vision sets it otherwise",
        "image_processing.use_vision_processor: left out; stage finetune sets it otherwise",
    ]


def test_adapters_are_those_of_stage_finetune() -> None:
    raw = {
        "lora": {"use_lora": False, "rank": 16, "alpha": 8, "save_lora_only": True},
        "training": {
            "stage_configs": {
                "vision": {"model_config": {"lora": {"rank": 1}}},
                "instruction_tuning": {"model_config": {"lora": {"enabled": True, "rank": 4}}},
            }
        },
    }
    assert read(raw)["lora"] == {"use_lora": True, "rank": 4, "alpha": 8}


@pytest.mark.parametrize(
    ("training", "block", "message"),
    [
        (None, "b", "b"),
        ("a", "b", "a"),
        ("", "b", ""),
        ("a", None, "a"),
        (None, None, None),
    ],
)
def test_the_system_message(training: str | None, block: str | None, message: str | None) -> None:
    raw = {"training": {"system_msg": training}, "system_messages": {"default": block}}
    if block is None:
        del raw["system_messages"]
    assert read(raw).get("system_messages", {}).get("default") == message
    assert message != DEFAULT_SYSTEM_MESSAGE


@pytest.mark.parametrize(
    ("written", "temperature", "sampling"),
    [(0.6, 0.6, True), (1.7, 1.0, True), (0.1, 0.1, False), (0.05, 0.1, False), (0.11, 0.11, True)],
)
def test_sampling_follows_the_temperature(
    written: float, temperature: float, sampling: bool
) -> None:
    generation = read({"generation": {"temperature": written, "top_k": 5}})["generation"]
    assert generation == {"temperature": temperature, "do_sample": sampling, "top_k": 5}


def test_temperature_zero_does_not_sample() -> None:
    assert read({"generation": {"temperature": 0}})["generation"] == {"do_sample": False}


def test_what_the_original_did_not_read_is_left_out_with_a_note() -> None:
    translated = original_run_mapping(
        {
            "models": {"resampler_confg": 1, "resampler_config": {"depth": 2, "dpth": 3}},
            "image_processing": {"colour": 1},
            "lora": "yes",
            "paths": {"runs_dir": "x"},
        }
    )
    assert set(translated.mapping) == {"models", "image_processing"}
    assert set(translated.mapping["models"]) == {"resampler_config", "latent_dimension"}
    assert [note.split(":")[0] for note in translated.notes] == [
        "models.resampler_confg",
        "image_processing.colour",
        "models.resampler_config.dpth",
    ]
