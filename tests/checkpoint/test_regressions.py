"""The chain of faults by which the original system lost a trained model, link by link.

A BiMamba of hidden width 1024 and expand 1.75 was trained with positional encoding. Its metadata
was cut in half while it was written; the evaluation read the nested YAML as if it were flat, so
that an MLP of width 1536 was configured; the type was switched to BiMamba without validating the
rest again; and the positional encoding, which has no parameters, was switched off.
"""

from __future__ import annotations

import pytest
import torch
import yaml
from torch.testing import assert_close

from panovlm.checkpoint.resolve import resolve
from panovlm.config.load import load_settings
from panovlm.config.problems import ValidationError
from panovlm.config.schema import RESAMPLER_CONFIGS, ModelSettings
from panovlm.models.model import PanoramaVLM

SPEC = {
    "resampler_type": "bimamba",
    "resampler": {"hidden_dim": 64, "expand": 1.75, "depth": 2, "d_state": 6, "d_conv": 4},
    "use_projection_positional_encoding": True,
    "overlap_ratio": 0.25,
}


@pytest.fixture
def model(build):
    return build(**SPEC)


def configuration(model, files, backbones):
    """As people wrote it: flat resampler sizes inside the nested ``models`` block."""
    config = files.config(model, backbones)
    del config["models"]["resampler_config"]
    return config


def check(loaded, model):
    pixels = torch.randn(1, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(loaded.vision_tokens(pixels), model.vision_tokens(pixels), rtol=0, atol=2e-5)


def test_the_whole_chain(model, files, backbones, write):
    """Metadata cut in half, configuration nested: the trained model comes back."""
    path = write(
        model,
        sidecar=files.cut_off(files.metadata(model, backbones)),
        config=configuration(model, files, backbones),
    )
    loaded = PanoramaVLM.from_checkpoint(path, strict=True)
    recipe = loaded.recipe.models
    assert recipe.resampler_config.model_dump() == {
        **RESAMPLER_CONFIGS["bimamba"].model_dump(),
        **SPEC["resampler"],
    }
    assert recipe.use_projection_positional_encoding is True
    check(loaded, model)


def test_metadata_cut_in_half(model, files, backbones, write):
    """What stands before the cut still counts, and what it lost is read off the weights."""
    path = write(
        model, hyper=None, data=None, sidecar=files.cut_off(files.metadata(model, backbones))
    )
    found = resolve(path)
    assert found.sources["models.overlap_ratio"].detail == "checkpoint_metadata.json"
    assert found.config.models.overlap_ratio == 0.25
    for key, value in SPEC["resampler"].items():
        assert found.value(f"models.resampler_config.{key}") == value
        assert found.sources[f"models.resampler_config.{key}"].kind == "weights"


def test_nested_yaml_is_never_read_flat(model, files, backbones, tmp_path):
    """The MLP preset must not appear where ``models:`` asks for a BiMamba."""
    config = configuration(model, files, backbones)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    settings = load_settings(tmp_path / "config.yaml")
    assert settings.models.resampler_type == "bimamba"
    assert settings.models.resampler_config == RESAMPLER_CONFIGS["bimamba"]
    with pytest.raises(ValidationError, match="models"):
        ModelSettings.model_validate(config)


def test_a_type_is_not_switched_without_validation(model, write):
    """Neither a copy of settings nor an override keeps the sizes of another architecture."""
    settings = ModelSettings(resampler_type="mlp")
    assert settings.resampler_config == RESAMPLER_CONFIGS["mlp"]
    with pytest.raises(ValidationError, match="resampler_config"):
        settings.model_copy(update={"resampler_type": "bimamba"})
    found = resolve(write(model), {"resampler_type": "mlp"})
    assert [conflict.field for conflict in found.conflicts] == ["models.resampler_type"]
    again = resolve(write(model), {"resampler_type": "bimamba"})
    assert again.conflicts == [] and again.value("hidden_dim") == 64


def test_presets_never_replace_what_the_weights_show(model, write):
    found = resolve(write(model, hyper={"resampler_type": "bimamba"}))
    preset = RESAMPLER_CONFIGS["bimamba"]
    assert preset.hidden_dim == 1024 and found.value("hidden_dim") == 64
    assert found.sources["hidden_dim"].detail.endswith("input_proj.weight[0]")
    assert "hidden_dim" not in " ".join(found.assumed)


def test_what_has_no_shape_is_not_lost(model, files, backbones, write):
    """Positional encoding leaves no parameter; without a document it is listed as assumed."""
    known = resolve(write(model, config=configuration(model, files, backbones)))
    assert known.config.models.use_projection_positional_encoding is True
    (known.path.parent / "config.yaml").unlink()
    unknown = resolve(known.path)
    assert unknown.config.models.use_projection_positional_encoding is False
    assert "models.use_projection_positional_encoding" in unknown.assumed


def test_the_model_overlap_is_read_under_the_key_that_was_written(model, write):
    found = resolve(write(model))
    assert found.config.models.overlap_ratio == 0.25


def test_adapters_in_the_file_are_used(build, files, backbones, write):
    """They were dropped without a word, and the untrained language model answered."""
    model = build(lora={"r": 3, "lora_alpha": 24})
    loaded = PanoramaVLM.from_checkpoint(write(model))
    ids = torch.tensor([[4, 5, 6, 7]])
    with torch.no_grad():
        ours = loaded(input_ids=ids).logits
        with loaded.language_model.disable_adapter():
            assert (loaded(input_ids=ids).logits - ours).abs().max() > 1e-3
        assert_close(ours, model.language_model(input_ids=ids).logits, rtol=0, atol=2e-5)


def test_the_language_model_keeps_its_name(original, files, backbones, tmp_path):
    """Widths 896 and 1536 once meant two fixed models of the hub, whatever was trained."""
    config = {
        **files.LANGUAGE["llama"],
        "hidden_size": 896,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 14,
    }
    folder = files.write_language(tmp_path / "lm", config, files.word_tokenizer())
    mine = files.Backbones(backbones.vision, {"wide": folder})
    model = original.build(original.Spec(language="wide"), mine)
    found = resolve(files.write_run(tmp_path / "run", model, mine))
    assert found.config.models.language_model_name == str(folder)
    assert found.config.models.language_config["model_type"] == "llama"
