"""Names in a file to the names of the model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panovlm.checkpoint.names.keys import COMPONENTS, WRAPPERS_ANYWHERE, canonical, map_keys, unwrap
from panovlm.errors import CheckpointError, ContradictionError

WRAPPED = {
    "model.projector.linear.weight": ("projector.linear.weight", "model."),
    "module.model._orig_mod.projector.linear.weight": (
        "projector.linear.weight",
        "module.model._orig_mod.",
    ),
    "_forward_module.model.language_model.model.norm.weight": (
        "language_model.model.norm.weight",
        "_forward_module.model.",
    ),
    "base_model.model.projector.linear.weight": ("projector.linear.weight", "base_model.model."),
    "language_model.base_model.model.model.norm.weight": (
        "language_model.base_model.model.model.norm.weight",
        "",
    ),
    "model.language_model.model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight": (
        "language_model.model.layers.0.mlp.up_proj.weight",
        "model.",
    ),
    "projector._fsdp_wrapped_module.linear.weight": ("projector.linear.weight", ""),
    "vision_backbone.encoder.module.embeddings.class_embedding": (
        "vision_backbone.encoder.embeddings.class_embedding",
        "",
    ),
    # Further below, "module" is a name like any other.
    "language_model.model.layers.module.weight": ("language_model.model.layers.module.weight", ""),
    "critic.weight": ("critic.weight", ""),
    "ema_model.module.projector.linear.weight": ("projector.linear.weight", "ema_model.module."),
    "ema.online_model.projector.linear.weight": ("projector.linear.weight", "ema.online_model."),
    "model.embed_tokens.weight": ("embed_tokens.weight", "model."),
    "layout": ("layout", ""),
    "model.layout": ("layout", "model."),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers(name):
    found = unwrap(name)
    assert (found.bare, found.prefix) == WRAPPED[name]
    assert found.averaged == name.startswith("ema_model.")


part = st.sampled_from(["model", "module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module"])


@given(wrappers=st.lists(part, max_size=4), component=st.sampled_from(COMPONENTS[:-1]))
def test_any_wrappers_in_front(wrappers, component):
    found = unwrap(".".join([*wrappers, component, "a", "weight"]))
    assert found.bare == f"{component}.a.weight"
    assert found.prefix == "".join(f"{wrapper}." for wrapper in wrappers)
    assert not found.averaged


NAMES = [
    "vision_backbone.encoder.encoder.layers.0.mlp.fc1.weight",
    "vision_backbone.norm.bias",
    "resampler_module.resampler.mlp.0.weight",
    "vicreg_projector.mlp.3.bias",
    "projector.linear.weight",
    "language_model.model.layers.1.self_attn.q_proj.weight",
    "language_model.lm_head.weight",
]


@given(data=st.data())
def test_any_wrappers_anywhere(data):
    """Each name gets segments of its own: in front, between its own, after its component."""
    anywhere = st.lists(st.sampled_from(sorted(WRAPPERS_ANYWHERE)), max_size=2)
    front = st.lists(st.sampled_from(["model", "module", *sorted(WRAPPERS_ANYWHERE)]), max_size=3)
    stored = {}
    for name in NAMES:
        first, *inner, leaf = name.split(".")
        segments = [*data.draw(front), first, *data.draw(st.sampled_from([[], ["module"]]))]
        for segment in inner:
            segments += [*data.draw(anywhere), segment]
        stored[".".join([*segments, *data.draw(anywhere), leaf])] = (2, 2)
    found = map_keys(stored)
    assert list(found.files) == NAMES and found.unknown == ()
    assert [found.files[name] for name in NAMES] == list(stored)


def test_older_homes_and_aliases():
    assert canonical("vision_encoder.a.b") == ("vision_backbone.encoder.a.b", True)
    assert canonical("vicreg_norm.bias") == ("vision_backbone.norm.bias", True)
    assert canonical("resampler.mlp.0.bias") == ("resampler_module.resampler.mlp.0.bias", True)
    assert canonical("vision_to_language_projection.bias") == ("projector.linear.bias", True)
    assert canonical("projector.linear.bias") == ("projector.linear.bias", False)
    assert canonical("resampler") == (None, False)
    assert canonical("critic.bias") == (None, False)


class TestMap:
    def test_aliases_unknown_and_rebuilt(self):
        found = map_keys(
            {
                "model.resampler_module.resampler.mlp.0.bias": (3,),
                "model.resampler.mlp.0.bias": (3,),
                "model.vision_backbone.encoder.embeddings.position_ids": (1, 4),
                "critic.bias": (2,),
            }
        )
        name = "resampler_module.resampler.mlp.0.bias"
        assert found.files == {name: f"model.{name}"}
        assert found.aliases == {name: ("model.resampler.mlp.0.bias",)}
        assert list(found.ignored) == ["model.vision_backbone.encoder.embeddings.position_ids"]
        assert found.unknown == ("critic.bias",)
        assert found.layout == "original" and found.prefixes == ("model.",)

    def test_the_alias_may_come_first(self):
        shapes = {"resampler.mlp.0.bias": (3,), "resampler_module.resampler.mlp.0.bias": (3,)}
        for names in (list(shapes), list(shapes)[::-1]):
            found = map_keys({name: shapes[name] for name in names})
            name = "resampler_module.resampler.mlp.0.bias"
            assert found.files == {name: name}
            assert found.aliases == {name: ("resampler.mlp.0.bias",)}

    def test_layout_is_marked_in_the_weights(self):
        assert map_keys({"layout": (1,), "projector.linear.bias": (2,)}).layout == "panovlm-1"
        assert map_keys({"model.layout": (1,), "model.projector.linear.bias": (2,)}).layout == (
            "panovlm-1"
        )

    def test_tower_names_of_today(self):
        old = "vision_backbone.encoder.encoder.layer.0.attention.attention.query.weight"
        assert list(map_keys({old: (2, 2)}).files) == [
            "vision_backbone.encoder.encoder.layer.0.attention.q_proj.weight"
        ]

    def test_a_share_of_several_tensors(self):
        with pytest.raises(CheckpointError, match=r"_flat_param is a flat parameter of FSDP.*FULL"):
            map_keys({"model._fsdp_wrapped_module.projector._flat_param": (7,)})

    @pytest.mark.parametrize("adapter", ["", ".default", ".mine"])
    @pytest.mark.parametrize("layer", ["q_proj", "q_proj.base_layer"])
    @pytest.mark.parametrize("wrapper", ["", "base_model.model."])
    def test_adapters_have_the_names_of_today(self, wrapper, layer, adapter):
        inside, today = "model.layers.0.self_attn.", "language_model.base_model.model."
        stored = [
            f"language_model.{wrapper}{inside}{layer}.weight",
            f"language_model.{wrapper}{inside}q_proj.lora_A{adapter}.weight",
            f"language_model.{wrapper}{inside}q_proj.lora_B{adapter}.weight",
            f"language_model.{wrapper}model.norm.weight",
        ]
        assert map_keys(dict.fromkeys(stored, (2, 2))).files == {
            f"{today}{inside}q_proj.base_layer.weight": stored[0],
            f"{today}{inside}q_proj.lora_A.default.weight": stored[1],
            f"{today}{inside}q_proj.lora_B.default.weight": stored[2],
            f"{today}model.norm.weight": stored[3],
        }

    def test_a_fused_matrix_is_two_of_today(self):
        mlp = "vision_backbone.encoder.encoder.layer.0.mlp."
        stored = f"model.{mlp}weights_in.weight"
        keys = map_keys({stored: (6, 2)})
        assert dict(keys.shapes({stored: (6, 2)})) == {
            f"{mlp}gate_proj.weight": (3, 2),
            f"{mlp}up_proj.weight": (3, 2),
        }
        whole = torch.arange(12).reshape(6, 2)
        assert keys.take(f"{mlp}gate_proj.weight", {stored: whole}).equal(whole[:3])
        assert keys.take(f"{mlp}up_proj.weight", {stored: whole}).equal(whole[3:])
        with pytest.raises(ContradictionError, match=r"weights_in.*\[5, 2\]; 2 equal parts"):
            keys.shapes({stored: (5, 2)})

    def test_a_fused_matrix_beside_one_of_its_parts(self):
        mlp = "encoder.layer.0.mlp."
        fused = f"vision_encoder.{mlp}weights_in.weight"
        names = (fused, f"vision_backbone.encoder.{mlp}up_proj.weight")
        with pytest.raises(CheckpointError, match=r"two tensors claim .*up_proj\.weight"):
            map_keys(dict.fromkeys(names, (6, 2)))

    def test_a_tower_tensor_under_its_name_of_then_and_of_today(self):
        attention = "vision_backbone.encoder.encoder.layer.0.attention."
        names = (f"{attention}attention.query.weight", f"{attention}q_proj.weight")
        with pytest.raises(CheckpointError, match=r"two tensors claim .*q_proj\.weight"):
            map_keys(dict.fromkeys(names, (2, 2)))

    def test_nothing_of_a_model(self):
        with pytest.raises(CheckpointError, match=r"layers\.0.*expected one of vision_backbone"):
            map_keys({"layers.0.weight": (2,), "head.bias": (1,)})
        with pytest.raises(CheckpointError, match="no tensor belongs"):
            map_keys({})

    def test_two_models(self):
        with pytest.raises(CheckpointError, match=r"model\.projector.*module\.projector"):
            map_keys({"model.projector.linear.bias": (2,), "module.projector.linear.bias": (2,)})

    def test_an_alias_of_another_shape(self):
        with pytest.raises(ContradictionError, match="damaged"):
            map_keys({"projector.linear.bias": (2,), "vision_to_language_projection.bias": (3,)})
