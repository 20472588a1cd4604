"""Overrides of recipe fields by full, short and old names."""

from __future__ import annotations

from typing import Any

import pytest

from panovlm.config.fields import paths_of
from panovlm.config.lines import dotted
from panovlm.config.load import apply_recipe_overrides
from panovlm.config.schema import RESAMPLER_CONFIGS, Recipe
from panovlm.errors import ConfigError
from panovlm.models.resamplers.bimamba.recipe import BiMambaSettings


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"models.overlap_ratio": 0.3}, {"models.overlap_ratio": 0.3}),
        ({"overlap_ratio": 0.3}, {"models.overlap_ratio": 0.3}),
        ({"image_processing.overlap_ratio": 0.3}, {"image_processing.overlap_ratio": 0.3}),
        ({"model_overlap_ratio": 0.3}, {"models.overlap_ratio": 0.3}),
        ({"fov_deg": 60}, {"image_processing.fov_deg": 60}),
        ({"image_size": (32, 64)}, {"image_processing.image_size": (32, 64)}),
        ({"models.image_size": 32}, {"image_processing.image_size": 32}),
        ({"alpha": 3}, {"lora.alpha": 3}),
        ({"lora_r": 3, "lora_alpha": 4}, {"lora.rank": 3, "lora.alpha": 4}),
        ({"lora_rank": 3, "use_lora": True}, {"lora.rank": 3, "lora.use_lora": True}),
        ({"hidden_dim": 8}, {"models.resampler_config.hidden_dim": 8}),
        ({"resampler_hidden_dim": 8}, {"models.resampler_config.hidden_dim": 8}),
        ({"resampler_config.hidden_dim": 8}, {"models.resampler_config.hidden_dim": 8}),
        ({"models.resampler_depth": 8}, {"models.resampler_config.depth": 8}),
        ({"dropout": 0.2}, {"models.resampler_config.dropout": 0.2}),
        ({"lora.dropout": 0.2}, {"lora.dropout": 0.2}),
        ({"vision_model_name": "a", "lm_name": "b"},
         {"models.vision_name": "a", "models.language_model_name": "b"}),
        ({"resampler_config": {"num_layers": 2, "latent_dimension": 5}, "d_state": 4},
         {"models.resampler_config.depth": 2, "models.resampler_config.d_state": 4,
          "models.latent_dimension": 5}),
        ({"resampler_type": "qformer", "num_query_tokens": 4},
         {"models.resampler_type": "qformer", "models.resampler_config.num_query_tokens": 4}),
        ({"models": {"resampler_type": "qformer"}, "resampler_num_hidden_layers": 1},
         {"models.resampler_type": "qformer", "models.resampler_config.num_hidden_layers": 1}),
        ({"models.resampler_type": "Bi_Mamba"}, {"models.resampler_type": "bimamba"}),
        ({"vision_config": {"a": {"b": 1}}}, {"models.vision_config": {"a": {"b": 1}}}),
        ({"pe_spatial_encoding_type": "none"}, {"models.pe_spatial_encoding_type": "none"}),
        ({"system_messages.default": ""}, {"system_messages.default": ""}),
        ({"generation": {"top_k": 3}}, {"generation.top_k": 3}),
        ({"resampler_config": None, "lora_r": None}, {}),
        ({"image_processing.image_size": None}, {"image_processing.image_size": None}),
        ({}, {}),
    ],
)  # fmt: skip
def test_names(given: dict[str, Any], fields: dict[str, Any]) -> None:
    assert apply_recipe_overrides(given, "bimamba") == fields


def test_typed_settings_count_field_by_field() -> None:
    fields = apply_recipe_overrides({"resampler_config": BiMambaSettings(depth=1)}, "bimamba")
    assert fields["models.resampler_config.depth"] == 1
    assert len(fields) == len(BiMambaSettings.model_fields)


@pytest.mark.parametrize("kind", list(RESAMPLER_CONFIGS))
def test_every_full_name_means_itself(kind: str) -> None:
    blocks = {(name,) for name in Recipe.model_fields} | {("models", "resampler_config")}
    names = {dotted(path) for path in paths_of(Recipe, kind) if path not in blocks}
    assert len(names) > 60
    for name in names - {"models.resampler_type", "models.pe_spatial_encoding_type"}:
        assert apply_recipe_overrides({name: 1}, kind) == {name: 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stich_mode": 1}, "override stich_mode: unknown setting; did you mean "
         "models.stitching_mode?"),
        ({"models.hiden_dim": 1}, "override models.hiden_dim: unknown setting; did you mean "
         "models.resampler_config.hidden_dim?"),
        ({"overlap_ratoi": 1}, "override overlap_ratoi: unknown setting; did you mean "
         "models.overlap_ratio?"),
        ({"lora.rnk": 1}, "override lora.rnk: unknown setting; did you mean lora.rank?"),
        ({"training.epochs": 1}, "override training.epochs: unknown setting"),
        ({"qqqq": 1}, "override qqqq: unknown setting."),
        ({"num_query_tokens": 1}, "override num_query_tokens: bimamba has no such setting (qformer "
         "has); its settings are hidden_dim, depth, expand,"),
        ({"resampler_type": "mlp", "dropout": 0.1}, "override dropout: mlp has no such setting"),
        ({"models.resampler_config.use_ln": 1}, "override models.resampler_config.use_ln: left "
         "out; bimamba does not use it."),
        ({"projection_intermediate_size": 1}, "override models.projection_intermediate_size: left "
         "out; it had no effect"),
        ({"overlap_ratio": 0.1, "model_overlap_ratio": 0.2},
         "override models.model_overlap_ratio: ignored, because models.overlap_ratio"),
        ({"vision_config.hidden_size": 1}, "override vision_config.hidden_size: unknown setting; "
         "did you mean models.vision_config?"),
        ({"models.vision_config.hidden_size": 1}, "override models.vision_config.hidden_size: "
         "models.vision_config is one value; give it whole."),
        ({"lora": True}, "override lora: is a block; give it as a mapping."),
        ({"resampler_config": {"foo": 1}}, "override models.resampler_config.foo: unknown"),
        ({"resampler_type": "bmamba"}, "unknown resampler_type 'bmamba'"),
    ],
)  # fmt: skip
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        apply_recipe_overrides(given, "bimamba")
    assert str(refused.value).startswith(message)
