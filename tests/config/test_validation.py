"""One readable line per problem."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panovlm.config.base import Field, StrictModel
from panovlm.config.fields import paths_of
from panovlm.config.lines import Lines
from panovlm.config.schema import RESAMPLER_CONFIGS, ModelSettings, Settings
from panovlm.config.validation import validate
from panovlm.config.yaml_text import parse_yaml
from panovlm.errors import ConfigError

TRAINING = {"stages": ["vision"], "stage_configs": {"vision": {}}}


def problems(mapping: dict[str, Any], lines: Lines | None = None) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        validate(Settings, {"training": TRAINING, **mapping}, lines)
    return str(refused.value).splitlines()


def stage(**settings: object) -> dict[str, Any]:
    return {"training": {"stages": ["vision"], "stage_configs": {"vision": settings}}}


@pytest.mark.parametrize(
    ("mapping", "line"),
    [
        (
            {"models": {"resampler_confg": {}}},
            "models.resampler_confg: unknown key; did you mean resampler_config?",
        ),
        (
            {"modls": {}},
            "modls: unknown key; did you mean models?",
        ),
        (
            {"models": {"fov_deg": 90}},
            "models.fov_deg: unknown key here; it belongs in image_processing.",
        ),
        (
            {"vision_name": "x"},
            "vision_name: unknown key here; it belongs in models.",
        ),
        (
            {"image_processing": {"training": {}}},
            "image_processing.training: unknown key here; it belongs at the top level.",
        ),
        (
            {"models": {"resampler_config": {"epochs": 3}}},
            "models.resampler_config.epochs: unknown key here; "
            "it belongs in training.stage_configs.<stage>.",
        ),
        (
            {"models": {"resampler_config": {"d_state": 3}}},
            "models.resampler_config.d_state: unknown key; known here: hidden_dim, depth, use_ln.",
        ),
        (
            {"models": {"resampler_type": "qformer", "resampler_config": {"num_query_tokns": 3}}},
            "models.resampler_config.num_query_tokns: unknown key; did you mean num_query_tokens?",
        ),
        ({"models": {"zzz": 3}}, "models.zzz: unknown key."),
        (
            stage(traineble={}),
            "training.stage_configs.vision.traineble: unknown key; did you mean trainable?",
        ),
        (
            stage(trainable={"tower": 3}),
            "training.stage_configs.vision.trainable.tower: unknown key; known here: "
            "vision_blocks, resampler, vicreg_projector, projector, language_model.",
        ),
        (
            stage(lora={"rnk": 3}),
            "training.stage_configs.vision.lora.rnk: unknown key; did you mean rank?",
        ),
        (
            {"models": {"latent_dimension": "wide"}},
            "models.latent_dimension: expected a whole number, got 'wide'.",
        ),
        (
            {"models": {"latent_dimension": 1.5}},
            "models.latent_dimension: expected a whole number, got 1.5.",
        ),
        (
            {"models": {"latent_dimension": True}},
            "models.latent_dimension: expected a whole number, got true.",
        ),
        (
            {"models": {"resampler_config": {"depth": True}}},
            "models.resampler_config.depth: expected a whole number, got true.",
        ),
        (
            {"models": {"latent_dimension": None}},
            "models.latent_dimension: expected a whole number, got nothing.",
        ),
        (
            {"models": {"latent_dimension": 0}},
            "models.latent_dimension: expected at least 1, got 0.",
        ),
        (
            {"models": {"max_text_length": "auto:datset"}},
            "models.max_text_length: expected a whole number or 'auto' or 'auto:dataset', "
            "got 'auto:datset'; did you mean auto:dataset?",
        ),
        (
            {"models": {"max_text_length": {"int": 3}}},
            "models.max_text_length: expected a whole number or 'auto' or 'auto:dataset', "
            "got a block of keys.",
        ),
        (
            stage(val_check_interval="often"),
            "training.stage_configs.vision.val_check_interval: expected a number, got 'often'.",
        ),
        (
            stage(val_check_interval=-1),
            "training.stage_configs.vision.val_check_interval: expected more than 0 or at least 1, "
            "got -1.",
        ),
        (
            stage(val_check_interval=1.5),
            "training.stage_configs.vision.val_check_interval: expected at most 1 or a whole "
            "number, got 1.5.",
        ),
        (
            {"environment": {"devices": 0}},
            "environment.devices: expected at least 1 or 'auto' or -1, got 0.",
        ),
        (
            {"image_processing": {"image_size": True}},
            "image_processing.image_size: expected a number of pixels or [height, width], "
            "got true.",
        ),
        (
            {"paths": {"runs_dir": "a\0b"}},
            "paths: runs_dir is 'a\\x00b'; no path holds a NUL character.",
        ),
        (
            {"environment": {"devices": 1.5}},
            "environment.devices: expected a whole number or 'auto' or -1, got 1.5.",
        ),
        (
            {"image_processing": {"crop_strategy": "cube_map"}},
            "image_processing.crop_strategy: expected 'e2p', 'sliding_window', 'cubemap', "
            "'anyres', 'anyres_max', 'anyres_e2p', 'resize', 'e2p_sphere', 'cubemap6', "
            "'icosahedral' or 'erp', got 'cube_map'; "
            "did you mean cubemap?",
        ),
        (
            {"image_processing": {"fov_deg": 180}},
            "image_processing.fov_deg: expected less than 180, got 180.",
        ),
        (
            {"image_processing": {"image_mean": [1, 2]}},
            "image_processing.image_mean[2]: is missing.",
        ),
        (
            {"image_processing": {"image_std": [1, 2, 3, 4]}},
            "image_processing.image_std: expected at most 3 values, got [1, 2, 3, 4].",
        ),
        (
            {"lora": {"use_lora": "perhaps"}},
            "lora.use_lora: expected true or false, got 'perhaps'.",
        ),
        ({"lora": {"dropout": 1}}, "lora.dropout: expected less than 1, got 1."),
        ({"lora": None}, "lora: expected a block of keys, got nothing."),
        ({"lora": [1]}, "lora: expected a block of keys, got [1]."),
        (
            {"experiment": {"name": 12}},
            "experiment.name: expected text, got 12; put it in quotes.",
        ),
        (
            {"data": {"csv_test": ["a.csv", 3]}},
            "data.csv_test[1]: expected text, got 3; put it in quotes.",
        ),
        ({"data": {"csv_test": 3}}, "data.csv_test: expected a list, got 3."),
        ({"data": {"synthetic": {}}}, "data.synthetic.root: is required."),
        ({"training": {"stages": []}}, "training.stage_configs: is required."),
        (
            {"models": {"vision_config": 3}},
            "models.vision_config: expected a block of keys, got 3.",
        ),
        (
            {"models": {"resampler_type": "bmamba", "resampler_config": {"whatever": 1}}},
            "models.resampler_type: unknown resampler_type 'bmamba'; "
            f"known: {', '.join(sorted(RESAMPLER_CONFIGS))}; "
            "others come with the package that defines them. Did you mean 'bimamba'?",
        ),
        (
            {"data": {"csv_train": [{"path": "a.csv", "wieght": 2}]}},
            "data.csv_train[0].wieght: unknown key.",
        ),
        (
            {"models": {"resampler_config": {"hidden_dim": 10**400}}},
            "models.resampler_config.hidden_dim: expected a whole number of at most 63 bits, "
            f"got 1{'0' * 56}....",
        ),
        (
            {"models": {"resampler_type": "bimamba", "resampler_config": {"hidden_dim": 2**80}}},
            "models.resampler_config.hidden_dim: expected a whole number of at most 63 bits, "
            f"got {2**80}.",
        ),
        (
            {"environment": {"seed": 2**32}},
            "environment.seed: expected at most 4294967295, got 4294967296.",
        ),
        (
            {"environment": {"threads": 10**11}},
            "environment.threads: expected at most 4096, got 100000000000.",
        ),
        (
            {"models": {"resampler_type": 3, "resampler_config": {"whatever": 1}}},
            "models.resampler_type: expected text, got 3; put it in quotes.",
        ),
        (
            {"experiment": {"auto_name": "x" * 100}},
            f"experiment.auto_name: expected true or false, got 'x{'x' * 55}....",
        ),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_a_problem_is_one_line(mapping: dict[str, Any], line: str) -> None:
    assert problems(mapping) == [line]


def test_all_problems_are_told_at_once_with_their_lines() -> None:
    text = (
        "models:\n  resampler_confg: {}\n  latent_dimension: x\n"
        "lora: {rank: 0}\ntraining: {stages: [vision], stage_configs: {vision: {lr: fast}}}\n"
    )
    mapping, lines = parse_yaml(text, "a.yaml")
    assert sorted(problems(mapping, lines)) == [
        "a.yaml:2: models.resampler_confg: unknown key; did you mean resampler_config?",
        "a.yaml:3: models.latent_dimension: expected a whole number, got 'x'.",
        "a.yaml:4: lora.rank: expected at least 1, got 0.",
        "a.yaml:5: training.stage_configs.vision.lr: expected a number, got 'fast'.",
    ]


def test_a_shared_value_is_reported_where_it_was_written_only() -> None:
    mapping = {"lora": {"rank": "many"}, **stage(lora={"alpha": 3})}
    assert problems(mapping) == ["lora.rank: expected a whole number, got 'many'."]


def test_a_root_that_is_no_mapping() -> None:
    with pytest.raises(ConfigError, match=r"^expected a block of keys, got \[\]\.$"):
        validate(Settings, [])  # pyright: ignore[reportArgumentType]


def test_a_default_that_is_refused_is_told_too() -> None:
    class Odd(StrictModel):
        width: int = Field(default=0, ge=1)

    with pytest.raises(ConfigError, match=r"^width: expected at least 1, got 0\.$"):
        validate(Odd, {})


def test_a_strange_key_stays_one_line() -> None:
    assert problems({"models": {"a\nb": 1}}) == ["models.'a\\nb': unknown key."]


def test_blocks_can_be_validated_alone() -> None:
    with pytest.raises(ConfigError) as refused:
        validate(ModelSettings, {"resampler_type": "bimamba", "resampler_config": {"dstate": 1}})
    assert str(refused.value) == "resampler_config.dstate: unknown key; did you mean d_state?"
    assert validate(ModelSettings, {"latent_dimension": "64"}).latent_dimension == 64


FIELDS = [path for path in paths_of(Settings, "bimamba") if "<stage>" not in path]
junk = st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.booleans()
values = junk | st.lists(junk, max_size=3) | st.dictionaries(st.text(max_size=5), junk, max_size=2)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), values, max_size=4))
def test_whatever_is_wrong_the_message_is_ours(given_values: dict[tuple[str, ...], Any]) -> None:
    mapping: dict[str, Any] = {"training": TRAINING}
    for path, value in given_values.items():
        block = mapping
        for key in path[:-1]:
            block[key] = dict(block[key]) if isinstance(block.get(key), dict) else {}
            block = block[key]
        block[path[-1]] = value
    try:
        validate(Settings, mapping)
    except ConfigError as error:
        message = str(error)
        assert message
        for leak in ("pydantic", "http", "further information", "Input should", "type="):
            assert leak not in message
        for line in message.splitlines():
            assert line.endswith((".", "?"))
