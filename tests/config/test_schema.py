"""The settings themselves: presets, strictness, and what a copy may change."""

from __future__ import annotations

import json

import pytest

from panovlm.config.problems import ValidationError
from panovlm.config.schema import (
    RESAMPLER_CONFIGS,
    LoRASettings,
    ModelSettings,
    Recipe,
    Settings,
    Trainable,
    Training,
    usually_trainable,
)
from panovlm.models.resamplers import recipes
from panovlm.models.resamplers.bimamba.recipe import BiMambaSettings
from panovlm.models.resamplers.mlp.recipe import MLPSettings


def experiment(**blocks: object) -> dict[str, object]:
    return {"training": {"stages": ["finetune"], "stage_configs": {"finetune": {}}}, **blocks}


@pytest.mark.parametrize(
    ("backend", "accelerator", "fits"),
    [
        ("triton", "auto", True),
        ("triton", "gpu", True),
        ("triton", "cpu", False),
        ("mamba_ssm", "mps", False),
        ("numba", "cpu", True),
        ("numba", "gpu", False),
        ("torch", "mps", True),
    ],
)
def test_the_scan_works_on_the_accelerator(backend: str, accelerator: str, fits: bool) -> None:
    blocks = experiment(environment={"scan_backend": backend, "accelerator": accelerator})
    if fits:
        assert Settings.model_validate(blocks).environment.scan_backend == backend
    else:
        with pytest.raises(ValidationError, match="set scan_backend to auto or torch"):
            Settings.model_validate(blocks)


def test_the_preset_is_that_of_the_architecture() -> None:
    for name, found in recipes().items():
        models = ModelSettings(resampler_type=name)
        assert models.resampler_config == RESAMPLER_CONFIGS[name] == found.settings()
    assert ModelSettings().resampler_config == MLPSettings(hidden_dim=1536, depth=3, use_ln=True)


@pytest.mark.parametrize("spelling", ["bimamba", "BiMamba", "bi_mamba", "bidirectional_mamba"])
def test_aliases_become_the_canonical_name(spelling: str) -> None:
    models = ModelSettings.model_validate({"resampler_type": spelling})
    assert models.resampler_type == "bimamba"
    assert models.resampler_config == BiMambaSettings(hidden_dim=1024, depth=4, expand=1.75)


def test_a_partial_resampler_config_is_filled_from_the_preset() -> None:
    models = ModelSettings.model_validate(
        {"resampler_type": "bimamba", "resampler_config": {"depth": 2}}
    )
    assert models.resampler_config == BiMambaSettings(depth=2)


@pytest.mark.parametrize("given", [{"use_ln": True}, MLPSettings(), {"hiden_dim": 3}])
def test_a_bimamba_cannot_be_built_from_other_settings(given: object) -> None:
    with pytest.raises(ValidationError) as refused:
        ModelSettings.model_validate({"resampler_type": "bimamba", "resampler_config": given})
    assert refused.value.problems[0].path[0] == "resampler_config"


def test_settings_of_another_architecture_are_named() -> None:
    with pytest.raises(ValidationError, match=r"holds MLPSettings, .* needs BiMambaSettings"):
        ModelSettings(resampler_type="bimamba", resampler_config=MLPSettings())


@pytest.mark.parametrize("old", ["mlp", "bimamba", "qformer"])
@pytest.mark.parametrize("new", ["mlp", "bimamba", "qformer"])
def test_switching_the_type_in_a_copy_never_keeps_the_other_sizes(old: str, new: str) -> None:
    models = ModelSettings(resampler_type=old)
    if old == new:
        assert models.model_copy(update={"resampler_type": new}) == models
        return
    with pytest.raises(ValidationError):
        models.model_copy(update={"resampler_type": new})
    switched = models.model_copy(update={"resampler_type": new, "resampler_config": None})
    assert switched.resampler_config == RESAMPLER_CONFIGS[new]


def test_an_unknown_type_is_one_problem_at_its_own_key() -> None:
    with pytest.raises(ValidationError) as refused:
        ModelSettings.model_validate(
            {"resampler_type": "bmamba", "resampler_config": {"anything": 1}}
        )
    [problem] = refused.value.problems
    assert problem.path == ("resampler_type",)
    assert "Did you mean 'bimamba'?" in problem.what


def test_settings_are_frozen_and_strict() -> None:
    models = ModelSettings()
    with pytest.raises(AttributeError, match="frozen"):
        models.latent_dimension = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError):
        ModelSettings.model_validate({"resampler_confg": {}})


@pytest.mark.parametrize("name", list(RESAMPLER_CONFIGS))
def test_a_recipe_survives_json(name: str) -> None:
    recipe = Recipe.model_validate(
        {
            "models": {"resampler_type": name, "vision_config": {"hidden_size": 8}},
            "image_processing": {"image_size": 64, "image_mean": [0, 0.5, 1]},
            "lora": {"use_lora": True, "target_modules": ["q_proj"]},
        }
    )
    again = Recipe.model_validate(json.loads(json.dumps(recipe.model_dump(mode="json"))))
    assert again == recipe
    assert again.image_processing.image_size == (64, 64)
    assert type(again.models.resampler_config) is recipes()[name].settings


def test_the_recipe_of_an_experiment_is_its_model_part() -> None:
    settings = Settings.model_validate(experiment(models={"overlap_ratio": 0.25}))
    recipe = settings.recipe()
    assert type(recipe) is Recipe
    assert recipe.models is settings.models
    assert set(recipe.model_dump()) == set(Recipe.model_fields)


@pytest.mark.parametrize(
    "length", [0, -3, "auto:other", 1.5, None], ids=["zero", "negative", "word", "part", "null"]
)
def test_text_lengths_are_positive_or_automatic(length: object) -> None:
    with pytest.raises(ValidationError):
        ModelSettings.model_validate({"max_text_length": length})


@pytest.mark.parametrize("stage", ["vision", "resampler", "finetune"])
def test_a_partial_trainable_block_keeps_what_the_stage_usually_trains(stage: str) -> None:
    training = Training.model_validate(
        {"stages": [stage], "stage_configs": {stage: {"trainable": {"vision_blocks": 2}}}}
    )
    usual = usually_trainable(stage)
    assert training.stage_configs[stage].trainable == usual.model_copy(update={"vision_blocks": 2})
    assert usual.resampler
    assert usual.vicreg_projector is (stage == "vision")
    assert usual.projector is (stage != "vision")


def test_a_stage_without_trainable_block_has_none() -> None:
    training = Training.model_validate({"stages": ["vision"], "stage_configs": {"vision": {}}})
    assert training.stage_configs["vision"].trainable is None
    full = Trainable(resampler=False, language_model=True)
    again = Training.model_validate(
        {"stages": ["vision"], "stage_configs": {"vision": {"trainable": full}}}
    )
    assert again.stage_configs["vision"].trainable == full


def test_a_partial_stage_lora_is_filled_from_the_shared_block() -> None:
    settings = Settings.model_validate(
        {
            "lora": {"use_lora": True, "rank": 8, "alpha": 4},
            "training": {
                "stages": ["finetune"],
                "stage_configs": {"finetune": {"lora": {"rank": 2}}, "vision": {}},
            },
        }
    )
    stages = settings.training.stage_configs
    assert stages["finetune"].lora == LoRASettings(use_lora=True, rank=2, alpha=4)
    assert stages["vision"].lora is None
    assert Settings.model_validate(settings.model_dump()) == settings


def test_a_listed_stage_must_be_configured() -> None:
    with pytest.raises(ValidationError, match="stage_configs has only finetune"):
        Settings.model_validate({"training": {"stage_configs": {"finetune": {}}}})
    with pytest.raises(ValidationError, match="stage_configs is empty"):
        Settings.model_validate({"training": {"stages": [], "stage_configs": {}}})


@pytest.mark.parametrize("written", ["a.csv", ["a.csv"], ("a.csv",)])
def test_one_table_may_be_written_without_a_list(written: object) -> None:
    settings = Settings.model_validate(experiment(data={"csv_train": written}))
    assert settings.data.csv_train == ("a.csv",)


def test_recipes_of_the_original_fuse_as_it_did_where_they_say_nothing() -> None:
    """Documents about its checkpoints that were written before there were these settings."""
    before = ModelSettings.model_validate({"layout": "original"})
    assert (before.fusion_text_limit, before.vision_token_fallback_ends) == (512, "row")
    stated = {"layout": "original", "fusion_text_limit": None, "vision_token_fallback_ends": "text"}
    said = ModelSettings.model_validate(stated)
    assert (said.fusion_text_limit, said.vision_token_fallback_ends) == (None, "text")
    today = ModelSettings()
    assert (today.fusion_text_limit, today.vision_token_fallback_ends) == (None, "text")
