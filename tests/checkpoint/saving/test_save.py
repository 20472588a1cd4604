"""Checkpoints of today: what is written comes back, whole, stripped, repaired, and offline."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket

import pytest
import torch
from torch.testing import assert_close

from panovlm.checkpoint.documents.document import document as describe
from panovlm.checkpoint.documents.metadata import EMBEDDED, parse
from panovlm.checkpoint.find.locate import SIDECAR, TOKENIZER
from panovlm.checkpoint.probe.compare import compare
from panovlm.checkpoint.probe.record import Probe
from panovlm.checkpoint.repair.metadata import add_metadata
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import (
    describe_model,
    save_checkpoint,
    strip_metadata,
    without_record,
)
from panovlm.config.schema import LoRASettings
from panovlm.errors import CheckpointError, ConfigError, ContradictionError
from panovlm.models.model import PanoramaVLM

load = PanoramaVLM.from_checkpoint
SPECS = {
    "mlp": {},
    "mlp, odd": {"resampler_config": {"hidden_dim": 37, "depth": 2, "use_ln": False}},
    "bimamba": {
        "resampler_type": "bimamba",
        "resampler_config": {"hidden_dim": 33, "depth": 2, "d_state": 5, "expand": 1.37},
    },
    "qformer": {
        "resampler_type": "qformer",
        "resampler_config": {"num_query_tokens": 6, "num_hidden_layers": 2},
    },
    "other settings": {
        "resampler_type": "bimamba",
        "resampler_config": {"hidden_dim": 32, "depth": 1, "norm_first": False},
        "overlap_ratio": 0.25,
        "stitching_mode": "resample",
        "use_projection_positional_encoding": False,
        "use_vicreg_norm": False,
        "use_vicreg_projector": False,
        "use_text_projection": True,
    },
}


def outputs(model):
    generator = torch.Generator().manual_seed(8)
    pixels = torch.randn(2, 3, 3, 16, 16, generator=generator)
    ids = torch.tensor([model.chat().prompt("what is left ?")] * 2)
    with torch.no_grad():
        logits = model(pixels, ids, labels=ids).logits
    return logits, model.generate(pixels, ids, max_new_tokens=4, do_sample=False)


def same(one, other) -> None:
    for name, tensor in without_record(one.state_dict()).items():
        assert torch.equal(tensor, without_record(other.state_dict())[name]), name
    assert one.state_dict().keys() == other.state_dict().keys()
    for ours, theirs in zip(outputs(one), outputs(other), strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def saved(own, tmp_path):
    def of(**settings):
        model = own(**settings)
        save_checkpoint(model, tmp_path / "best.ckpt", stage="finetune")
        return model, tmp_path / "best.ckpt"

    return of


class TestRoundTrip:
    @pytest.mark.parametrize("spec", SPECS)
    def test_whole(self, spec, saved):
        model, path = saved(**SPECS[spec])
        loaded = load(path, strict=True)
        same(loaded, model)
        assert loaded.recipe == model.recipe
        assert loaded.tokenizer.get_vocab() == model.tokenizer.get_vocab()
        found = loaded.resolution
        assert found.conflicts == found.assumed == found.notes == []
        assert found.metadata.stage == "finetune" and found.keys.layout == "panovlm-1"
        assert {s.kind for s in found.sources.values()} == {"metadata"}

    @pytest.mark.parametrize("spec", SPECS)
    def test_either_copy_of_the_metadata_is_enough(self, spec, saved, tmp_path):
        model, path = saved(**SPECS[spec])
        sidecar = tmp_path / SIDECAR
        text = sidecar.read_text()
        sidecar.unlink()
        shutil.rmtree(tmp_path / TOKENIZER)
        inside = load(path, strict=True)
        same(inside, model)
        source = inside.resolution.sources["models.overlap_ratio"]
        assert str(source) == "metadata: metadata inside best.ckpt"
        strip_metadata(path, path)
        sidecar.write_text(text)
        beside = load(path, strict=True, overrides={"system_messages.default": ""})
        assert beside.recipe.models == model.recipe.models
        assert beside.tokenizer is None

    @pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "other settings"])
    def test_from_shapes_alone(self, spec, saved, tmp_path):
        """Stripped of every description, it is the same model where only defaults were lost."""
        model, path = saved(**SPECS[spec])
        bare = tmp_path / "bare"
        bare.mkdir()
        strip_metadata(path, bare / "best.ckpt")
        shutil.copytree(tmp_path / TOKENIZER, bare / TOKENIZER)
        loaded = load(bare)
        same(loaded, model)
        found = loaded.resolution
        assert found.metadata is None and found.keys.layout == "panovlm-1"
        for key in ("hidden_size", "num_hidden_layers"):
            assert found.sources[f"models.vision_config.{key}"].kind == "weights"
        assert "models.vision_config.num_attention_heads" in found.assumed
        assert "models.tokenizer_name" not in found.assumed
        with pytest.raises(CheckpointError, match="strict"):
            load(bare, strict=True)

    def test_adapters(self, own, tmp_path):
        model = own(vicreg_loss_weight=0.5)  # an object of its own
        model.add_adapters(LoRASettings(rank=3, alpha=7, target_modules=("q_proj", "down_proj")))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        save_checkpoint(model.eval(), tmp_path / "last.ckpt")
        loaded = load(tmp_path, strict=True)
        same(loaded, model)
        assert loaded.recipe.lora.alpha == 7 and loaded.recipe.lora.use_lora
        scaling = loaded.language_model.base_model.model.model.layers[0].self_attn.q_proj.scaling
        assert scaling == {"default": 7 / 3}

    def test_a_second_save_is_the_same(self, saved, tmp_path):
        _, path = saved()
        loaded = load(path)
        again = tmp_path / "again"
        again.mkdir()
        save_checkpoint(loaded, again / "best.ckpt", stage="finetune")
        first, second = (json.loads((f / SIDECAR).read_text()) for f in (tmp_path, again))
        assert first.pop("created_at") and second.pop("created_at")
        one, other = (Probe.model_validate(document.pop("probe")) for document in (first, second))
        for part, measured in one.parts.items():
            assert compare(part, measured, other.parts[part], stored="float32") == []
        assert first == second
        same(load(again), loaded)

    def test_an_original_checkpoint_saved_anew(self, build, write, tmp_path):
        """It keeps its layout, names and settings, and now says everything itself."""
        model = build(resampler_type="bimamba", use_vicreg_norm=False)
        loaded = load(write(model))
        again = tmp_path / "again"
        again.mkdir()
        save_checkpoint(loaded, again / "best.ckpt")
        strict = load(again)
        assert strict.recipe == loaded.recipe and strict.recipe.models.layout == "original"
        assert strict.resolution.assumed == loaded.resolution.assumed != []
        pixels = torch.randn(1, 2, 3, 16, 16)
        with torch.no_grad():
            assert_close(strict.vision_tokens(pixels), model.vision_tokens(pixels))

    def test_without_network(self, saved, monkeypatch):
        """A checkpoint carries everything; nothing reaches out."""

        def refuse(*args, **kwargs):
            raise AssertionError("a connection was tried")

        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        model, path = saved(**SPECS["bimamba"])
        same(load(path, strict=True), model)


class TestForeignDocuments:
    """Documents that were written for other weights, or for another run with equal shapes."""

    def foreign(self, own, saved, tmp_path, **settings):
        other = tmp_path / "other"
        other.mkdir()
        save_checkpoint(own(**settings), other / "best.ckpt")
        model, path = saved()
        shutil.copy(other / SIDECAR, tmp_path / SIDECAR)
        return model, path

    def test_a_sidecar_of_other_weights(self, own, saved, tmp_path):
        model, path = self.foreign(own, saved, tmp_path, **SPECS["bimamba"])
        with pytest.raises(ContradictionError, match=r"fingerprint.*written for other weights"):
            load(path)
        loaded = load(path, prefer="weights", strict=True)
        same(loaded, model)
        assert any("written for other weights" in note for note in loaded.resolution.notes)
        with pytest.raises(ContradictionError, match="resampler_type"):
            load(path, prefer="metadata")

    def test_a_sidecar_of_a_run_with_equal_shapes(self, own, saved, tmp_path):
        """No shape shows the overlap: only the copy inside the file tells whose it is."""
        model, path = self.foreign(own, saved, tmp_path, overlap_ratio=0.25)
        with pytest.raises(ContradictionError) as error:
            load(path)
        text = str(error.value)
        assert "models.overlap_ratio: 0.25 (checkpoint_metadata.json) against 0.5 " in text
        assert "--prefer weights" in text and "--prefer metadata" in text
        same(load(path, prefer="weights"), model)
        with pytest.raises(CheckpointError, match="the projector does not compute what it"):
            load(path, prefer="metadata")
        believed = load(path, prefer="metadata", probe=False)
        assert believed.recipe.models.overlap_ratio == 0.25
        assert load(path, overrides={"overlap_ratio": 0.25}).recipe.models.overlap_ratio == 0.25

    def test_one_field_each(self, own, saved, tmp_path):
        model, path = self.foreign(own, saved, tmp_path, overlap_ratio=0.25, pe_temperature=500.0)
        first = {"models.overlap_ratio": "weights"}
        with pytest.raises(ContradictionError, match="its documents contradict") as error:
            load(path, prefer=first)
        assert "overlap_ratio" not in str(error.value) and "pe_temperature" in str(error.value)
        same(load(path, prefer=first | {"models.pe_temperature": "weights"}), model)
        mixed = load(path, prefer=first | {"models.pe_temperature": "metadata"}, probe=False)
        assert mixed.recipe.models.overlap_ratio == 0.5
        assert mixed.recipe.models.pe_temperature == 500.0
        with pytest.raises(ConfigError, match=r"full name of its field: models\.overlap_ratio"):
            load(path, prefer={"overlap_ratio": "weights"})

    def test_a_field_that_the_weights_disprove(self, saved, tmp_path):
        model, path = saved()
        document = json.loads((path.parent / SIDECAR).read_text())
        document["recipe"]["models"]["latent_dimension"] += 8
        (path.parent / SIDECAR).write_text(json.dumps(document))
        name = "models.latent_dimension"
        with pytest.raises(ContradictionError, match=name):
            load(path, prefer={name: "metadata"})
        same(load(path, prefer={name: "weights"}), model)

    def test_a_sidecar_of_another_stage_with_equal_settings(self, saved, tmp_path):
        model, path = saved()
        assert not load(path).resolution.notes
        document = json.loads((path.parent / SIDECAR).read_text())
        own = document["stage"]
        document["stage"] = "another"
        (path.parent / SIDECAR).write_text(json.dumps(document))
        loaded = load(path)
        same(loaded, model)
        assert any("written with another checkpoint" in note for note in loaded.resolution.notes)
        assert describe(loaded.resolution).stage == own

    def test_an_empty_and_a_speechless_sidecar(self, saved):
        model, path = saved()
        sidecar = path.parent / SIDECAR
        for text, told in {"": "is empty", "{}": "says nothing about the model"}.items():
            sidecar.write_text(text)
            loaded = load(path)
            same(loaded, model)
            assert any(told in note for note in loaded.resolution.notes)
            assert add_metadata(path).written and not load(path).resolution.notes

    def test_repair_for_good(self, own, saved, tmp_path):
        model, path = self.foreign(own, saved, tmp_path, **SPECS["bimamba"])
        with pytest.raises(ContradictionError):
            add_metadata(path)
        assert add_metadata(path, prefer="weights").written
        same(load(path, strict=True), model)
        assert not add_metadata(path).written

    def test_a_sidecar_that_is_cut_off(self, saved, tmp_path):
        """Its recipe would look complete, with defaults for what is missing."""
        model, path = saved(**SPECS["other settings"])
        sidecar = tmp_path / SIDECAR
        text = sidecar.read_text()
        sidecar.write_text(text[: text.index('"overlap_ratio"')])
        loaded = load(path, strict=True)
        same(loaded, model)
        assert any("cut off" in note for note in loaded.resolution.notes)
        strip_metadata(path, path)
        with pytest.raises(CheckpointError, match=r"checkpoint_metadata\.json is cut off"):
            load(path)

    def test_a_newer_schema(self, saved, tmp_path):
        _, path = saved()
        document = json.loads((tmp_path / SIDECAR).read_text())
        (tmp_path / SIDECAR).write_text(json.dumps({**document, "schema_version": 2}))
        with pytest.raises(CheckpointError, match=r"schema version 2.*newer PanoVLM"):
            load(path)
        (tmp_path / SIDECAR).write_text(json.dumps({**document, "recipe": {"models": 3}}))
        with pytest.raises(CheckpointError, match=r"checkpoint_metadata\.json: recipe\.models"):
            load(path)

    def test_a_damaged_copy_inside_the_file(self, saved, tmp_path):
        _, path = saved()
        contents = torch.load(path)
        torch.save({**contents, EMBEDDED: contents[EMBEDDED][:100]}, path)
        with pytest.raises(CheckpointError, match=r"metadata inside .* is not JSON"):
            load(path)


class TestAddMetadata:
    def test_a_bare_checkpoint(self, saved, tmp_path):
        model, path = saved()
        strip_metadata(path, path)
        (tmp_path / SIDECAR).unlink()
        before = path.read_bytes()
        assert add_metadata(path, dry_run=True).written is False
        assert not (tmp_path / SIDECAR).exists()
        repair = add_metadata(path)
        assert repair.written and repair.path == tmp_path / SIDECAR
        assert path.read_bytes() == before
        assumed = set(repair.resolution.assumed)
        assert {"models.overlap_ratio", "models.vision_config.num_attention_heads"} <= assumed
        assert not add_metadata(path).written  # idempotent
        loaded = load(path)
        same(loaded, model)
        assert set(loaded.resolution.assumed) == assumed  # assumed stays assumed
        with pytest.raises(CheckpointError, match="overlap_ratio"):
            load(path, strict=True)

    def test_what_the_user_knows_is_assumed_no_more(self, saved, tmp_path):
        _, path = saved()
        strip_metadata(path, path)
        (tmp_path / SIDECAR).unlink()
        add_metadata(path)
        add_metadata(path, overrides={"overlap_ratio": 0.5})
        found = resolve(path)
        assert "models.overlap_ratio" not in found.assumed
        assert found.sources["models.overlap_ratio"].kind == "metadata"
        add_metadata(path, overrides={name: found.value(name) for name in found.assumed})
        load(path, strict=True)

    def test_correcting_what_the_file_says_of_itself(self, saved, tmp_path):
        """The copy inside stays as it is, and is no contradiction from then on."""
        _, path = saved()
        assert not add_metadata(path).written
        assert add_metadata(path, overrides={"overlap_ratio": 0.25}).written
        found = resolve(path)
        assert found.conflicts == [] and found.value("models.overlap_ratio") == 0.25
        assert not add_metadata(path).written
        add_metadata(path, overrides={"overlap_ratio": 0.75})
        assert resolve(path).value("models.overlap_ratio") == 0.75
        add_metadata(path, overrides={"overlap_ratio": 0.5})
        found = resolve(path)
        assert found.conflicts == [] and found.value("models.overlap_ratio") == 0.5

    def test_an_original_run(self, build, files, backbones, write, tmp_path):
        """Everything that its documents say, in one document that says everything."""
        model = build(resampler_type="bimamba", stitching_mode="concat", lora={"r": 4})
        path = write(model, config=files.config(model, backbones))
        before = load(path)
        repair = add_metadata(path)
        assert repair.resolution.assumed == []
        document = parse(json.loads((tmp_path / SIDECAR).read_text()), SIDECAR)
        assert document.assumed == ()
        assert document.training.epoch == 1 and document.training.global_step == 7
        assert document.stage == "finetune"
        (tmp_path / "config.yaml").unlink()
        after = load(path, strict=True)
        assert after.recipe == before.recipe
        assert after.resolution.sources["stitching_mode"].detail == SIDECAR

    def test_over_a_contradicting_original_document(self, build, write, tmp_path):
        path = write(build(), sidecar={"model_config": {"latent_dimension": 768}})
        with pytest.raises(ContradictionError):
            add_metadata(path)
        assert "768" in (tmp_path / SIDECAR).read_text()
        add_metadata(path, prefer="weights")
        assert load(path).recipe.models.latent_dimension == 40

    def test_backbones_become_part_of_the_document(self, build, files, backbones, write, tmp_path):
        """With it the run loads after the backbones' folders are gone."""
        mine = files.Backbones(
            {"siglip": shutil.copytree(backbones.vision["siglip"], tmp_path / "tower")},
            {"qwen2": shutil.copytree(backbones.language["qwen2"], tmp_path / "lm")},
        )
        model = build()
        run = tmp_path / "run"
        path = files.write_run(run, model, mine)
        add_metadata(path)
        shutil.rmtree(tmp_path / "tower")
        shutil.rmtree(tmp_path / "lm")
        loaded = load(path)
        pixels = torch.randn(1, 2, 3, 16, 16)
        with torch.no_grad():
            assert_close(loaded.vision_tokens(pixels), model.vision_tokens(pixels))


def test_the_description_of_a_model(own):
    document = describe_model(own(), experiment_name="x", stage="vision")
    assert document.recipe.models.vision_config["hidden_size"] == 64
    assert document.recipe.models.language_config["head_dim"] == 8
    assert set(document.tokenizer) >= {"tokenizer.json", "tokenizer_config.json"}
    assert parse(json.loads(document.to_json()), "x") == document
    assert document.digest() == parse(json.loads(document.to_json()), "x").digest()


class TestEarlierFingerprints:
    """Documents from before 0.1.0 counted the language model's output layer too."""

    def outdated(self, model, folder, *, stored=True, rename=""):
        """Save a model, and give both copies of its document the earlier fingerprint."""
        path = folder / "last.ckpt"
        save_checkpoint(model, path)
        before = without_record(model.state_dict())
        shapes = {name: list(tensor.shape) for name, tensor in before.items()}
        lines = sorted(f"{name}{rename} {shape}" for name, shape in shapes.items())
        earlier = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
        contents = torch.load(path)
        document = json.loads(contents[EMBEDDED])
        today = document["fingerprint"]
        assert today != earlier
        document["fingerprint"] = earlier
        contents["state_dict"] = without_record(contents["state_dict"])
        contents[EMBEDDED] = json.dumps(document)
        if not stored:
            for name in [n for n in contents["state_dict"] if n.endswith("lm_head.weight")]:
                del contents["state_dict"][name]
        torch.save(contents, path)
        (folder / SIDECAR).write_text(json.dumps(document))
        return path, today

    @pytest.mark.parametrize("stored", [True, False])
    @pytest.mark.parametrize("adapted", [True, False])
    def test_they_are_read_and_renewed(self, adapted, stored, own, tmp_path):
        model = own()
        if adapted:
            save_checkpoint(model, tmp_path / "best.ckpt")
            model = load(tmp_path / "best.ckpt")
            model.add_adapters(LoRASettings(rank=3, alpha=7, target_modules=("q_proj",)))
        folder = tmp_path / "run"
        folder.mkdir()
        path, today = self.outdated(model, folder, stored=stored)
        found = resolve(path)
        assert found.conflicts == [] and found.metadata is not None
        same(load(path), model)
        assert add_metadata(path).written
        assert json.loads((folder / SIDECAR).read_text())["fingerprint"] == today
        assert add_metadata(path).complete

    def test_of_other_weights_they_are_refused(self, own, tmp_path):
        path, _ = self.outdated(own(), tmp_path, rename="_")
        with pytest.raises(ContradictionError, match=r"fingerprint.*written for other weights"):
            load(path)
