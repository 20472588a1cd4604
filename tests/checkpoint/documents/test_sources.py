"""What the documents of a checkpoint state, complete or not, of either system."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from peft import LoraConfig

from panovlm.checkpoint.documents import original as documents
from panovlm.checkpoint.documents.adapter_config import lora_fields, read_adapter_config
from panovlm.checkpoint.fields import defaults
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import save_checkpoint, strip_metadata
from panovlm.errors import CheckpointError, ConfigError, ContradictionError
from panovlm.models.model import PanoramaVLM

load = PanoramaVLM.from_checkpoint
SIZES = "models.resampler_config"
SPECS = {
    "mlp": {"resampler_type": "mlp", "resampler": {"hidden_dim": 37}},
    "bimamba": {"resampler_type": "bimamba"},
    "bimamba, other name": {"resampler_type": "bidirectional_mamba"},
    "qformer": {"resampler_type": "qformer"},
}
RUNS = ("complete", "older", "cut off", "none")


def sidecar(kind, model, files, backbones):
    whole = files.metadata(model, backbones)
    return {
        "complete": whole,
        "older": files.older_metadata(model, backbones),
        "cut off": files.cut_off(whole),
        "none": None,
    }[kind]


class TestOriginalMetadata:
    @pytest.mark.parametrize("kind", RUNS)
    @pytest.mark.parametrize("spec", SPECS)
    def test_every_state_of_the_file(self, spec, kind, build, files, backbones, write):
        """Complete, from before the field, cut off behind it, or not written at all."""
        model = build(**SPECS[spec])
        path = write(model, sidecar=sidecar(kind, model, files, backbones))
        found = resolve(path)
        assert found.conflicts == []
        assert found.config.models.resampler_type == model.kind
        for key, value in model.sizes.items():
            assert found.value(f"{SIZES}.{key}") == value
            expected = "metadata" if kind == "complete" else "weights"
            if key != "norm_first":
                assert found.sources[f"{SIZES}.{key}"].kind == expected
        assert any("cut off" in note for note in found.notes) == (kind == "cut off")
        stated = found.sources["models.latent_dimension"]
        origin = "hyper_parameters inside the file" if kind == "none" else "checkpoint_metadata"
        assert stated.kind == "metadata" and origin in stated.detail

    def test_norm_order_only_stands_here(self, build, files, backbones, write):
        model = build(resampler_type="bimamba", resampler={"norm_first": False})
        found = resolve(write(model, sidecar=files.metadata(model, backbones)))
        assert found.value("norm_first") is False

    def test_fields_that_the_schema_lacks_or_nulls(self, build, files, backbones, write):
        model = build()
        whole = files.metadata(model, backbones)
        whole["model_config"] |= {"image_size": None, "resampler_config": None, "future": 1}
        whole["training_config"] |= {"lora_rank": None, "lora_alpha": None}
        whole["wandb"] = {"project": "x", "run_name": None, "run_id": "1"}
        found = resolve(write(model, sidecar=whole))
        assert found.conflicts == [] and found.config.lora.alpha == 8

    def test_a_document_that_is_nothing_like_it(self, build, write):
        found = resolve(write(build(), sidecar={"model_config": None, "training_config": []}))
        assert found.conflicts == []
        with pytest.raises(CheckpointError, match="no JSON object"):
            resolve(write(build(), sidecar="[1, 2]"))
        with pytest.raises(CheckpointError, match=r"checkpoint_metadata\.json:1: not JSON"):
            resolve(write(build(), sidecar="resampler_type: mlp"))

    def test_values_that_cannot_be_used(self, build, write):
        for key, value in {"latent_dimension": "wide", "max_text_length": "long"}.items():
            path = write(build(), sidecar={"model_config": {key: value}})
            with pytest.raises(CheckpointError, match=key):
                resolve(path).raise_conflicts()

    @pytest.mark.parametrize("place", ["sidecar", "hyper", "config"])
    @pytest.mark.parametrize("kind", ["perceiver", "wavelet"])
    def test_an_architecture_that_nobody_knows(self, place, kind, build, files, backbones, write):
        """It contradicts the weights, as any wrong one does, and can be put right."""
        model = build()
        models = {"resampler_type": kind, "resampler_depth": 3, "resampler_config": {"heads": 2}}
        documents = {
            "sidecar": {"sidecar": {"model_config": models}},
            "hyper": {"hyper": files.hyper_parameters(model, backbones, resampler_type=kind)},
            "config": {"hyper": None, "config": {"models": models}},
        }
        path = write(model, **documents[place])
        with pytest.raises(ContradictionError, match=rf"resampler_type: '{kind}' .* 'mlp' \("):
            resolve(path).raise_conflicts()
        assert resolve(path, prefer="weights").config.models.resampler_type == "mlp"

    def test_values_in_the_spelling_of_another_type(self, build, files, backbones, write):
        """YAML 1.1 has ``no`` for false, and people put numbers in quotes."""
        model = build(use_vicreg_norm=False, overlap_ratio=0.25)
        config = files.config(model, backbones)
        config["models"] |= {"use_vicreg_norm": "no", "overlap_ratio": "0.25"}
        config["models"]["resampler_config"]["hidden_dim"] = "48"
        found = resolve(write(model, hyper=None, config=config))
        assert found.conflicts == []
        assert found.config.models.overlap_ratio == 0.25


@pytest.mark.parametrize("where", ["sidecar", "config"])
def test_heads_under_the_wrong_architecture(where, build, files, backbones, write):
    """Every Q-Former of the original had eight, whatever stands there."""
    model = build(resampler_type="qformer")
    sidecar, config = files.metadata(model, backbones), files.config(model, backbones)
    sidecar["model_config"]["resampler_type"] = config["models"]["resampler_type"] = "mlp"
    config["models"]["resampler_config"]["num_attention_heads"] = 12
    found = {"sidecar": sidecar} if where == "sidecar" else {"config": config}
    path = write(model, hyper=None, **found)
    assert "models.resampler_type" in {conflict.field for conflict in resolve(path).conflicts}
    mended = resolve(path, prefer="weights")
    assert mended.value("models.resampler_config.num_attention_heads") == 8
    assert load(path, prefer="weights").recipe.models.resampler_type == "qformer"


class TestHyperParameters:
    @pytest.mark.parametrize("kept", ["vision_name", "language_model_name", "lora_alpha", "stage"])
    def test_only_some_keys(self, kept, build, files, backbones, write):
        """Whatever is absent comes from the weights, or is assumed; nothing fails."""
        model = build(lora={"r": 3, "lora_alpha": 12})
        whole = files.hyper_parameters(model, backbones)
        found = resolve(write(model, hyper={kept: whole[kept]}, data=None))
        assert found.conflicts == []
        assert found.config.lora.rank == 3
        assert found.config.lora.alpha == (12 if kept == "lora_alpha" else 32)
        assert ("lora.alpha" in found.assumed) == (kept != "lora_alpha")
        named = found.config.models.vision_name == str(backbones.vision["siglip"])
        assert named == (kept == "vision_name")

    @pytest.mark.parametrize("size", [(16, 16), [16, 16], 16, None])
    def test_forms_of_a_size(self, size, build, files, backbones, write):
        model = build()
        data = files.data_parameters(model, backbones, image_size=size)
        assert resolve(write(model, data=data)).config.image_processing.image_size == (16, 16)

    @pytest.mark.parametrize("length", [256, "auto", "auto:dataset"])
    def test_forms_of_a_length(self, length, build, files, backbones, write):
        model = build()
        data = files.data_parameters(model, backbones, max_text_length=length)
        assert resolve(write(model, data=data)).config.models.max_text_length == length

    def test_whole_panorama_as_one_view(self, build, files, backbones, write):
        model = build()
        data = files.data_parameters(model, backbones, crop_strategy="none")
        assert resolve(write(model, data=data)).config.image_processing.crop_strategy == "resize"

    def test_image_overlap_is_not_the_models(self, build, files, backbones, write):
        model = build(overlap_ratio=0.25)
        data = files.data_parameters(model, backbones, overlap_ratio=0.125)
        recipe = resolve(write(model, data=data)).config
        assert (recipe.models.overlap_ratio, recipe.image_processing.overlap_ratio) == (0.25, 0.125)

    def test_use_lora_says_nothing(self, build, files, backbones, write):
        """It repeats the configuration, also in files whose weights carry no adapters."""
        found = resolve(write(build()))
        assert found.config.lora.use_lora is False
        found = resolve(write(build(lora={"r": 4}), hyper={"use_lora": False, "lora_rank": 4}))
        assert found.config.lora.use_lora is True

    def test_a_tokenizer_of_its_own(self, build, files, backbones, write):
        model, other = build(), str(backbones.language["llama"])
        assert resolve(write(model)).config.models.tokenizer_name is None
        data = files.data_parameters(model, backbones, tokenizer_name=other)
        found = resolve(write(model, data=data))
        assert found.config.models.tokenizer_name == other

    def test_system_message(self, build, write):
        assert resolve(write(build())).config.system_messages.default == "You are helpful"


class TestRunConfig:
    """``config.yaml`` as the original system understood it."""

    def test_flat_sizes(self, build, files, backbones, write):
        model = build(resampler={"hidden_dim": 37, "use_ln": False})
        config = files.config(model, backbones)
        del config["models"]["resampler_config"]
        config["models"] |= {
            "resampler_depth": 3,
            "resampler_hidden_dim": 37,
            "resampler_use_ln": False,
            "resampler_num_views": 8,
            "resampler_dropout": 0.2,
            "resampler_heads": 4,
        }
        found = resolve(write(model, config=config))
        assert found.conflicts == [] and found.assumed == []
        assert found.sources["hidden_dim"].detail == "config.yaml"
        assert found.value("hidden_dim") == 37

    def test_partial_sizes_have_defaults_of_their_own(self, build, files, backbones, write):
        """What the partial mapping leaves out was filled from a second set of defaults."""
        model = build(
            resampler_type="bimamba",
            resampler={"hidden_dim": 32, "depth": 2, "d_state": 4, "d_conv": 4, "expand": 2.0},
        )
        config = files.config(model, backbones)
        config["models"]["resampler_config"] = {
            "hidden_dim": 32,
            "latent_dimension": 40,
            "num_layers": 2,
            "d_state": 4,
        }
        found = resolve(write(model, config=config))
        assert found.conflicts == [] and found.assumed == []
        assert found.value("dropout") == 0.1 and found.value("norm_first") is True
        assert found.value("expand") == 2.0 and found.value("depth") == 2

    def test_partial_sizes_set_the_latent_dimension(self, build, files, backbones, write):
        """The run had 768, whatever stands above; weights of another width are not its own."""
        model = build()
        config = files.config(model, backbones)
        config["models"]["resampler_config"] = {"hidden_dim": 48}
        assert resolve(write(model, config=config)).conflicts == []  # hyper-parameters come first
        found = resolve(write(model, config=config, hyper={"stage": "vision"}))
        assert [(c.field, c.claimed) for c in found.conflicts] == [("models.latent_dimension", 768)]
        wide = build(latent_dimension=768)
        assert resolve(write(wide, config=config, hyper={"stage": "vision"})).conflicts == []

    def test_settings_that_never_reached_the_model(self, build, files, backbones, write):
        model = build()
        config = files.config(model, backbones)
        config["image_processing"] |= {"stitching_mode": "resample", "stitch_interp": "linear"}
        config["training"]["stage_configs"]["vision"]["vicreg_loss_weight"] = 9.0
        config["models"] |= {"use_anyres_e2p_vicreg": True, "system_prompt": "x", "anything": 1}
        found = resolve(write(model, config=config))
        assert found.config.models.stitching_mode == "drop_overlap"
        assert any("stitching_mode" in note for note in found.notes)

    def test_adapters_of_the_finetune_stage(self, build, files, backbones, write):
        model = build(lora={"r": 2, "lora_alpha": 6})
        config = files.config(model, backbones)
        lora = {"enabled": True, "rank": 2, "alpha": 6}
        config["training"]["stage_configs"]["finetune"]["model_config"] = {"lora": lora}
        found = resolve(write(model, config=config, hyper={"stage": "finetune"}))
        assert found.conflicts == []
        assert (found.config.lora.rank, found.config.lora.alpha) == (2, 6)

    def test_names_of_before(self, build, files, backbones, write):
        model = build()
        config = files.config(model, backbones)
        block = config["models"]
        block["vision_model_name"] = block.pop("vision_name")
        block["lm_name"] = block.pop("language_model_name")
        found = resolve(write(model, config=config, hyper={"stage": "finetune"}, data=None))
        assert found.config.models.vision_name == str(backbones.vision["siglip"])
        assert found.config.models.vision_config["num_attention_heads"] == 4
        assert found.config.models.language_model_name == str(backbones.language["qwen2"])

    def test_a_file_that_is_no_configuration(self, build, write, tmp_path):
        path = write(build())
        (tmp_path / "config.yaml").write_text("models: [")
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            resolve(path)

    def test_empty_blocks(self, build, write):
        config = {"models": {"resampler_type": "mlp"}, "lora": None, "generation": None}
        found = resolve(write(build(), config=config))
        assert found.conflicts == []

    def test_configuration_of_a_run_of_today(self, own, tmp_path):
        """It is read in today's names where the metadata is lost, and is no complete record."""
        save_checkpoint(own(), tmp_path / "best.ckpt")
        config = {"models": {"overlap_ratio": 0.25, "resampler_type": "mlp"}, "training": {}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        found = resolve(tmp_path)
        assert found.value("models.overlap_ratio") == 0.5  # the metadata says everything
        strip_metadata(tmp_path / "best.ckpt", tmp_path / "best.ckpt")
        (tmp_path / "checkpoint_metadata.json").unlink()
        found = resolve(tmp_path)
        assert found.sources["models.overlap_ratio"].detail == "config.yaml"
        assert found.value("models.overlap_ratio") == 0.25
        assert "models.stitching_mode" in found.assumed

    def test_unset_is_stated_in_a_run_of_today(self, own, tmp_path):
        save_checkpoint(own(), tmp_path / "whole.ckpt")
        strip_metadata(tmp_path / "whole.ckpt", tmp_path / "best.ckpt")
        for name in ("whole.ckpt", "checkpoint_metadata.json"):
            (tmp_path / name).unlink()
        models = {"resampler_type": "mlp", "tokenizer_name": None, "vision_config": None}
        image = {"image_mean": None, "vision_processor": None, "image_size": None}
        config = {"models": models, "image_processing": image, "training": {}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        found = resolve(tmp_path)
        for name in ("models.tokenizer_name", "image_processing.vision_processor", "image_mean"):
            assert found.value(name) is None
            assert str(found.sources[name]) == "metadata: config.yaml"
            assert not [one for one in found.assumed if one.endswith(name)]
        assert "image_processing.image_std" in found.assumed
        assert found.value("image_processing.image_size") == (16, 16)  # the tower's own

    def test_what_cannot_be_unset_says_nothing(self, own, tmp_path):
        save_checkpoint(own(), tmp_path / "whole.ckpt")
        strip_metadata(tmp_path / "whole.ckpt", tmp_path / "best.ckpt")
        for name in ("whole.ckpt", "checkpoint_metadata.json"):
            (tmp_path / name).unlink()
        config = {"models": {"overlap_ratio": None, "vision_name": None, "stitching_mode": None}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "training": {}}))
        assert {f"models.{name}" for name in ("overlap_ratio", "stitching_mode")} <= {
            *resolve(tmp_path).assumed
        }


class TestModelConfig:
    """The original's own folders: ``config.json`` beside ``pytorch_model.bin``."""

    def block(self, model, files, backbones):
        return {
            **files.model_block(model, backbones),
            "resampler_config": {
                "latent_dimension": 40,
                "dropout": 0.1,
                "num_views": 8,
                **model.sizes,
            },
            "resampler_hidden_dim": None,
            "image_size": [16, 16],
            "max_text_length": 512,
            "use_lora": True,
            "lora_r": 16,
            "lora_target_modules": None,
        }

    @pytest.mark.parametrize("name", ["model_config.json", "config.json", "panovlm_config.json"])
    @pytest.mark.parametrize("nested", [False, True])
    def test_every_name_and_form(self, name, nested, build, files, backbones, tmp_path):
        model = build(stitching_mode="concat", use_vicreg_norm=False)
        torch.save(files.state_dict(model, prefix=""), tmp_path / "pytorch_model.bin")
        block = self.block(model, files, backbones)
        (tmp_path / name).write_text(json.dumps({"models": block} if nested else block))
        found = resolve(tmp_path)
        assert found.conflicts == []
        assert found.config.models.stitching_mode == "concat"
        assert found.sources["stitching_mode"].detail == name
        assert found.config.models.vision_config["num_attention_heads"] == 4
        # It knows no views: what stands there is not taken for a statement about them.
        assert "image_processing.crop_strategy" in found.assumed
        assert "image_processing.use_vision_processor" in found.assumed

    def test_configurations_of_other_things_are_left_alone(self, build, write, tmp_path):
        path = write(build())
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": 9}))
        found = resolve(path)
        assert found.conflicts == []
        assert not any(source.detail == "config.json" for source in found.sources.values())
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
            resolve(path)


class TestAdapterConfig:
    def test_alpha_stands_there_too(self, build, write, tmp_path):
        model = build(lora={"r": 3, "lora_alpha": 12})
        model.language_model.save_pretrained(tmp_path / "lora_weights")
        found = resolve(write(model, hyper={"stage": "finetune"}))
        assert found.config.lora.alpha == 12
        assert found.sources["lora.alpha"].detail == "lora_weights/adapter_config.json"
        assert found.conflicts == []

    def test_a_pattern_is_no_list(self):
        fields = lora_fields({"r": 2, "lora_alpha": 6, "target_modules": ".*q_proj"})
        assert fields == {"lora.rank": 2, "lora.alpha": 6, "lora.dropout": 0.0}

    def test_a_missing_field_is_what_peft_takes_for_it(self, tmp_path):
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
        theirs = LoraConfig.from_pretrained(tmp_path)
        fields = lora_fields(read_adapter_config(tmp_path))
        assert fields["lora.alpha"] == theirs.lora_alpha
        assert fields["lora.dropout"] == theirs.lora_dropout
        assert lora_fields(read_adapter_config(tmp_path / "nowhere")) == {}


class TestUnknownAlpha:
    """The original's own number, whatever the rank; where it has no say, twice the rank."""

    @pytest.mark.parametrize("rank", [2, 5, 40])
    def test_no_document(self, rank, build, write):
        model = build(lora={"r": rank, "lora_alpha": 32})
        path = write(model, hyper=None, data=None)
        found = resolve(path)
        assert (found.config.lora.rank, found.config.lora.alpha) == (rank, 32)
        assert "lora.alpha" in found.assumed

    def test_null_in_the_metadata(self, build, files, backbones, write):
        """That is what stands there for a run without adapters."""
        model = build(lora={"r": 3, "lora_alpha": 32})
        sidecar = files.metadata(model, backbones)
        sidecar["training_config"] |= {"lora_rank": None, "lora_alpha": None}
        found = resolve(write(model, hyper=None, data=None, sidecar=sidecar))
        assert found.config.lora.alpha == 32 and "lora.alpha" in found.assumed

    @pytest.mark.parametrize(
        ("block", "assumed"), [({"use_lora": True, "rank": 3}, False), (None, True)]
    )
    def test_key_missing_in_the_run_configuration(
        self, block, assumed, build, files, backbones, write
    ):
        """A block that is there was read with the trainer's default for what it lacks."""
        model = build(lora={"r": 3, "lora_alpha": 32})
        config = files.config(model, backbones)
        config["lora"] = block
        if block is None:
            del config["lora"]
        found = resolve(write(model, hyper=None, data=None, config=config))
        assert (found.config.lora.rank, found.config.lora.alpha) == (3, 32)
        assert ("lora.alpha" in found.assumed) == assumed

    def test_checkpoints_of_this_library(self, build, files, tmp_path):
        state = files.state_dict(build(lora={"r": 3, "lora_alpha": 6}))
        state["model.layout"] = torch.ones(1, dtype=torch.uint8)
        torch.save({"state_dict": state}, tmp_path / "last.ckpt")
        found = resolve(tmp_path)
        assert found.config.lora.alpha == 6 and "lora.alpha" in found.assumed


def test_documents_state_fields_of_the_recipe(build, files, backbones):
    """Every field that a document states is a field of the recipe."""
    for settings in SPECS.values():
        model = build(**settings)
        known = defaults(model.kind)
        whole = files.metadata(model, backbones)
        extras = {
            "hyper_parameters": files.hyper_parameters(model, backbones),
            "datamodule_hyper_parameters": files.data_parameters(model, backbones),
        }
        read = {
            **documents.from_metadata(whole, "mlp"),
            **documents.from_hyper_parameters(extras, "mlp"),
            **documents.from_model_config(TestModelConfig().block(model, files, backbones)),
        }
        assert read.keys() <= known.keys()
