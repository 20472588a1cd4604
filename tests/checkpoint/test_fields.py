"""Flat names of a recipe's fields."""

from __future__ import annotations

import pytest

from panovlm.checkpoint.fields import (
    BEARING,
    TRAINING_ONLY,
    FieldMap,
    bears,
    defaults,
    flatten,
    flatten_mapping,
    flatten_stated,
    nest,
    typed,
)
from panovlm.config.schema import Recipe
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipes


@pytest.mark.parametrize("name", recipes())
def test_flat_and_back(name):
    flat = defaults(name)
    recipe = Recipe.model_validate(nest(flat))
    assert flatten(recipe) == flat
    assert recipe.models.resampler_config == recipes()[name].settings()
    kinds = {key for key in flat if key.startswith("models.resampler_config.")}
    assert {key.rpartition(".")[2] for key in kinds} == set(recipes()[name].settings.model_fields)


def test_dictionaries_that_are_values_stay_whole():
    recipe = Recipe.model_validate(
        {"models": {"vision_config": {"model_type": "x", "a": {"b": 1}}}}
    )
    assert flatten(recipe)["models.vision_config"] == {"model_type": "x", "a": {"b": 1}}


def test_only_a_recipes_sections_are_flattened():
    mapping = {
        "models": {
            "resampler_config": {"depth": 2},
            "overlap_ratio": 0.5,
            "vision_config": {"a": 1},
        },
        "training": {"stages": []},
        "lora": None,
    }
    assert flatten_mapping(mapping) == {
        "models.resampler_config.depth": 2,
        "models.overlap_ratio": 0.5,
        "models.vision_config": {"a": 1},
    }


class TestFieldMap:
    FIELDS = FieldMap(
        {
            "models.overlap_ratio": 1,
            "image_processing.overlap_ratio": 2,
            "models.resampler_config.hidden_dim": 3,
            "lora.rank": 4,
            "lora.a.same": 5,
            "generation.same": 6,
        }
    )

    def test_last_parts(self):
        assert self.FIELDS["hidden_dim"] == 3 == self.FIELDS["resampler_config.hidden_dim"]
        assert self.FIELDS["rank"] == 4
        assert self.FIELDS["overlap_ratio"] == 1  # the models block goes before the others
        assert self.FIELDS["image_processing.overlap_ratio"] == 2
        assert self.FIELDS.full_name("hidden_dim") == "models.resampler_config.hidden_dim"

    def test_none_or_several(self):
        with pytest.raises(ConfigError, match=r"ambiguous: generation\.same, lora\.a\.same"):
            self.FIELDS.full_name("same")
        with pytest.raises(ConfigError, match=r"Did you mean .*hidden_dim"):
            self.FIELDS.full_name("resampler_config.hiden_dim")
        with pytest.raises(KeyError):
            self.FIELDS["same"]

    def test_it_is_a_mapping(self):
        assert "hidden_dim" in self.FIELDS and "same" not in self.FIELDS and 3 not in self.FIELDS
        assert self.FIELDS.get("nothing") is None
        assert len(self.FIELDS) == len(list(self.FIELDS)) == 6


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("models.use_vicreg_norm", "off", False),
        ("models.resampler_config.hidden_dim", "64", 64),
        ("models.resampler_config.expand", 2, 2.0),
        ("models.resampler_config.depth", True, True),
        ("models.resampler_config.depth", "many", "many"),
        ("models.resampler_config.heads", "8", "8"),
        ("models.overlap_ratio", 1.5, 1.5),
        ("image_processing.image_size", [16, 24], (16, 24)),
        ("image_processing.image_size", 16, (16, 16)),
        ("lora.target_modules", ["q_proj"], ("q_proj",)),
        ("models.nothing", "1", "1"),
    ],
)
def test_a_stated_value_takes_the_type_of_its_field(name, given, read):
    found = typed(name, given, "bimamba")
    assert (found, type(found)) == (read, type(read))


def test_only_what_is_given_is_stated():
    given = {"models": {"overlap_ratio": 0.25, "layout": "panovlm-1"}, "lora": {"alpha": 3}}
    assert flatten_stated(Recipe.model_validate(given)) == {
        "models.overlap_ratio": 0.25,
        "models.layout": "panovlm-1",
        "models.pe_type": "columns",
        "lora.alpha": 3.0,
        # Documents from before these fields were computed with as their defaults say.
        "models.fusion_text_limit": None,
        "models.vision_rope": "sequence",
        "models.language_quantization": "none",
        "lora.use_dora": False,
        "models.vision_token_fallback_ends": "text",
        "image_processing.rendering": "exact",
    }
    whole = Recipe()
    assert flatten_stated(Recipe.model_validate(whole.model_dump())) == flatten(whole)


STATISTICS = {
    "image_processing.image_mean": [0.5, 0.5, 0.5],
    "image_processing.image_std": [0.5, 0.5, 0.5],
}


class TestBearing:
    def test_every_name_is_that_of_a_field(self):
        known = {name for resampler in recipes() for name in defaults(resampler)}
        assert known >= TRAINING_ONLY
        for beginning, other, values in BEARING:
            assert any(name.startswith(beginning) for name in known)
            assert other in known and values

    @pytest.mark.parametrize(
        ("name", "values", "expected"),
        [
            ("models.overlap_ratio", {}, True),
            ("models.vicreg_mode", {}, False),
            ("generation.temperature", {}, False),
            ("models.pe_temperature", {"models.use_projection_positional_encoding": False}, False),
            ("models.pe_temperature", {"models.use_projection_positional_encoding": True}, True),
            ("models.pe_dropout", {"models.use_projection_positional_encoding": True}, False),
            ("models.stitching_mode", {"models.stitching_mode": "concat"}, True),
            ("models.stitch_interp", {"models.stitching_mode": "concat"}, False),
            ("models.stitch_interp", {"models.stitching_mode": "resample"}, True),
            ("image_processing.fov_deg", {"image_processing.crop_strategy": "cubemap"}, False),
            ("image_processing.image_size", {"image_processing.normalize": False}, True),
            ("image_processing.image_mean", {"image_processing.normalize": False}, False),
            ("image_processing.vision_processor", {}, True),
            ("image_processing.vision_processor", {"image_processing.normalize": False}, False),
            ("image_processing.vision_processor", STATISTICS, False),
            (
                "image_processing.vision_processor",
                {**STATISTICS, "image_processing.use_vision_processor": True},
                True,
            ),
            ("lora.alpha", {"lora.use_lora": False}, False),
            ("lora.alpha", {"lora.use_lora": True}, True),
            ("lora.dropout", {"lora.use_lora": True}, False),
        ],
    )
    def test_bearing(self, name, values, expected):
        assert bears(name, defaults("mlp") | values) is expected


def test_ends_of_rows_bear_where_vision_tokens_go_behind_the_text():
    values = {**defaults("mlp"), "models.vision_token_fallback_position": "suffix"}
    assert bears("models.vision_token_fallback_ends", values)
    assert not bears("models.vision_token_fallback_ends", defaults("mlp"))
