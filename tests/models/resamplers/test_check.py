"""The checks for resamplers of other packages: the built-in ones pass, broken ones do not."""

from __future__ import annotations

import pytest

from panovlm.checkpoint.settle.shapes import Observations
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipe, recipes
from panovlm.models.resamplers.check import check_recipe
from panovlm.models.resamplers.mlp.recipe import MLPRecipe, MLPSettings

VARIANTS = {
    "mlp": [{"hidden_dim": 7}, {"hidden_dim": 9, "depth": 2, "use_ln": False}],
    "bimamba": [{"hidden_dim": 20, "expand": 1.37, "depth": 1, "norm_first": False}],
    "qformer": [{"num_query_tokens": 3, "num_hidden_layers": 1, "num_attention_heads": 2}],
    "perceiver": [{"num_latents": 3, "hidden_dim": 24, "depth": 1, "num_attention_heads": 2}],
    "conv": [{"hidden_dim": 7, "depth": 1, "stride": 3, "drop_path": 0.5}],
    "c_abstractor": [
        {"hidden_dim": 7, "depth": 1, "rows": 2, "columns": 5, "mlp_depth": 1},
        {"hidden_dim": 24, "depth": 2, "mlp_depth": 3},
    ],
    "identity": [],
    "avg_pool": [{"window": 3}],
    "spatial_pool": [{"rows": 1, "columns": 9, "mode": "max"}],
    "masked_drop": [{"rate": 0.5}],
}

WEIGHTLESS = {"identity", "avg_pool", "spatial_pool", "masked_drop"}


@pytest.mark.parametrize("name", sorted(recipes()))
def test_the_built_in_ones(name):
    found = recipe(name)
    variants = [found.settings.model_validate(given) for given in VARIANTS[name]]
    check_recipe(found, *variants, latent_dimension=24 if name in WEIGHTLESS else 16)


class Broken(MLPRecipe):
    name = "broken"

    def seen(self, shapes, **changes):
        found = super().infer(shapes)
        again = Observations(shapes)
        for key, observed in found.items():
            shapes.dim("mlp.0.weight", 0)
            again.add(key, changes.get(key, observed.value))
        return again


def test_a_setting_without_a_word_about_it():
    class Silent(MLPRecipe):
        observability = {"depth": "observable"}

    with pytest.raises(ConfigError, match=r"observability names \['depth'\], but the settings are"):
        check_recipe(Silent())


def test_tensors_that_two_claim():
    with pytest.raises(ConfigError, match=r"claimed by \['mlp'\], too"):
        check_recipe(Broken())


def test_tensors_that_it_does_not_claim_itself():
    class Stranger(MLPRecipe):
        has = ("nothing.weight",)

    with pytest.raises(ConfigError, match=r"does not claim its own tensors: \['nothing.weight is"):
        check_recipe(Stranger())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vision_dim": 5}, "vision_dim 24 was not read back"),
        ({"hidden_dim": 5}, "hidden_dim .* came back as 5"),
    ],
)
def test_settings_that_come_back_wrong(changes, told):
    class Wrong(Broken):
        name = "mlp"

        def infer(self, shapes):
            return self.seen(shapes, **changes)

    with pytest.raises(ConfigError, match=told):
        check_recipe(Wrong())


def test_a_setting_that_is_hidden_only_by_its_word():
    class Shown(MLPRecipe):
        observability = {**MLPRecipe.observability, "use_ln": "unobservable"}

    with pytest.raises(ConfigError, match="infer returns use_ln, which is declared unobservable"):
        check_recipe(Shown(), MLPSettings(use_ln=False))

    class Quiet(Shown):
        def infer(self, shapes):
            seen = super().infer(shapes)
            again = Observations(shapes)
            for key, observed in seen.items():
                if key != "use_ln":
                    shapes.dim("mlp.0.weight", 0)
                    again.add(key, observed.value)
            return again

    with pytest.raises(ConfigError, match="use_ln is declared unobservable, but changes a shape"):
        check_recipe(Quiet(), MLPSettings(use_ln=False))
