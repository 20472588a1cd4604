"""Translation of old names: what moves, what is left out, and that today's names stay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.config.fields import paths_of
from panovlm.config.legacy import OLD_MODEL_KEYS, translate
from panovlm.config.legacy.names import DROPPED, FLAT_RESAMPLER, IDLE_RESAMPLER_KEYS, RENAMED
from panovlm.config.schema import (
    RESAMPLER_CONFIGS,
    STAGE_ALIASES,
    STAGES,
    ModelSettings,
    Recipe,
    Settings,
)
from panovlm.config.yaml_text import parse_yaml
from panovlm.errors import ConfigError


def nested(name: str, value: object) -> dict[str, Any]:
    for key in reversed(name.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def models(**settings: object) -> dict[str, Any]:
    return translate({"models": settings}).mapping.get("models", {})


@st.composite
def todays_mappings(draw: st.DrawFn) -> dict[str, Any]:
    """Any part of a valid configuration in today's names."""
    kind = draw(st.sampled_from(sorted(RESAMPLER_CONFIGS)))
    full = Settings.model_validate(
        {
            "models": {
                "resampler_type": kind,
                "overlap_ratio": draw(st.floats(0, 0.9)),
                "latent_dimension": draw(st.integers(1, 4096)),
                "stitching_mode": draw(st.sampled_from(["concat", "resample"])),
                "pe_spatial_encoding_type": draw(st.sampled_from(["sinusoidal", "none"])),
                "vision_config": draw(st.none() | st.just({"image_size": 8, "lora_r": None})),
            },
            "image_processing": {
                "crop_strategy": draw(st.sampled_from(["e2p", "resize", "anyres_e2p"])),
                "image_size": draw(st.none() | st.integers(1, 999)),
            },
            "lora": {"rank": draw(st.integers(1, 99)), "use_lora": draw(st.booleans())},
            "generation": {"temperature": draw(st.floats(0.01, 2))},
            "training": {
                "stage_configs": {
                    name: {
                        "lr": draw(st.floats(1e-9, 1)),
                        "trainable": {"vision_blocks": draw(st.integers(-1, 9))},
                        "lora": draw(st.none() | st.just({"rank": 3})),
                    }
                    for name in STAGES
                },
            },
            "data": {"csv_train": draw(st.lists(st.text(max_size=5), max_size=2))},
        }
    ).model_dump(mode="json")

    def part(tree: dict[str, Any], depth: int) -> dict[str, Any]:
        return {
            key: part(value, depth + 1) if isinstance(value, dict) and depth < 2 else value
            for key, value in tree.items()
            if key == "resampler_type" or draw(st.integers(0, 3))
        }

    return part(full, 0)


@settings(max_examples=60, deadline=None)
@given(todays_mappings())
def test_todays_names_stay_as_they_are(mapping: dict[str, Any]) -> None:
    before = copy.deepcopy(mapping)
    kind = (mapping.get("models") or {}).get("resampler_type", "mlp")
    translated = translate(mapping, resampler_type=kind)
    assert translated.mapping == before
    assert translated.notes == []
    assert mapping == before


def test_no_name_of_today_is_translated() -> None:
    today = {
        ".".join(map(str, path)) for kind in RESAMPLER_CONFIGS for path in paths_of(Settings, kind)
    }
    assert not today & {*RENAMED, *DROPPED}
    assert not OLD_MODEL_KEYS & set(ModelSettings.model_fields)
    for kind, idle in IDLE_RESAMPLER_KEYS.items():
        assert not set(idle) & set(type(RESAMPLER_CONFIGS[kind]).model_fields)


def test_every_new_name_exists() -> None:
    today = {".".join(map(str, path)) for path in paths_of(Recipe, "bimamba")}
    assert set(RENAMED.values()) <= today
    assert set(STAGE_ALIASES.values()) <= set(STAGES)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_renamed(old: str, new: str) -> None:
    assert translate(nested(old, 7)).mapping.items() >= nested(new, 7).items()
    assert translate(nested(old, 7)).notes == []
    unset = translate(nested(old, None))
    assert unset.mapping == {old.split(".")[0]: {}}
    assert unset.notes == []


@pytest.mark.parametrize("old", DROPPED)
def test_left_out_with_a_note(old: str) -> None:
    translated = translate(nested(old, 7))
    assert translated.mapping == {old.split(".")[0]: {}}
    assert [note.partition("; ")[0] for note in translated.notes] == [f"{old}: left out"]
    assert translate(nested(old, None)).notes == []


def test_todays_name_goes_before_the_old_one() -> None:
    translated = translate({"models": {"lm_name": "old", "language_model_name": "new"}})
    assert translated.mapping == {"models": {"language_model_name": "new"}}
    assert translated.notes == [
        "models.lm_name: ignored, because models.language_model_name says otherwise"
    ]
    same = translate({"models": {"lora_r": 8}, "lora": {"rank": 8}})
    assert same.mapping == {"models": {}, "lora": {"rank": 8}}
    assert same.notes == []


@pytest.mark.parametrize("kind", list(RESAMPLER_CONFIGS))
@pytest.mark.parametrize(("flat", "field"), FLAT_RESAMPLER.items())
def test_flat_resampler_fields(kind: str, flat: str, field: str) -> None:
    translated = translate({"models": {"resampler_type": kind, flat: 3}})
    config = translated.mapping["models"].get("resampler_config", {})
    if field in type(RESAMPLER_CONFIGS[kind]).model_fields:
        assert config == {field: 3}
        assert translated.notes == []
    else:
        assert config == {}
        (note,) = translated.notes
        assert note.startswith(f"models.{flat}: left out; {kind} does not use it")
        assert note.endswith("in a new run cross_view does") == (
            (kind, field) == ("bimamba", "enable_cross_view")
        )


def test_an_explicit_flat_width_beats_the_preset() -> None:
    for kind in ("mlp", "bimamba"):
        typed = ModelSettings.model_validate(models(resampler_type=kind, resampler_hidden_dim=640))
        preset = RESAMPLER_CONFIGS[kind].model_dump()
        assert typed.resampler_config.model_dump() == {**preset, "hidden_dim": 640}


def test_resampler_config_beats_flat_fields() -> None:
    assert models(
        resampler_type="bimamba",
        resampler_hidden_dim=1,
        resampler_depth=2,
        resampler_config={"hidden_dim": 3},
    ) == {"resampler_type": "bimamba", "resampler_config": {"hidden_dim": 3, "depth": 2}}


@pytest.mark.parametrize(
    ("kind", "config", "today"),
    [
        ("bimamba", {"num_layers": 3}, {"depth": 3}),
        ("bi_mamba", {"num_layers": 3}, {"depth": 3}),
        ("bimamba", {"num_layers": 3, "depth": 2}, {"depth": 2}),
        ("qformer", {"num_layers": 3}, {"num_hidden_layers": 3}),
        ("mlp", {"hidden_dim": None, "depth": None}, {"hidden_dim": None}),
        ("bimamba", {"hidden_dim": None, "depth": 2}, {"depth": 2}),
        (
            "mlp",
            {"depth": 2, "use_ln": False, "dropout": 0.1, "num_views": 8, "hidden_dim": 5},
            {"depth": 2, "use_ln": False, "hidden_dim": 5},
        ),
        (
            "bimamba",
            {"use_ln": True, "num_views": 8, "enable_cross_view": True, "expand": 2.0},
            {"expand": 2.0},
        ),
        (
            "qformer",
            {"depth": 2, "use_ln": True, "num_views": 8, "hidden_dim": 3, "num_query_tokens": 4},
            {"num_query_tokens": 4},
        ),
    ],
)
def test_resampler_config(kind: str, config: dict[str, Any], today: dict[str, Any]) -> None:
    result = models(resampler_type=kind, resampler_config=config)["resampler_config"]
    assert result == today


def test_misspelt_resampler_settings_are_left_for_the_schema_to_refuse() -> None:
    config = {"num_layers": 3, "dpeth": 2, "d_state": 4}
    assert models(resampler_type="mlp", resampler_config=config)["resampler_config"] == config


def test_the_nested_latent_dimension_replaces_the_outer_one() -> None:
    translated = translate(
        {"models": {"latent_dimension": 512, "resampler_config": {"latent_dimension": 1024}}}
    )
    assert translated.mapping["models"] == {"latent_dimension": 1024, "resampler_config": {}}
    assert translated.notes == [
        "models.latent_dimension: ignored, because models.resampler_config.latent_dimension says "
        "otherwise"
    ]


def test_the_original_s_names_for_a_perceiver() -> None:
    """It accepted them and never built one."""
    flat = {"resampler_heads": 2, "resampler_num_latents": 5, "resampler_use_ln": True}
    translated = translate({"models": {"resampler_type": "Perceiver", **flat}})
    assert translated.mapping["models"] == {
        "resampler_type": "perceiver",
        "resampler_config": {"num_attention_heads": 2, "num_latents": 5},
    }
    assert translated.notes == ["models.resampler_use_ln: left out; perceiver does not use it"]
    others = translate({"models": {"resampler_type": "mlp", **flat}})
    assert others.mapping["models"]["resampler_config"] == {"use_ln": True}
    assert len(others.notes) == 2


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("models.pe_spatial_encoding_type", "learned", "none"),
        ("models.pe_spatial_encoding_type", None, "none"),
        ("image_processing.crop_strategy", "none", "resize"),
    ],
)
def test_values_with_another_name_today(name: str, old: object, new: str) -> None:
    translated = translate(nested(name, old))
    assert translated.mapping == nested(name, new)
    assert len(translated.notes) == 1


def test_temperature_zero_means_no_sampling() -> None:
    assert translate(nested("generation.temperature", 0.0)).mapping == {
        "generation": {"do_sample": False}
    }
    said_otherwise = nested("generation.temperature", False)
    assert translate(said_otherwise).mapping == said_otherwise  # and refused as no number


@pytest.mark.parametrize(("alias", "stage"), STAGE_ALIASES.items())
def test_stages(alias: str, stage: str) -> None:
    translated = translate(
        {"training": {"stages": [alias], "stage_configs": {alias: {"epochs": 2}}}}
    )
    assert translated.mapping == {
        "training": {"stages": [stage], "stage_configs": {stage: {"epochs": 2}}}
    }
    assert translated.notes == []


def test_one_stage_under_two_names_is_refused() -> None:
    configs = {"vision": {"epochs": 1}, "vision_pretrain": {"epochs": 1}}
    with pytest.raises(ConfigError, match=r"vision_pretrain: .* older name of stage vision"):
        translate({"training": {"stage_configs": configs}})


def test_what_a_stage_holds() -> None:
    old = {
        "epochs": 1,
        "lr": "5e-4",
        "vision_trainable_blocks": -1,
        "vicreg_loss_weight": 0.0,
        "vicreg_mode": "batchwise",
        "image_processing": {"crop_strategy": "cubemap"},
        "data": {"csv_train": "a.csv"},
        "model_config": {"lora": {"enabled": True, "rank": 2, "dropout": None}, "other": 1},
    }
    translated = translate({"training": {"stage_configs": {"finetune": old}}})
    assert translated.mapping["training"]["stage_configs"]["finetune"] == {
        "epochs": 1,
        "lr": 0.0005,
        "trainable": {"vision_blocks": -1},
        "data": {"csv_train": "a.csv"},
        "lora": {"use_lora": True, "rank": 2},
    }
    left_out = [note.split(":")[0].rpartition(".")[2] for note in translated.notes]
    assert left_out == ["model_config", "vicreg_loss_weight", "vicreg_mode", "image_processing"]


def test_a_rate_that_is_no_number_is_left_for_the_schema_to_refuse() -> None:
    raw = nested("training.stage_configs.vision.lr", "fast")
    assert translate(raw).mapping == raw


junk = st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["lora", "rank", "depth", "enabled"]), inner, max_size=2)
    ),
    max_leaves=4,
)
places = st.sampled_from(
    [
        "models",
        "models.resampler_type",
        "models.resampler_config",
        "models.lora_r",
        "image_processing",
        "lora",
        "generation",
        "training",
        "training.stages",
        "training.stage_configs",
        "training.stage_configs.vision",
        "training.stage_configs.vision.model_config",
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(places, junk), max_size=3))
def test_blocks_of_the_wrong_kind_are_left_for_the_schema_to_refuse(
    given_values: list[tuple[str, Any]],
) -> None:
    raw: dict[str, Any] = {}
    for name, value in given_values:
        block = raw
        *path, last = name.split(".")
        for key in path:
            block[key] = block[key] if isinstance(block.get(key), dict) else {}
            block = block[key]
        block[last] = value
    before = copy.deepcopy(raw)
    translate(raw)
    assert raw == before


def test_notes_and_lines_point_into_the_file() -> None:
    document = "models:\n  resampler_depth: 2\n  stitch_stride_offset: 1\n  lora_r: 3\n"
    mapping, lines = parse_yaml(document, "a.yaml")
    translated = translate(mapping, lines=lines)
    assert translated.notes == [
        "a.yaml:3: models.stitch_stride_offset: left out; it had no effect in the original system"
    ]
    where = translated.lines.describe
    assert where(("models", "resampler_config", "depth")) == "a.yaml:2: models.resampler_depth"
    assert where(("lora", "rank")) == "a.yaml:4: models.lora_r"


@pytest.mark.parametrize("folder", [None, ""])
def test_no_folder_of_results_means_the_usual_one(folder: str | None) -> None:
    assert translate({"paths": {"eval_dir": folder, "runs_dir": "r"}}).mapping["paths"] == {
        "runs_dir": "r"
    }
