"""From a file and the command line to settings."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.config.load import apply_overrides, dump_yaml, load_mapping, load_settings
from panovlm.config.schema import RESAMPLER_CONFIGS, ModelSettings, Settings
from panovlm.config.validation import validate
from panovlm.errors import ConfigError
from panovlm.models.resamplers.bimamba.recipe import BiMambaSettings
from panovlm.models.resamplers.mlp.recipe import MLPSettings
from panovlm.models.resamplers.qformer.recipe import QFormerSettings

TODAY = """\
models:
  resampler_type: bimamba
  resampler_config: {depth: 2, d_state: 16}
  latent_dimension: 48
lora: {use_lora: true, rank: 4}
training:
  stages: [vision]
  stage_configs:
    vision: {lr: 5e-4}
"""

ORIGINAL = """\
experiment: {name: auto}
models:
  vision_model_name: google/siglip-base-patch16-224
  lm_name: Qwen/Qwen3-0.6B
  resampler_type: bidirectional_mamba
  resampler_hidden_dim: 512
  resampler_heads: null
  image_size: [256, 256]
  use_projection_positional_encoding: true
image_processing: {crop_strategy: e2p, stitching_mode: concat}
training:
  stages: [vision_pretraining, finetune]
  cache_cleanup_interval: 1000
  stage_configs:
    vision_pretraining: {epochs: 1, lr: "5e-4", batch_size: 2, vision_trainable_blocks: 2}
    instruction_tuning:
      epochs: 1
      lr: 2e-6
      batch_size: 1
      model_config: {lora: {enabled: true, rank: 8}}
lora: {alpha: 16, save_lora_only: false}
"""


@pytest.fixture
def today(tmp_path: Path) -> Path:
    path = tmp_path / "today.yaml"
    path.write_text(TODAY)
    return path


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "original.yml"
    path.write_text(ORIGINAL)
    return path


def refusal(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load_settings(path, overrides)
    return str(refused.value).splitlines()


def test_a_file_becomes_settings(today: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load_settings(today)
    assert loaded.models.resampler_config == BiMambaSettings(depth=2, d_state=16)
    assert loaded.models.latent_dimension == 48
    assert loaded.training.stage_configs["vision"].lr == 5e-4
    assert not caplog.records


def test_an_original_file_becomes_settings(original: Path) -> None:
    loaded = load_settings(original)
    assert loaded.models.vision_name == "google/siglip-base-patch16-224"
    assert loaded.models.language_model_name == "Qwen/Qwen3-0.6B"
    assert loaded.models.resampler_type == "bimamba"
    assert loaded.models.resampler_config == BiMambaSettings(hidden_dim=512)
    assert loaded.image_processing.image_size == (256, 256)
    assert loaded.training.stages == ("vision", "finetune")
    vision, finetune = (loaded.training.stage_configs[name] for name in ("vision", "finetune"))
    assert vision.lr == 5e-4
    assert vision.trainable is not None
    assert vision.trainable.vision_blocks == 2
    assert vision.trainable.vicreg_projector
    assert finetune.lora is not None
    assert (finetune.lora.use_lora, finetune.lora.rank, finetune.lora.alpha) == (True, 8, 16)
    assert not loaded.lora.use_lora


def test_what_is_left_out_is_logged(original: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "panovlm"):
        load_settings(original, ["lora.save_lora_only=true"])
    notes = [record.getMessage() for record in caplog.records]
    assert len(notes) == 4
    assert f"{original}:10: image_processing.stitching_mode: left out" in notes[0].split(";")
    assert notes[-1].startswith("command line: lora.save_lora_only: left out;")


def test_load_mapping_reads_what_is_written(original: Path) -> None:
    raw, lines = load_mapping(original)
    assert raw["models"]["resampler_type"] == "bidirectional_mamba"
    assert lines.describe(("models", "lm_name")) == f"{original}:4: models.lm_name"


def test_errors_name_file_line_and_the_key_as_it_was_written(original: Path) -> None:
    broken = ORIGINAL.replace("hidden_dim: 512", "hidden_dim: wide").replace("rank: 8", "rank: 0")
    original.write_text(broken.replace("lm_name", "lm_nam"))
    assert sorted(refusal(original, "data.csv_trian=x", "lora.rank=-1")) == [
        f"{original}:20: training.stage_configs.instruction_tuning.model_config.lora.rank: "
        "expected at least 1, got 0.",
        f"{original}:4: models.lm_nam: unknown key.",
        f"{original}:6: models.resampler_hidden_dim: expected a whole number, got 'wide'.",
        "command line: data.csv_trian: unknown key; did you mean csv_train?",
        "command line: lora.rank: expected at least 1, got -1.",
    ]


@pytest.mark.parametrize(
    ("overrides", "field", "value"),
    [
        (["models.latent_dimension=64"], "models.latent_dimension", 64),
        (["models.resampler_config.d_state=8"], "models.resampler_config.d_state", 8),
        (["models.resampler_config.d_state=8"], "models.resampler_config.depth", 2),
        (["models.resampler_depth=5"], "models.resampler_config.depth", 5),
        (["models.resampler_dropout=0.2"], "models.resampler_config.dropout", 0.2),
        (["models.resampler_config={depth: 7}"], "models.resampler_config.d_state", 16),
        (["lora.alpha=1e1"], "lora.alpha", 10.0),
        (["lora={rank: 2}"], "lora.use_lora", True),
        (["models.lora_r=9"], "lora.rank", 9),
        (["models.image_size=32"], "image_processing.image_size", (32, 32)),
        (["training.stages=[resampler]", "training.stage_configs.resampler={}"],
         "training.stages", ("resampler",)),
        (["training.stage_configs.vision_pretrain.epochs=3"],
         "training.stage_configs.vision.epochs", 3),
        (["training.stage_configs.vision_pretrain.epochs=3"],
         "training.stage_configs.vision.lr", 5e-4),
        (["data.csv_train=[a.csv, b.csv]"], "data.csv_train", ("a.csv", "b.csv")),
        (["models.default_generation_prompt='a=b: c'"], "models.default_generation_prompt",
         "a=b: c"),
        (["experiment.name=''"], "experiment.name", ""),
        (["models.latent_dimension=1", "models.latent_dimension=2"], "models.latent_dimension", 2),
        (["models.vision_config={hidden_size: 8}", "models.vision_config.num_layers=2"],
         "models.vision_config", {"hidden_size": 8, "num_layers": 2}),
    ],
)  # fmt: skip
def test_overrides(today: Path, overrides: list[str], field: str, value: object) -> None:
    here: Any = load_settings(today, overrides)
    for key in field.split("."):
        here = here[key] if isinstance(here, dict) else getattr(here, key)
    assert here == value


@pytest.mark.parametrize("text", ["models", "=3", "models..depth=3", ".x=1", "x.=1", ""])
def test_overrides_that_are_none(today: Path, text: str) -> None:
    assert refusal(today, text) == [
        f"command line: {text!r} is no override; write key=value, such as training.num_workers=4."
    ]


def test_an_override_that_is_no_yaml(today: Path) -> None:
    [line] = refusal(today, "data.csv_train=[a.csv")
    assert line.startswith("command line: data.csv_train:1: is not valid YAML: ")


def test_a_block_cannot_be_given_one_value(today: Path) -> None:
    assert refusal(today, "models=3") == ["command line: models: expected a block of keys, got 3."]


def test_another_architecture_starts_from_its_own_preset(today: Path) -> None:
    models = load_settings(today, ["models.resampler_type=mlp"]).models
    assert models.resampler_config == MLPSettings()
    assert models.latent_dimension == 48


def test_another_architecture_takes_only_overrides_of_it(today: Path) -> None:
    overrides = ["models.resampler_config.depth=1", "models.resampler_type=mlp"]
    assert load_settings(today, overrides).models.resampler_config == MLPSettings(depth=1)
    flat = ["models.resampler_type=qformer", "models.resampler_num_query_tokens=3"]
    assert load_settings(today, flat).models.resampler_config == QFormerSettings(num_query_tokens=3)
    assert refusal(today, "models.resampler_type=mlp", "models.resampler_config.d_state=3") == [
        "command line: models.resampler_config.d_state: unknown key; "
        "known here: hidden_dim, depth, use_ln."
    ]


@pytest.mark.parametrize("spelling", ["bimamba", "BI_MAMBA", "bidirectional_mamba"])
def test_the_same_architecture_by_another_name_keeps_its_settings(
    today: Path, spelling: str
) -> None:
    models = load_settings(today, [f"models.resampler_type={spelling}"]).models
    assert models.resampler_config == BiMambaSettings(depth=2, d_state=16)


def test_an_unknown_architecture_is_the_only_problem(today: Path) -> None:
    assert refusal(today, "models.resampler_type=bmamba", "models.resampler_depth=3") == [
        "command line: models.resampler_type: unknown resampler_type 'bmamba'; "
        f"known: {', '.join(sorted(RESAMPLER_CONFIGS))}; "
        "others come with the package that defines them. Did you mean 'bimamba'?"
    ]


def test_apply_overrides_changes_a_copy_and_validates_nothing() -> None:
    mapping = {"models": {"resampler_config": {"depth": 2}}, "lora": None}
    before = copy.deepcopy(mapping)
    merged = apply_overrides(mapping, ["models.resampler_config.depth=x", "lora.rank=1", "new=[1]"])
    assert merged == {
        "models": {"resampler_config": {"depth": "x"}},
        "lora": {"rank": 1},
        "new": [1],
    }
    assert mapping == before
    assert apply_overrides(mapping, []) == mapping


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,4}(\.[a-z]{1,4})?", fullmatch=True), st.integers()))
def test_overrides_of_an_empty_mapping_are_the_mapping(values: dict[str, int]) -> None:
    flat = {k: v for k, v in values.items() if not any(o.startswith(k + ".") for o in values)}
    merged = apply_overrides({}, [f"{key}={value}" for key, value in flat.items()])
    for key, value in flat.items():
        here: Any = merged
        for part in key.split("."):
            here = here[part]
        assert here == value


# The original lost the architecture in three steps: the nested file was read as if it were flat,
# so the type fell back to mlp with width 1536; the type was then switched without validation; and
# a BiMamba was built from the MLP's preset. Each step has a test.


def test_a_nested_file_read_as_flat_is_refused(today: Path) -> None:
    raw, _ = load_mapping(today)
    with pytest.raises(ConfigError, match="models: unknown key"):
        validate(ModelSettings, raw)


def test_a_flat_file_read_as_nested_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flat.yaml"
    path.write_text("resampler_type: bimamba\nlatent_dimension: 48\n")
    assert sorted(refusal(path)) == [
        f"{path}: training: is required.",
        f"{path}:1: resampler_type: unknown key here; it belongs in models.",
        f"{path}:2: latent_dimension: unknown key here; it belongs in models.",
    ]


@pytest.mark.parametrize("given_dim", [None, 1024, 512])
def test_a_bimamba_has_the_bimamba_preset_and_the_explicit_width(
    tmp_path: Path, given_dim: int | None
) -> None:
    path = tmp_path / "run.yaml"
    flat = "" if given_dim is None else f"  resampler_hidden_dim: {given_dim}\n"
    path.write_text(f"models:\n  resampler_type: bimamba\n{flat}" + TODAY[TODAY.index("lora") :])
    config = load_settings(path).models.resampler_config
    assert isinstance(config, BiMambaSettings)
    assert config.hidden_dim == (given_dim or 1024)
    assert config.expand == 1.75


def test_loading_imports_no_heavy_library(today: Path) -> None:
    code = (
        "import sys; from panovlm.config.load import load_settings; "
        f"load_settings({str(today)!r}, ['lora.rank=2']); "
        "print(*{'torch', 'transformers', 'numpy', 'lightning', 'cv2'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["models.resampler_type=mlp"],
        ["models.resampler_type=bimamba", "experiment.name='1e-3'"],
        ["models.resampler_type=qformer", "models.resampler_num_query_tokens=3"],
        ["models.resampler_depth=3", "training.stage_configs.instruction_tuning.lr=1e-3"],
    ],
)
def test_the_merged_file_gives_the_same_settings(
    original: Path, tmp_path: Path, overrides: list[str]
) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(dump_yaml(apply_overrides(load_mapping(original)[0], overrides)))
    assert load_settings(path) == load_settings(original, overrides)


def test_settings_written_as_yaml_are_read_back(today: Path, tmp_path: Path) -> None:
    loaded = load_settings(today)
    path = tmp_path / "again.yaml"
    path.write_text(dump_yaml(loaded.model_dump(mode="json")))
    assert load_settings(path) == loaded
    assert isinstance(loaded, Settings)
