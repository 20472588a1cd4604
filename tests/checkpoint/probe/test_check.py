"""The golden probe at load: what no shape shows is found out, and nothing else is."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from panovlm.checkpoint.documents.document import document
from panovlm.checkpoint.documents.metadata import EMBEDDED
from panovlm.checkpoint.find.locate import SIDECAR
from panovlm.checkpoint.probe.record import ENTRY, Probe
from panovlm.checkpoint.repair.metadata import add_metadata
from panovlm.checkpoint.repair.solve import solve
from panovlm.checkpoint.saving.convert import convert
from panovlm.checkpoint.saving.save import save_checkpoint, without_record
from panovlm.config.schema import LoRASettings
from panovlm.errors import CheckpointError
from panovlm.models.language.lora import merge_lora
from panovlm.models.model import PanoramaVLM

load = PanoramaVLM.from_checkpoint

BIMAMBA = {
    "resampler_type": "bimamba",
    "resampler_config": {"hidden_dim": 32, "depth": 2, "d_state": 4},
}
QFORMER = {
    "resampler_type": "qformer",
    "resampler_config": {"num_query_tokens": 9, "num_hidden_layers": 1},
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
CUBE = {"image": {"crop_strategy": "cubemap"}}
TOWER, LANGUAGE = "models.vision_config", "models.language_config"
ROPE = {"rope_type": "default", "rope_theta": 1e6}
RESAMPLER, IMAGE = "models.resampler_config", "image_processing"
EDITS = [
    ("vision tower", {}, {f"{TOWER}.num_attention_heads": 2}),
    ("vision tower", {}, {f"{TOWER}.num_attention_heads": 16}),
    ("vision tower", {}, {f"{TOWER}.hidden_act": "gelu"}),
    ("vision tower", {}, {f"{TOWER}.hidden_act": "quick_gelu"}),
    ("vision tower", {}, {f"{TOWER}.layer_norm_eps": 1e-5}),
    ("resampler", BIMAMBA, {f"{RESAMPLER}.norm_first": False}),
    ("resampler", QFORMER, {f"{RESAMPLER}.num_attention_heads": 4}),
    ("projector", {}, {"models.use_projection_positional_encoding": False}),
    ("projector", {}, {"models.pe_temperature": 5000.0}),
    ("projector", {}, {"models.pe_spatial_encoding_type": "none"}),
    ("projector", {}, {"models.pe_enable_continuity": False}),
    ("projector", {}, {"models.stitching_mode": "concat"}),
    ("projector", {}, {"models.stitching_mode": "resample"}),
    ("projector", {}, {"models.overlap_ratio": 0.45}),
    ("projector", {}, {"models.global_view": "first_view"}),
    ("language model", {}, {f"{LANGUAGE}.rope_parameters": ROPE}),
    ("language model", {}, {f"{LANGUAGE}.rms_norm_eps": 1e-5}),
    ("language model", {}, {f"{LANGUAGE}.hidden_act": "gelu"}),
    ("language model", {}, {"models.vision_token_fallback_position": "suffix"}),
    (
        "language model",
        LLAMA,
        {
            f"{LANGUAGE}.num_attention_heads": 8,
            f"{LANGUAGE}.num_key_value_heads": 4,
            f"{LANGUAGE}.head_dim": 4,
        },
    ),
    ("image preprocessing", {}, {f"{IMAGE}.image_mean": [0.5, 0.5, 0.5]}),
    ("image preprocessing", {}, {f"{IMAGE}.image_mean": [0.485, 0.456, 0.407]}),
    ("image preprocessing", {}, {f"{IMAGE}.image_std": [0.5, 0.5, 0.5]}),
    ("image preprocessing", {}, {f"{IMAGE}.normalize": False}),
    ("image preprocessing", {}, {f"{IMAGE}.fov_deg": 89.0}),
    ("image preprocessing", {}, {f"{IMAGE}.overlap_ratio": 0.25}),
    ("image preprocessing", CUBE, {f"{IMAGE}.crop_strategy": "e2p"}),
    ("prompt", {}, {"system_messages.default": "what is left"}),
    ("prompt", {}, {"models.default_generation_prompt": "what is left"}),
]  # fmt: skip


class TestWhatNoShapeShows:
    @pytest.mark.parametrize(("part", "model", "fields"), EDITS, ids=str)
    def test_is_found_out(self, part, model, fields, saved):
        path = saved(fields, **model)
        with pytest.raises(CheckpointError) as error:
            load(path)
        text = str(error.value)
        assert f"{path}: the {part} does not compute what it computed" in text
        assert "Its weights are those of then" in text
        assert "Also different" not in text
        for name in fields:
            assert f"  {name} = " in text
        assert f"`panovlm repair {path} --solve`" in text and "--no-probe" in text

    @pytest.mark.parametrize("model", [{}, BIMAMBA, QFORMER, LLAMA, CUBE], ids=str)
    def test_no_false_alarm(self, model, saved):
        loaded = load(saved(**model), strict=True)
        assert loaded.resolution.notes == []

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize("model", [BIMAMBA, QFORMER], ids=str)
    def test_in_another_number_type(self, dtype, model, saved):
        assert load(saved(**model), dtype=dtype).resolution.notes == []
        with pytest.raises(CheckpointError, match="the vision tower does not compute"):
            load(saved({f"{TOWER}.hidden_act": "gelu"}, **model), dtype=dtype)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_file_of_rounded_weights(self, dtype, saved):
        """Another program halved it. Less is seen then, but no false alarm is given."""
        for edits, part in (
            ({}, None),
            ({f"{TOWER}.layer_norm_eps": 1e-5}, "vision tower"),
            ({f"{RESAMPLER}.norm_first": False}, "resampler"),
            ({"models.overlap_ratio": 0.25}, "projector"),
            ({"models.pe_temperature": 1000.0}, "projector"),
            ({f"{LANGUAGE}.rope_parameters": ROPE}, "language model"),
            ({f"{LANGUAGE}.hidden_act": "gelu"}, "language model"),
        ):
            path = saved(edits, **BIMAMBA)
            contents = torch.load(path, weights_only=True)
            for name, tensor in contents["state_dict"].items():
                if tensor.is_floating_point():
                    contents["state_dict"][name] = tensor.to(dtype)
            torch.save(contents, path)
            for target in (None, torch.float32):
                if part is None:
                    load(path, dtype=target)
                    continue
                with pytest.raises(CheckpointError, match=f"the {part} does not compute"):
                    load(path, dtype=target)

    def test_several_parts(self, saved):
        edits = {f"{TOWER}.num_attention_heads": 2, "models.overlap_ratio": 0.25}
        with pytest.raises(CheckpointError) as error:
            load(saved(edits))
        assert "the vision tower does not compute" in str(error.value)
        assert "Also different: projector." in str(error.value)

    def test_unprobed(self, saved):
        loaded = load(saved({"models.overlap_ratio": 0.25}), probe=False)
        assert loaded.recipe.models.overlap_ratio == 0.25


class TestOnPurpose:
    """Settings that the caller changes may change what they reach, and nothing else."""

    @pytest.mark.parametrize(
        ("part", "overrides"),
        [
            ("projector", {"models.overlap_ratio": 0.25}),
            ("projector", {"stitching_mode": "concat", "pe_spatial_encoding_type": "none"}),
            ("vision tower", {f"{TOWER}.num_attention_heads": 2}),
            ("language model", {f"{LANGUAGE}.rms_norm_eps": 1e-5}),
            ("image preprocessing", {"fov_deg": 60}),
            ("prompt", {"system_messages.default": "what is left"}),
        ],
    )  # fmt: skip
    def test_is_a_note(self, part, overrides, saved):
        (note,) = load(saved(), overrides=overrides).resolution.notes
        assert f"the {part} computes something else" in note and "you gave" in note

    def test_what_it_does_not_reach_is_an_error(self, saved):
        path = saved({f"{TOWER}.num_attention_heads": 2})
        with pytest.raises(CheckpointError) as error:
            load(path, overrides={"models.overlap_ratio": 0.25})
        assert "the vision tower does not compute" in str(error.value)
        assert "projector" not in str(error.value)

    def test_stating_what_the_document_says_excuses_nothing(self, saved):
        path = saved({"models.overlap_ratio": 0.25})
        with pytest.raises(CheckpointError, match="the projector does not compute"):
            load(path, overrides={"models.overlap_ratio": 0.25})
        right = load(path, overrides={"models.overlap_ratio": 0.5})
        assert right.resolution.notes == []

    def test_without_document_a_wrong_statement_is_an_error(self, saved):
        path = saved(**BIMAMBA)
        contents = torch.load(path, weights_only=True)
        del contents[EMBEDDED]
        contents["state_dict"] = without_record(contents["state_dict"])
        torch.save(contents, path)
        load(path)  # the defaults that are assumed are right
        with pytest.raises(CheckpointError) as error:
            load(path, overrides={"norm_first": False})
        assert f"  {RESAMPLER}.norm_first = False (override: override)" in str(error.value)


class TestWhoseProbeItIs:
    def test_changed_weights(self, saved):
        path = saved()
        contents = torch.load(path, weights_only=True)
        contents["state_dict"]["model.projector.linear.weight"] *= 1.01
        torch.save(contents, path)
        with pytest.raises(CheckpointError) as error:
            load(path)
        text = str(error.value)
        assert "The weights of the projector are not those that were probed" in text
        assert "damaged, edited or rounded" in text and "Likely ones" not in text

    def test_best_and_last_share_a_document(self, own, tmp_path):
        """The probe of one is not held against the other."""
        model = own(vicreg_loss_weight=0.25)  # an object of its own
        save_checkpoint(model, tmp_path / "last.ckpt")
        with torch.no_grad():
            model.projector.linear.weight.mul_(1.5)
        save_checkpoint(model, tmp_path / "best.ckpt")
        for name in ("best.ckpt", "last.ckpt"):
            assert load(tmp_path / name).resolution.notes == []
        contents = torch.load(tmp_path / "last.ckpt", weights_only=True)
        inside = json.loads(contents[EMBEDDED])
        inside["probe"] = None
        described = {"state_dict": contents["state_dict"], EMBEDDED: json.dumps(inside)}
        torch.save(described, tmp_path / "last.ckpt")
        (note,) = load(tmp_path / "last.ckpt").resolution.notes
        assert note == (
            "probe: projector not compared, the probe in the document beside it is of other weights"
        )

    @pytest.mark.parametrize("strict", [True, False])
    def test_a_document_that_may_be_of_another_run(self, strict, own, tmp_path):
        """Same names and shapes, other settings; nothing in the file says what is right."""
        save_checkpoint(own(), tmp_path / "best.ckpt")
        other = own(overlap_ratio=0.25)
        state = {
            f"model.{n}": 1.5 * t if "linear" in n else t
            for n, t in without_record(other.state_dict()).items()
        }
        torch.save({"state_dict": state}, tmp_path / "best.ckpt")
        with pytest.raises(CheckpointError) as error:
            load(tmp_path / "best.ckpt", strict=strict)
        assert "the document beside it may be of another run" in str(error.value)
        loaded = load(tmp_path / "best.ckpt", strict=strict, probe=False)
        assert loaded.recipe.models.overlap_ratio == 0.5
        document = json.loads((tmp_path / SIDECAR).read_text())
        document["recipe"]["models"]["vision_config"]["num_attention_heads"] = 2
        (tmp_path / SIDECAR).write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match="the vision tower does not compute"):
            load(tmp_path / "best.ckpt")

    @pytest.mark.parametrize("left", [(ENTRY,), (EMBEDDED,), (SIDECAR,)])
    def test_one_copy_is_enough(self, left, originals, tmp_path):
        source = originals()
        contents = torch.load(source, weights_only=True)
        names = ("panovlm_tokenizer", "state_dict", *left)
        kept = {name: contents[name] for name in names if name in contents}
        kept["state_dict"] = without_record(kept["state_dict"])
        torch.save(kept, tmp_path / "best.ckpt")
        document = json.loads((source.parent / SIDECAR).read_text())
        document["recipe"]["models"]["overlap_ratio"] = 0.25
        if left == (EMBEDDED,):
            kept[EMBEDDED] = json.dumps(document)
            torch.save(kept, tmp_path / "best.ckpt")
        elif left == (ENTRY,):
            document["probe"] = None
        if left != (EMBEDDED,):
            (tmp_path / SIDECAR).write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match="the projector does not compute"):
            load(tmp_path)

    def test_a_checkpoint_without_one(self, saved):
        """As those were that were written before there were probes."""
        path = saved({"models.overlap_ratio": 0.25})
        contents = torch.load(path, weights_only=True)
        document = json.loads(contents[EMBEDDED])
        del document["probe"], contents[ENTRY]
        torch.save({**contents, EMBEDDED: json.dumps(document)}, path)
        loaded = load(path, strict=True)
        assert loaded.recipe.models.overlap_ratio == 0.25 and loaded.resolution.notes == []

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("{", "not JSON"),
            ("[1]", "no JSON object"),
            ("{}", "inputs: is required"),
            ('{"version": "1"}', "version"),
        ],
    )
    def test_a_damaged_one(self, text, told, saved):
        path = saved()
        torch.save({**torch.load(path, weights_only=True), ENTRY: text}, path)
        with pytest.raises(CheckpointError) as error:
            load(path)
        assert f"the probe of {path} is damaged: " in str(error.value)
        assert told in str(error.value) and "--no-probe" in str(error.value)
        load(path, probe=False)

    def test_one_of_a_newer_version(self, saved):
        path = saved()
        torch.save({**torch.load(path, weights_only=True), ENTRY: '{"version": 2}'}, path)
        (note,) = load(path).resolution.notes
        assert note.startswith("the probe inside best.ckpt is of version 2")

    def test_it_stays_in_a_corrected_document(self, originals, tmp_path):
        path = shutil.copytree(originals().parent, tmp_path / "run") / "best.ckpt"
        before = json.loads((path.parent / SIDECAR).read_text())["probe"]
        assert add_metadata(path, overrides={"generation.max_new_tokens": 5}).written
        assert json.loads((path.parent / SIDECAR).read_text())["probe"] == before
        load(path)


class TestAdapters:
    @pytest.fixture
    def adapted(self, own):
        model = own(vicreg_loss_weight=0.125)  # an object of its own
        if not model.recipe.lora.use_lora:
            model.add_adapters(LoRASettings(rank=4, alpha=8, target_modules=("q_proj", "up_proj")))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(std=0.3)
        return model.eval()

    def test_another_scale(self, adapted, saved, tmp_path):
        save_checkpoint(adapted, tmp_path / "best.ckpt")
        load(tmp_path)
        sidecar = tmp_path / SIDECAR
        sidecar.write_text(sidecar.read_text().replace('"alpha": 8.0', '"alpha": 16.0'))
        contents = torch.load(tmp_path / "best.ckpt", weights_only=True)
        del contents[EMBEDDED]
        contents["state_dict"] = without_record(contents["state_dict"])
        torch.save(contents, tmp_path / "best.ckpt")
        with pytest.raises(CheckpointError) as error:
            load(tmp_path)
        assert "the language model does not compute" in str(error.value)
        assert "  lora.alpha = 16.0" in str(error.value)

    def test_merged_weights_compute_the_same(self, adapted, tmp_path):
        """The adapters went into the weights they belong to; the probe stayed in the file."""
        save_checkpoint(adapted, tmp_path / "best.ckpt")
        probe = torch.load(tmp_path / "best.ckpt", weights_only=True)[ENTRY]
        model = load(tmp_path)
        model.language_model = merge_lora(model.language_model)
        lora = model.recipe.lora.model_copy(update={"use_lora": False})
        model.set_recipe(model.recipe.model_copy(update={"lora": lora.model_dump()}))
        merged = tmp_path / "merged" / "best.ckpt"
        merged.parent.mkdir()
        save_checkpoint(model, merged)
        torch.save({**torch.load(merged, weights_only=True), ENTRY: probe}, merged)
        assert load(merged).resolution.notes == []


class TestConversions:
    """A converted checkpoint is held against the probe of the one it was made from."""

    @pytest.mark.parametrize("to", ["safetensors", "sharded", "huggingface", "lightning"])
    def test_the_probe_goes_along(self, to, saved, tmp_path):
        suffix = {"safetensors": ".safetensors", "lightning": ".ckpt"}.get(to, "")
        target = tmp_path / f"made/out{suffix}"
        target.parent.mkdir()
        convert(saved(), target, to=to)
        loaded = load(target, strict=True)
        assert not any("probe" in note for note in loaded.resolution.notes)
        ours = Probe.model_validate(document(loaded.resolution).probe or {})
        original = json.loads(torch.load(tmp_path / "best.ckpt", weights_only=True)[ENTRY])
        assert ours == Probe.model_validate(original)

    def test_it_knows_of_roundings(self, saved, tmp_path):
        """Halved and widened again, the weights are not the old ones, and that is no damage."""
        convert(saved(), tmp_path / "half.safetensors", to="safetensors", dtype=torch.bfloat16)
        wide = tmp_path / "wide.ckpt"
        convert(tmp_path / "half.safetensors", wide, to="lightning", dtype=torch.float32)
        assert load(wide).resolution.notes == []

    def test_settings_that_were_changed_on_purpose(self, saved, tmp_path):
        target = tmp_path / "out.safetensors"
        convert(saved(), target, to="safetensors", overrides={"models.overlap_ratio": 0.25})
        loaded = load(target, strict=True)
        assert loaded.recipe.models.overlap_ratio == 0.25 and loaded.resolution.notes == []

    def test_what_was_assumed_is_no_evidence(self, saved, tmp_path):
        """Probed under assumptions, a copy shows that it stays as it is, not that it is right."""
        path = saved()
        contents = torch.load(path, weights_only=True)
        contents["state_dict"] = without_record(contents["state_dict"])
        torch.save({k: contents[k] for k in ("state_dict", "panovlm_tokenizer")}, path)
        convert(path, tmp_path / "out.ckpt", to="lightning")
        probe = json.loads(torch.load(tmp_path / "out.ckpt", weights_only=True)[ENTRY])
        assert "models.overlap_ratio" in probe["assumed"]
        contents = torch.load(tmp_path / "out.ckpt", weights_only=True)
        del contents[EMBEDDED]
        torch.save(contents, tmp_path / "out.ckpt")
        found = solve(tmp_path / "out.ckpt")
        assert found.complete and found.settled == {}
