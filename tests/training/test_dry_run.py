from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from panovlm.config.schema import Settings
from panovlm.errors import ConfigError
from panovlm.models.assemble import new_model
from panovlm.models.model import PanoramaVLM
from panovlm.training.dry_run import Plan, plan
from panovlm.training.freeze import counts, freeze, trainable_parts

TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
LANGUAGE = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}
ROWS = [("pano.jpg", "What is behind you?", "a red cube"), ("pano.jpg", "And left?", "nothing")]


def experiment(folder: Path, *, write_table: bool = True, **models: Any) -> Settings:
    table = folder / "train.csv"
    if write_table:
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([("url", "instruction", "response"), *ROWS])
    return Settings.model_validate(
        {
            "models": {
                "vision_config": TOWER,
                "language_config": LANGUAGE,
                "resampler_type": "bimamba",
                "resampler_config": {"hidden_dim": 16, "depth": 1, "d_state": 4},
                "latent_dimension": 24,
                **models,
            },
            "image_processing": {"crop_strategy": "anyres_e2p"},
            "lora": {"use_lora": True, "rank": 4, "target_modules": ["q_proj", "v_proj"]},
            "data": {"csv_train": str(table)},
            "training": {
                "stage_configs": {
                    "vision": {"trainable": {"vision_blocks": 1}},
                    "resampler": {},
                    "finetune": {},
                }
            },
        }
    )


def built(settings: Settings) -> PanoramaVLM:
    texts = [text for row in ROWS for text in row[1:]]
    texts.append(settings.system_messages.default)
    texts.append(settings.models.default_generation_prompt)
    return new_model(settings, texts)


def of_stage(found: Plan, name: str) -> dict[str, tuple[int, int]]:
    stage = next(stage for stage in found.stages if stage.name == name)
    return {part.name: (part.total, part.trainable) for part in stage.components}


def test_counts_are_those_of_the_model_that_training_builds(tmp_path: Path) -> None:
    settings = experiment(tmp_path)
    found = plan(settings)
    model = built(settings)
    assert model.tokenizer is not None
    assert found.vocabulary == len(model.tokenizer)
    for name in ("vision", "resampler", "finetune"):
        if name == "finetune":
            model.add_adapters(settings.lora)
        freeze(model, trainable_parts(name, settings.training.stage_configs[name]))
        real = {part.name: (part.total, part.trainable) for part in counts(model)}
        assert of_stage(found, name) == real


@pytest.mark.parametrize(
    "models",
    [
        {},
        {"resampler_config": {"hidden_dim": 16, "depth": 1, "cross_view": True}},
        {"resampler_type": "c_abstractor", "resampler_config": {"rows": 1, "columns": 2}},
        {"resampler_type": "perceiver", "resampler_config": {"num_latents": 5}},
    ],
)
def test_tokens_are_those_that_the_model_makes(tmp_path: Path, models: dict[str, Any]) -> None:
    settings = experiment(tmp_path, **models)
    found = plan(settings)
    model = built(settings)
    views = torch.zeros(1, found.views, 3, 32, 32)
    with torch.no_grad():
        before = model.vision_features(views).shape[1]
        after = model.resampled_features(views).shape[1]
        read = model.vision_tokens(views).shape[1]
    assert (found.tokens_per_view, found.vision_tokens) == ((before, after), read)


def test_tied_embeddings_count_once(tmp_path: Path) -> None:
    tied = plan(experiment(tmp_path))
    untied = plan(experiment(tmp_path, language_config={**LANGUAGE, "tie_word_embeddings": False}))
    once, twice = (of_stage(found, "vision")["language_model"][0] for found in (tied, untied))
    assert tied.vocabulary is not None
    assert twice - once == tied.vocabulary * LANGUAGE["hidden_size"]


def test_without_tables_the_embeddings_are_left_out_and_said_so(tmp_path: Path) -> None:
    known = plan(experiment(tmp_path))
    (tmp_path / "train.csv").unlink()
    unknown = plan(experiment(tmp_path, write_table=False))
    assert known.vocabulary is not None and unknown.vocabulary is None
    with_, without = (of_stage(p, "vision")["language_model"][0] for p in (known, unknown))
    assert with_ - without == known.vocabulary * LANGUAGE["hidden_size"]


@pytest.mark.parametrize(("precision", "frozen_bytes"), [("32-true", 4), ("bf16-true", 2)])
def test_memory(tmp_path: Path, precision: str, frozen_bytes: int) -> None:
    settings = experiment(tmp_path)
    environment = settings.environment.model_copy(update={"precision": precision})
    settings = settings.model_copy(update={"environment": environment.model_dump()})
    for stage in plan(settings).stages:
        total = sum(part.total for part in stage.components)
        trained = sum(part.trainable for part in stage.components)
        # A trained weight also has a gradient and two moments.
        assert stage.memory == frozen_bytes * (total + 3 * trained)


def test_memory_of_weights_stored_in_half_precision(tmp_path: Path) -> None:
    full = plan(experiment(tmp_path))
    half = plan(experiment(tmp_path, language_config={**LANGUAGE, "dtype": "bfloat16"}))
    weights = of_stage(full, "vision")["language_model"][0]
    assert full.stages[0].memory - half.stages[0].memory == 2 * weights
    # Adapters are float32 whatever the model is.
    assert full.stages[2].memory - half.stages[2].memory == 2 * weights


def test_only_the_chosen_stages(tmp_path: Path) -> None:
    found = plan(experiment(tmp_path), ["resampler"])
    assert [stage.name for stage in found.stages] == ["resampler"]


def test_a_folder_with_only_a_configuration_is_enough(tmp_path: Path) -> None:
    for name, config in (("tower", TOWER), ("language", {**LANGUAGE, "vocab_size": 50})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    settings = experiment(
        tmp_path,
        vision_config=None,
        language_config=None,
        vision_name=str(tmp_path / "tower"),
        language_model_name=str(tmp_path / "language"),
    )
    found = plan(settings)
    assert found.vocabulary == 50
    parts = [of_stage(p, "vision") for p in (found, plan(experiment(tmp_path)))]
    assert parts[0]["vision_backbone"] == parts[1]["vision_backbone"]


def test_both_absent_backbones_are_named_at_once(tmp_path: Path) -> None:
    settings = experiment(
        tmp_path,
        vision_config=None,
        language_config=None,
        vision_name="nobody/no-tower",
        language_model_name="nobody/no-language-model",
    )
    with pytest.raises(ConfigError) as caught:
        plan(settings)
    message = str(caught.value)
    assert "models.vision_name (nobody/no-tower)" in message
    assert "models.language_model_name (nobody/no-language-model)" in message


def test_one_absent_backbone_is_named_alone(tmp_path: Path) -> None:
    settings = experiment(
        tmp_path, language_config=None, language_model_name="nobody/no-language-model"
    )
    with pytest.raises(ConfigError, match="nobody/no-language-model") as caught:
        plan(settings)
    assert "vision_name" not in str(caught.value)


def test_a_tower_that_reads_patches_of_any_size(tmp_path: Path) -> None:
    sizes = {name: value for name, value in TOWER.items() if name != "image_size"}
    naflex = {**sizes, "model_type": "siglip2_vision_model", "num_patches": 16}
    settings = experiment(tmp_path, vision_config=naflex)
    image = settings.image_processing.model_copy(update={"image_size": (32, 32)})
    found = plan(settings.model_copy(update={"image_processing": image.model_dump()}))
    assert found.tokens_per_view == (16, 16)
