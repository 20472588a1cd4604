"""Which source wins, field by field, and what is said about it."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from panovlm.checkpoint.resolve import resolve
from panovlm.errors import CheckpointError, ConfigError, ContradictionError

RUNGS = ("override", "sidecar", "hyper_parameters", "model_config.json", "config.yaml")
ORIGINS = {
    "override": "override",
    "sidecar": "checkpoint_metadata.json",
    "hyper_parameters": "hyper_parameters inside the file",
    "model_config.json": "model_config.json",
    "config.yaml": "config.yaml",
}
# Field -> what each rung says, and the default. A rung that is left out cannot say it.
LADDER = {
    "models.overlap_ratio": {
        "override": 0.125,
        "sidecar": 0.25,
        "hyper_parameters": 0.375,
        "model_config.json": 0.625,
        "config.yaml": 0.75,
        "default": 0.5,
    },
    "image_processing.fov_deg": {
        "override": 50.0,
        "sidecar": 60.0,
        "hyper_parameters": 70.0,
        "config.yaml": 80.0,
        "default": 90.0,
    },
    "models.stitching_mode": {
        "override": "concat",
        "model_config.json": "stride_views",
        "config.yaml": "resample",
        "default": "drop_overlap",
    },
    "models.latent_dimension": dict.fromkeys((*RUNGS, "weights"), 40),
    "models.resampler_config.hidden_dim": dict.fromkeys(
        ("override", "sidecar", "model_config.json", "config.yaml", "weights"), 48
    ),
    "models.resampler_type": dict.fromkeys((*RUNGS, "weights"), "mlp"),
    "lora.alpha": {
        "override": 3.0,
        "sidecar": 5.0,
        "hyper_parameters": 6.0,
        "model_config.json": 7.0,
        "config.yaml": 9.0,
        "default": 32.0,
    },
}


def say(tree: dict, field: str, value, home: dict[str, tuple[str, ...]]) -> None:
    """Write a value into a document at the place that ``home`` gives the field."""
    *path, leaf = home[field]
    for step in path:
        tree = tree.setdefault(step, {})
    tree[leaf] = value


SIDECAR = {
    "models.overlap_ratio": ("model_config", "overlap_ratio"),
    "image_processing.fov_deg": ("training_config", "fov_deg"),
    "models.latent_dimension": ("model_config", "latent_dimension"),
    "models.resampler_config.hidden_dim": ("model_config", "resampler_config", "hidden_dim"),
    "models.resampler_type": ("model_config", "resampler_type"),
    "lora.alpha": ("training_config", "lora_alpha"),
}
HYPER = {
    "models.overlap_ratio": ("hyper_parameters", "model_overlap_ratio"),
    "image_processing.fov_deg": ("datamodule_hyper_parameters", "fov_deg"),
    "models.latent_dimension": ("hyper_parameters", "latent_dimension"),
    "models.resampler_type": ("hyper_parameters", "resampler_type"),
    "lora.alpha": ("hyper_parameters", "lora_alpha"),
}
MODEL_CONFIG = {
    "models.overlap_ratio": ("overlap_ratio",),
    "models.stitching_mode": ("stitching_mode",),
    "models.latent_dimension": ("latent_dimension",),
    "models.resampler_config.hidden_dim": ("resampler_hidden_dim",),
    "models.resampler_type": ("resampler_type",),
    "lora.alpha": ("lora_alpha",),
}


@pytest.fixture(scope="module")
def adapted(build, files):
    """A state dict with adapters, and nothing else."""
    return {"state_dict": files.state_dict(build(lora={"r": 2, "lora_alpha": 4}))}


def write_rungs(folder, contents, field, rungs) -> None:
    said = LADDER[field]
    contents = {**contents, "hyper_parameters": {"stage": "finetune"}}
    if "hyper_parameters" in rungs:
        say(contents, field, said["hyper_parameters"], HYPER)
    torch.save(contents, folder / "last.ckpt")
    if "sidecar" in rungs:
        document = {"model_config": {"resampler_type": "mlp"}}
        say(document, field, said["sidecar"], SIDECAR)
        (folder / "checkpoint_metadata.json").write_text(json.dumps(document))
    if "model_config.json" in rungs:
        document = {"vision_name": None, "resampler_type": "mlp"}
        say(document, field, said["model_config.json"], MODEL_CONFIG)
        (folder / "model_config.json").write_text(json.dumps(document))
    if "config.yaml" in rungs:
        section, *rest = field.split(".")
        value = said["config.yaml"]
        for name in reversed(rest):
            value = {name: value}
        document = {"models": {"resampler_type": "mlp"}}
        document.setdefault(section, {}).update(value)
        if "resampler_config" in document["models"]:
            document["models"]["resampler_config"]["latent_dimension"] = 40
        (folder / "config.yaml").write_text(yaml.safe_dump(document))


@pytest.mark.parametrize("field", LADDER)
def test_every_combination_of_rungs(field, adapted, tmp_path):
    said = LADDER[field]
    rungs = [rung for rung in RUNGS if rung in said]
    for chosen in itertools.chain.from_iterable(
        itertools.combinations(rungs, n) for n in range(len(rungs) + 1)
    ):
        folder = tmp_path / "-".join(["run", *chosen])
        folder.mkdir()
        write_rungs(folder, adapted, field, chosen)
        overrides = {field: said["override"]} if "override" in chosen else None
        found = resolve(folder, overrides)
        assert found.conflicts == []
        winner = chosen[0] if chosen else "weights" if "weights" in said else "default"
        source = found.sources[field]
        assert found.value(field) == said[winner], chosen
        assert found.sources[field.rpartition(".")[2]] == source or field.startswith("image")
        if winner in ORIGINS:
            assert source.detail == ORIGINS[winner], chosen
            assert source.kind == ("override" if winner == "override" else "metadata")
        else:
            assert source.kind == winner
        if winner == "weights":
            assert "resampler_module.resampler.mlp" in source.detail
        assert (field in found.assumed) == (winner == "default")
        weaker = [r for r in chosen[1:] if said[r] != said[winner]]
        if winner != "override":
            noted = [note for note in found.notes if note.startswith(f"{field}: ")]
            assert len(noted) == len(weaker)


class TestAssumed:
    """What nobody knows is listed, and only what has a bearing."""

    def test_a_normal_run(self, build, write):
        """Hyper-parameters tell the views; nothing tells what the projector does."""
        found = resolve(write(build()))
        assert set(found.assumed) == {
            "models.default_generation_prompt",
            "models.fusion_text_limit",
            "models.stitching_mode",
            "models.use_projection_positional_encoding",
            "models.vision_token_fallback_position",
        }
        with pytest.raises(CheckpointError, match=r"strict loading.*\n(.*\n)*.*stitching_mode"):
            found.raise_assumed()

    def test_a_run_with_its_configuration(self, build, files, backbones, write):
        """What config.yaml does not mention had its default for certain."""
        model = build()
        config = files.config(model, backbones)
        for key in ("stitching_mode", "use_projection_positional_encoding", "overlap_ratio"):
            del config["models"][key]
        found = resolve(write(model, config=config))
        assert found.assumed == []
        assert found.sources["stitching_mode"].detail.endswith("config.yaml says nothing else")

    def test_views_that_a_stage_set_for_itself(self, build, files, backbones, write):
        model = build()
        config = files.config(model, backbones)
        config["training"]["stage_configs"]["vision"]["image_processing"] = {"fov_deg": 60}
        assert resolve(write(model, config=config)).assumed == []
        found = resolve(write(model, config=config, data=None))
        assert "image_processing.fov_deg" in found.assumed

    def test_nothing_but_weights(self, build, write):
        """Widths come from shapes; heads, norm order and views nobody knows."""
        found = resolve(write(build(resampler_type="bimamba"), hyper=None, data=None))
        assert {
            "models.resampler_config.norm_first",
            "models.vision_config.num_attention_heads",
            "models.language_config.num_attention_heads",
            "models.overlap_ratio",
            "models.tokenizer_name",
            "image_processing.crop_strategy",
            "image_processing.fov_deg",
        } <= set(found.assumed)
        for idle in (
            "models.pe_temperature",
            "models.stitch_target_cols",
            "models.stitch_interp",
            "image_processing.anyres_patch_size",
            "image_processing.image_mean",
            "models.resampler_config.dropout",
            "models.resampler_config.hidden_dim",
            "models.global_view",
            "lora.alpha",
            "lora.rank",
            "generation.temperature",
        ):
            assert idle not in found.assumed

    @pytest.mark.parametrize(
        ("overrides", "bearing"),
        [
            ({"stitching_mode": "resample"}, "models.stitch_target_cols"),
            ({"use_projection_positional_encoding": True}, "models.pe_temperature"),
            ({"crop_strategy": "anyres_e2p"}, "image_processing.anyres_patch_size"),
            ({"crop_strategy": "anyres_max"}, "image_processing.anyres_max_patches"),
            ({"use_vision_processor": False}, "image_processing.image_mean"),
        ],
    )
    def test_a_field_bears_where_another_has_its_value(self, overrides, bearing, build, write):
        path = write(build(), hyper=None, data=None)
        assert bearing not in resolve(path).assumed
        assert bearing in resolve(path, overrides).assumed

    def test_width_of_an_mlp_without_hidden_stage(self, build, write):
        found = resolve(write(build(resampler={"depth": 1}), hyper=None, data=None))
        assert found.value("depth") == 1
        assert "models.resampler_config.hidden_dim" not in found.assumed
        assert "models.resampler_config.use_ln" not in found.assumed

    def test_heads_of_the_q_former_are_always_eight(self, build, files, backbones, write):
        model = build(resampler_type="qformer")
        sidecar = files.metadata(model, backbones)
        assert sidecar["model_config"]["resampler_config"]["num_attention_heads"] == 12
        found = resolve(write(model, sidecar=sidecar))
        assert found.value("num_attention_heads") == 8
        assert "models.resampler_config.num_attention_heads" not in found.assumed


class TestConflicts:
    """No model can be what metadata and weights say differently."""

    CASES = {
        "resampler_config.hidden_dim": ({"resampler_config": {"hidden_dim": 64}}, 64, 48),
        "resampler_config.depth": ({"resampler_config": {"depth": 2}}, 2, 3),
        "resampler_config.use_ln": ({"resampler_config": {"use_ln": False}}, False, True),
        "latent_dimension": ({"latent_dimension": 768}, 768, 40),
        "resampler_type": ({"resampler_type": "bimamba"}, "bimamba", "mlp"),
    }

    @pytest.mark.parametrize("field", CASES)
    def test_both_sides_are_shown(self, field, build, write):
        said, claimed, observed = self.CASES[field]
        path = write(build(), sidecar={"model_config": {"resampler_type": "mlp", **said}})
        found = resolve(path)
        assert [c.field for c in found.conflicts] == [f"models.{field}"]
        with pytest.raises(ContradictionError) as error:
            found.raise_conflicts()
        text = str(error.value)
        assert f"{claimed!r} (checkpoint_metadata.json)" in text
        assert f"against {observed!r} (weights: " in text
        assert "resampler_module.resampler.mlp" in text or "projector" in text
        assert "--prefer weights" in text and "add-metadata" in text and str(path) in text
        assert "--prefer metadata" not in text  # no model can be as claimed

    @pytest.mark.parametrize("field", CASES)
    def test_the_weights_side(self, field, build, write):
        said, _, observed = self.CASES[field]
        path = write(build(), sidecar={"model_config": {"resampler_type": "mlp", **said}})
        found = resolve(path, prefer="weights")
        assert found.conflicts == []
        assert found.value(f"models.{field}") == observed
        assert found.sources[f"models.{field}"].kind == "weights"
        assert any(f"models.{field}" in n and "preferred" in n for n in found.notes)
        assert resolve(path, prefer="metadata").conflicts != []

    def test_an_override_is_checked_like_a_document(self, build, write):
        found = resolve(write(build()), {"hidden_dim": 64})
        assert [(c.claimed, c.claimed_by) for c in found.conflicts] == [(64, "override")]
        assert found.sources["hidden_dim"].kind == "override"

    def test_a_weaker_document_is_not_asked(self, build, write):
        """Only the strongest claim counts; the hyper-parameters of another stage do no harm."""
        sidecar = {"model_config": {"resampler_type": "mlp", "latent_dimension": 40}}
        path = write(build(), sidecar=sidecar, hyper={"latent_dimension": 768})
        assert resolve(path).conflicts == []

    def test_every_expand_with_the_same_inner_width_agrees(self, build, write):
        model = build(resampler_type="bimamba")  # int(1.75 * 48) = 84
        for expand, fits in ((1.75, True), (1.76, True), (1.8, False)):
            said = {"resampler_type": "bimamba", "resampler_config": {"expand": expand}}
            found = resolve(write(model, sidecar={"model_config": said}))
            assert (found.conflicts == []) == fits
            assert found.value("expand") == expand

    def test_adapters_of_another_rank(self, build, files, backbones, write):
        model = build(lora={"r": 3, "lora_alpha": 6})
        hyper = files.hyper_parameters(model, backbones, lora_rank=16)
        found = resolve(write(model, hyper=hyper))
        assert [(c.field, c.claimed, c.observed) for c in found.conflicts] == [("lora.rank", 16, 3)]

    def test_targets_that_name_no_layer(self, build, files, backbones, write):
        """PEFT adapts what it finds; the rest of the list says nothing about these weights."""
        model = build(lora={"r": 2, "target_modules": ["q_proj", "up_proj"]})
        config = files.config(model, backbones)
        config["lora"] |= {"rank": 2, "target_modules": ["up_proj", "self_attn.q_proj", "qkv_proj"]}
        path = write(model, config=config, hyper=files.hyper_parameters(model, backbones))
        found = resolve(path)
        assert found.conflicts == []
        assert found.value("target_modules") == ("q_proj", "up_proj")
        config["lora"]["target_modules"] = ["q_proj"]
        assert [c.field for c in resolve(write(model, config=config)).conflicts] == [
            "lora.target_modules"
        ]

    def test_another_backbone_under_the_name(self, build, files, backbones, write, tmp_path):
        """The folder that the run named holds another model by now."""
        model = build()
        folder = files.write_vision(
            tmp_path / "other",
            {**files.VISION["siglip"], "vision_config": {**files.VIT, "intermediate_size": 60}},
        )
        hyper = files.hyper_parameters(model, backbones, vision_name=str(folder))
        found = resolve(write(model, hyper=hyper))
        assert [(c.field, c.claimed, c.observed) for c in found.conflicts] == [
            ("models.vision_config.intermediate_size", 60, 44)
        ]


class TestOverrides:
    def test_names(self, build, write):
        path = write(build())
        for name in ("overlap_ratio", "models.overlap_ratio"):
            found = resolve(path, {name: 0.1})
            assert found.config.models.overlap_ratio == 0.1
            assert str(found.sources["models.overlap_ratio"]) == "override: override"

    def test_unknown_and_wrong(self, build, write):
        path = write(build())
        with pytest.raises(ConfigError, match="overlap_ratio"):
            resolve(path, {"overlap_rato": 0.1})
        with pytest.raises(CheckpointError, match=r"overlap_ratio.*less than 1"):
            resolve(path, {"overlap_ratio": 7})

    def test_a_backbone_whose_folder_is_gone(self, build, files, backbones, write):
        """Its own config.json mends it, with the vocabulary from before training."""
        model = build()
        hyper = files.hyper_parameters(
            model, backbones, vision_name="/gone/siglip", language_model_name="/gone/qwen"
        )
        path = write(model, hyper=hyper)
        found = resolve(path)
        assert found.config.models.vision_config is None
        assert "not on this machine" in found.sources["models.vision_config"].detail
        configs = {
            "models.vision_config": backbones.vision["siglip"],
            "models.language_config": backbones.language["qwen2"],
        }
        given = {k: json.loads((v / "config.json").read_text()) for k, v in configs.items()}
        found = resolve(path, given)
        assert found.conflicts == []
        assert found.config.models.vision_config["num_attention_heads"] == 4
        assert found.config.models.language_config["vocab_size"] == len(model.tokenizer)
        found = resolve(path, {"models.vision_name": str(backbones.vision["siglip"])})
        assert found.config.models.vision_config["num_attention_heads"] == 4

    def test_a_single_field_of_a_backbone(self, build, files, backbones, write):
        """What no shape tells can be settled field by field, as the list of assumed ones asks."""
        path = write(build(), hyper=None, data=None)
        name = "models.vision_config.num_attention_heads"
        assert name in resolve(path).assumed
        found = resolve(path, {name: 4})
        assert found.config.models.vision_config["num_attention_heads"] == 4
        assert name not in found.assumed and found.sources[name].kind == "override"
        found = resolve(path, {"models.vision_config.intermediate_size": 99})
        assert [(c.claimed, c.observed) for c in found.conflicts] == [(99, 44)]
        hyper = files.hyper_parameters(build(), backbones, vision_name="/gone/siglip")
        with pytest.raises(CheckpointError, match=r"give it whole as models\.vision_config"):
            resolve(write(build(), hyper=hyper), {name: 4})


class TestBackbones:
    def test_named_configurations_are_read(self, build, write):
        found = resolve(write(build(vision="clip", language="llama")))
        assert found.config.models.vision_config["model_type"] == "clip_vision_model"
        assert found.config.models.language_config["rms_norm_eps"] == 1e-5
        assert found.config.image_processing.vision_processor["image_mean"] == [0.5, 0.5, 0.5]
        assert found.config.image_processing.image_size == (16, 16)

    def test_an_unset_image_size_is_that_of_the_processor(
        self, build, files, backbones, write, tmp_path
    ):
        """DINOv2's configuration says 518, and its processor gives 224."""
        model = build(vision="dinov2", language="llama")
        tower = tmp_path / "dinov2"
        shutil.copytree(backbones.vision["dinov2"], tower)
        crop = {"do_center_crop": True, "crop_size": {"height": 12, "width": 12}}
        processor = {**files.PROCESSOR, "size": {"shortest_edge": 14}, **crop}
        (tower / "preprocessor_config.json").write_text(json.dumps(processor))
        hyper = files.hyper_parameters(model, backbones, vision_name=str(tower))
        for size, expected in {None: (12, 12), 20: (20, 20)}.items():
            data = files.data_parameters(model, backbones, image_size=size)
            found = resolve(write(model, hyper=hyper, data=data))
            assert found.config.image_processing.image_size == expected
        overridden = resolve(found.path, {"image_processing.image_size": 24})
        assert overridden.config.image_processing.image_size == (24, 24)

    @pytest.mark.parametrize("vision", ["siglip", "siglip_vision", "clip", "dinov2"])
    def test_unnamed_ones_are_inferred(self, vision, build, write):
        found = resolve(write(build(vision=vision), hyper=None, data=None))
        tower = found.config.models.vision_config
        assert (tower["hidden_size"], tower["num_hidden_layers"], tower["patch_size"]) == (32, 2, 4)
        assert found.config.image_processing.image_size == (16, 16)
        assert "models.vision_config.num_attention_heads" in found.assumed
        assert found.sources["models.vision_config.hidden_size"].kind == "weights"
        assert found.config.models.vision_name.startswith("unnamed-")

    def test_empty_names_are_no_folder(self, build, write, monkeypatch, backbones):
        """An empty path would mean the working directory, whatever lies there."""
        monkeypatch.chdir(backbones.vision["clip"])
        found = resolve(write(build(), hyper={"vision_name": ""}))
        assert found.config.models.vision_config is None


def test_adapters_in_their_own_folder_are_not_guessed_about(build, write, tmp_path):
    path = write(build())
    (tmp_path / "lora_weights").mkdir()
    with pytest.raises(CheckpointError, match=r"lora_weights.*lora\.use_lora=false"):
        resolve(path)
    assert resolve(path, {"lora.use_lora": False}).config.lora.use_lora is False


def test_resolving_needs_no_torch(build, files, backbones, write):
    """Login nodes and file servers have none; and it must start at once."""
    model = build(resampler_type="bimamba", lora={"r": 2})
    config = files.config(model, backbones)
    config["lora"]["rank"] = 2
    sidecar = files.metadata(model, backbones)
    path = write(
        model,
        config=config,
        sidecar=sidecar,
        hyper=files.hyper_parameters(model, backbones, lora_rank=2),
    )
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'numpy', 'lightning', 'peft', 'pydantic'):\n"
        "    sys.modules[name] = None\n"
        "from panovlm.checkpoint.report.describe import as_text\n"
        "from panovlm.checkpoint.resolve import resolve\n"
        "found = resolve(sys.argv[1])\n"
        "print(as_text(found))\n"
        "assert not found.conflicts, found.conflicts\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "verdict: loads" in done.stdout
