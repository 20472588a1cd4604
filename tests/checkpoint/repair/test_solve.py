"""Settings that were lost or changed are found again by what the model computed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from panovlm.checkpoint.documents.metadata import EMBEDDED
from panovlm.checkpoint.find.locate import SIDECAR
from panovlm.checkpoint.probe.measure import measure_prompt
from panovlm.checkpoint.probe.record import ENTRY
from panovlm.checkpoint.repair import solve as module
from panovlm.checkpoint.repair.solve import solve
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import save_checkpoint, without_record
from panovlm.config.schema import LoRASettings
from panovlm.errors import CheckpointError, ContradictionError
from panovlm.models.model import PanoramaVLM

load = PanoramaVLM.from_checkpoint
BIMAMBA = {
    "resampler_type": "bimamba",
    "resampler_config": {"hidden_dim": 32, "depth": 2, "d_state": 4},
}
LOOP = {
    "resampler_type": "bimamba",
    # With one tap nothing but the state crosses from one view to the next.
    "resampler_config": {"hidden_dim": 32, "depth": 1, "d_conv": 1, "cross_view": True},
}
POOL = {
    "resampler_type": "spatial_pool",
    "resampler_config": {"rows": 2, "columns": 3},
    "latent_dimension": 64,
}
PERCEIVER = {
    "resampler_type": "perceiver",
    "resampler_config": {"num_latents": 6, "hidden_dim": 48, "num_attention_heads": 2},
}
LLAMA = {
    "language": {
        "model_type": "llama",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
}
ROPE = {"rope_type": "default", "rope_theta": 1e6}
TOWER, LANGUAGE = "models.vision_config", "models.language_config"


@pytest.fixture(scope="module")
def originals(own, tmp_path_factory):
    written = {}

    def of(**settings):
        key = repr(sorted(settings.items()))
        if key not in written:
            folder = tmp_path_factory.mktemp("saved")
            save_checkpoint(own(**settings), folder / "best.ckpt")
            written[key] = folder / "best.ckpt"
        return written[key]

    return of


@pytest.fixture
def wrong(originals, tmp_path):
    """A checkpoint of which one document is left, with wrong settings in it."""

    def of(fields, **settings):
        path = tmp_path / "best.ckpt"
        contents = torch.load(originals(**settings), weights_only=True)
        document = json.loads(contents.pop(EMBEDDED))
        for name, value in fields.items():
            *way, leaf = name.split(".")
            place = document["recipe"]
            for key in way:
                place = place[key]
            assert place[leaf] != value
            place[leaf] = value
        contents["state_dict"] = without_record(contents["state_dict"])
        torch.save(contents, path)
        (tmp_path / SIDECAR).write_text(json.dumps(document))
        return path

    return of


def outcomes(found):
    return {s.part: s.outcome for s in found.parts if s.outcome != "agrees"}


@pytest.mark.parametrize(
    ("part", "model", "fields"),
    [
        ("tower", {}, {f"{TOWER}.num_attention_heads": 2}),
        (
            "tower",
            {},
            {
                f"{TOWER}.num_attention_heads": 4,
                f"{TOWER}.hidden_act": "quick_gelu",
                f"{TOWER}.layer_norm_eps": 1e-5,
            },
        ),
        ("resampler", BIMAMBA, {"models.resampler_config.norm_first": False}),
        ("resampler", BIMAMBA, {"models.resampler_config.cross_view": True}),
        ("resampler", LOOP, {"models.resampler_config.cross_view": False}),
        ("resampler", POOL, {"models.resampler_config.mode": "max"}),
        ("resampler", PERCEIVER, {"models.resampler_config.num_attention_heads": 4}),
        ("projector", {}, {"models.use_projection_positional_encoding": False}),
        ("projector", {}, {"models.overlap_ratio": 0.25, "models.stitching_mode": "concat"}),
        ("projector", {}, {"models.pe_temperature": 77.0}),
        ("language", {}, {"models.vision_token_fallback_position": "suffix"}),
        ("language", {}, {f"{LANGUAGE}.rope_parameters": ROPE}),
        (
            "language",
            LLAMA,
            {
                f"{LANGUAGE}.num_attention_heads": 8,
                f"{LANGUAGE}.num_key_value_heads": 4,
                f"{LANGUAGE}.head_dim": 4,
                f"{LANGUAGE}.rms_norm_eps": 1e-5,
            },
        ),
        ("preprocessing", {}, {"image_processing.fov_deg": 70.0}),
        ("preprocessing", {}, {"image_processing.normalize": False}),
        ("prompt", {}, {"system_messages.default": "what is left"}),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_found_and_mended(part, model, fields, wrong, originals):
    path = wrong(fields, **model)
    with pytest.raises(CheckpointError, match="does not compute what it computed"):
        load(path)
    before = [p.read_bytes() for p in (path, path.parent / SIDECAR)]
    found = solve(path)
    assert outcomes(found) == {part: "solved"} and found.complete
    assert [p.read_bytes() for p in (path, path.parent / SIDECAR)] == before
    right = json.loads((originals(**model).parent / SIDECAR).read_text())["recipe"]
    for name, value in found.settled.items():
        place = right
        for key in name.split("."):
            place = place[key]
        assert place == value, name
    assert found.settled.keys() == fields.keys()
    assert found.write().written
    assert path.read_bytes() == before[0]
    assert load(path, strict=True).resolution.notes == []
    again = solve(path)
    assert outcomes(again) == {} and again.settled == {} and not again.write().written


def test_a_file_that_lost_its_document(originals, tmp_path):
    """The usual values reproduce the probe and the other ones do not: nothing is assumed then."""
    source = originals(**BIMAMBA)
    contents = torch.load(source, weights_only=True)
    state = without_record(contents["state_dict"])
    torch.save({"state_dict": state, ENTRY: contents[ENTRY]}, tmp_path / "best.ckpt")
    shutil.copytree(source.parent / "tokenizer", tmp_path / "tokenizer")
    assumed = resolve(tmp_path).assumed
    found = solve(tmp_path)
    assert outcomes(found) == {} and found.complete
    assert (
        {
            "models.overlap_ratio",
            "models.resampler_config.norm_first",
            f"{TOWER}.num_attention_heads",
            f"{LANGUAGE}.rms_norm_eps",
            "image_processing.crop_strategy",
            "system_messages.default",
            "models.default_generation_prompt",
        }
        <= found.settled.keys()
        <= set(assumed)
    )
    found.write()
    left = resolve(tmp_path)
    assert set(left.assumed) == set(assumed) - found.settled.keys()
    # What no line of text can show stays assumed.
    assert f"{LANGUAGE}.max_position_embeddings" in left.assumed
    assert "repair" in left.how_to_settle()


def test_the_scale_of_adapters(own, tmp_path):
    model = own(vicreg_loss_weight=0.0625)  # an object of its own
    model.add_adapters(LoRASettings(rank=4, alpha=4, target_modules=("q_proj", "up_proj")))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    save_checkpoint(model.eval(), tmp_path / "best.ckpt")
    contents = torch.load(tmp_path / "best.ckpt", weights_only=True)
    del contents[EMBEDDED]
    contents["state_dict"] = without_record(contents["state_dict"])
    torch.save(contents, tmp_path / "best.ckpt")
    (tmp_path / SIDECAR).unlink()
    with pytest.raises(CheckpointError, match=r"the language model does not compute"):
        load(tmp_path)
    found = solve(tmp_path)
    assert outcomes(found) == {"language": "solved"} and found.settled["lora.alpha"] == 4


class TestTwoDocuments:
    """The one beside the file contradicts the one inside; the probe tells which is right."""

    @pytest.fixture
    def contradicting(self, originals, tmp_path):
        path = shutil.copytree(originals().parent, tmp_path / "run") / "best.ckpt"
        document = json.loads((path.parent / SIDECAR).read_text())
        document["recipe"]["models"]["overlap_ratio"] = 0.123
        document["recipe"]["models"]["pe_temperature"] = 7.0
        document["recipe"]["models"]["pe_spatial_encoding_type"] = "none"
        (path.parent / SIDECAR).write_text(json.dumps(document))
        return path

    def test_the_true_one_is_found(self, contradicting):
        with pytest.raises(ContradictionError):
            load(contradicting)
        found = solve(contradicting)
        assert outcomes(found) == {"projector": "solved"}
        assert found.settled == {
            "models.overlap_ratio": 0.5,
            "models.pe_temperature": 10000.0,
            "models.pe_spatial_encoding_type": "sinusoidal",
        }
        found.write()
        assert load(contradicting).resolution.notes == []

    def test_what_weights_disprove_stays_a_contradiction(self, contradicting):
        document = json.loads((contradicting.parent / SIDECAR).read_text())
        document["recipe"]["models"]["latent_dimension"] = 41
        (contradicting.parent / SIDECAR).write_text(json.dumps(document))
        with pytest.raises(ContradictionError, match="latent_dimension"):
            solve(contradicting)


def test_the_runs_config_is_asked(wrong):
    """A value that nobody would guess, and the file of the experiment beside the checkpoint."""
    path = wrong({"system_messages.default": "red ball"})
    (path.parent / "config.yaml").write_text(
        "training: {stage_configs: {vision: {}}}\nsystem_messages: {default: what is left}\n"
    )
    contents = torch.load(path, weights_only=True)
    probe = json.loads(contents[ENTRY])
    truth = load(path, overrides={"system_messages.default": "what is left"}, probe=False)
    probe["prompt"] = measure_prompt(truth.recipe, truth.tokenizer)
    torch.save({**contents, ENTRY: json.dumps(probe)}, path)
    found = solve(path)
    assert found.settled == {"system_messages.default": "what is left"}


class TestWithoutSolution:
    def test_a_value_that_is_not_usual(self, own, wrong, tmp_path):
        path = wrong({"image_processing.fov_deg": 70.0}, image={"fov_deg": 83.0})
        found = solve(path)
        assert outcomes(found) == {"preprocessing": "unsolved"} and not found.complete
        assert found.settled == {}
        stated = solve(path, overrides={"fov_deg": 83.0})
        assert outcomes(stated) == {}
        assert stated.write().written
        load(path)

    def test_other_weights(self, wrong):
        path = wrong({"models.overlap_ratio": 0.25})
        contents = torch.load(path, weights_only=True)
        contents["state_dict"]["model.projector.linear.bias"] += 1
        torch.save(contents, path)
        found = solve(path)
        assert outcomes(found) == {"projector": "other weights"} and not found.complete

    def test_several_that_the_probe_cannot_tell_apart(self, wrong):
        """Without positions, these overlaps leave out the same columns."""
        plain = {"use_projection_positional_encoding": False}
        path = wrong({"models.overlap_ratio": 0.0}, **plain)
        found = solve(path)
        assert outcomes(found) == {"projector": "ambiguous"} and not found.complete
        (solution,) = [s for s in found.parts if s.part == "projector"]
        overlaps = [c["models.overlap_ratio"] for c in solution.changes]
        assert 0.5 in overlaps and len(overlaps) > 1
        assert found.settled == {}

    def test_no_probe(self, wrong):
        path = wrong({"models.overlap_ratio": 0.25})
        contents = torch.load(path, weights_only=True)
        del contents[ENTRY]
        torch.save(contents, path)
        document = json.loads((path.parent / SIDECAR).read_text())
        (path.parent / SIDECAR).write_text(json.dumps({**document, "probe": None}))
        with pytest.raises(CheckpointError, match=r"has no probe.*--set FIELD=VALUE"):
            solve(path)

    def test_the_search_has_an_end(self, wrong, monkeypatch):
        monkeypatch.setattr(module, "MOST_TRIALS", 5)
        found = solve(wrong({"image_processing.fov_deg": 70.0}))
        (solution,) = [s for s in found.parts if s.outcome == "unsolved"]
        assert solution.tried == 5 and solution.confirmed == []
