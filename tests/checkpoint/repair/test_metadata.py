"""``panovlm add-metadata`` on single checkpoints and on trees of them."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch

from panovlm.checkpoint.documents.metadata import EMBEDDED
from panovlm.checkpoint.find.locate import OWN_SIDECAR, SIDECAR
from panovlm.checkpoint.repair.metadata import KEPT, add_metadata
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import save_checkpoint, strip_metadata, without_record
from panovlm.cli.main import main
from panovlm.models.model import PanoramaVLM


@pytest.fixture
def add(capsys):
    """Run the command; return its exit code and what it printed."""

    def run(*words):
        code = main(["add-metadata", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out + err

    return run


@pytest.fixture
def bare(own, tmp_path):
    """Write models as bare weights, ``{name: settings}``, into one folder."""

    def of(folder=tmp_path / "bare", **models):
        folder.mkdir(exist_ok=True)
        for name, settings in models.items():
            save_checkpoint(own(**settings), tmp_path / "whole.ckpt")
            strip_metadata(tmp_path / "whole.ckpt", folder / f"{name}.ckpt")
        for rest in ("whole.ckpt", SIDECAR):
            (tmp_path / rest).unlink()
        shutil.rmtree(tmp_path / "tokenizer")
        return folder

    return of


def documents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.json")}


def weights(folder):
    files = folder.rglob("*.ckpt")
    return {path: (hashlib.sha256(path.read_bytes()).digest(), path.stat()) for path in files}


class TestADocumentOfAnotherModel:
    @pytest.fixture
    def beside(self, own, tmp_path):
        """A file without document, beside the one of a model with other settings."""

        def of(keep=lambda state: state, **settings):
            save_checkpoint(own(**settings), tmp_path / "best.ckpt")
            torch.save(keep(own().state_dict()), tmp_path / "best.ckpt")
            return tmp_path / "best.ckpt"

        return of

    @pytest.mark.parametrize("keep", [dict, without_record])
    def test_its_probe_goes_with_it(self, own, add, beside, keep):
        path = beside(keep, latent_dimension=20)
        assert add("--checkpoint", path)[0] == 2
        code, said = add("--checkpoint", path, "--prefer", "weights")
        assert code == 0 and "the probe of the earlier document is left out" in said
        loaded = PanoramaVLM.from_checkpoint(path)
        mine = dict(loaded.named_parameters())
        assert all(torch.equal(t, mine[n]) for n, t in own().named_parameters())
        assert add("--checkpoint", path)[1].startswith(f"{path.with_name(SIDECAR)}: complete\n")

    def test_also_where_only_a_setting_tells(self, add, beside):
        path = beside(overlap_ratio=0.25)
        code, said = add("--checkpoint", path, "--prefer", "weights")
        assert code == 0 and "the probe of the earlier document is left out" in said
        assert PanoramaVLM.from_checkpoint(path, strict=True).recipe.models.overlap_ratio == 0.5

    def test_its_own_stays(self, add, beside):
        path = beside()
        code, said = add("--checkpoint", path, "--prefer", "weights")
        assert code == 0 and "left out" not in said
        assert json.loads(path.with_name(SIDECAR).read_text())["probe"]
        PanoramaVLM.from_checkpoint(path, strict=True)


class TestOneCheckpoint:
    def test_of_today_it_is_complete(self, own, add, tmp_path):
        """Also where the document leaves unset what the weights show."""
        save_checkpoint(own(vicreg_projector_dim=None), tmp_path / "best.ckpt")
        before = documents(tmp_path)
        for more in ([], ["--dry-run"]):
            code, said = add("--checkpoint", tmp_path, *more)
            assert (code, said) == (0, f"{tmp_path / SIDECAR}: complete\n")
        assert documents(tmp_path) == before

    def test_so_it_is_without_the_copy_beside_it(self, own, add, tmp_path):
        save_checkpoint(own(), tmp_path / "best.ckpt")
        (tmp_path / SIDECAR).unlink()
        assert add("--checkpoint", tmp_path)[1].endswith(": complete\n")
        assert not (tmp_path / SIDECAR).exists()

    def test_a_dry_run_says_what_would_be_written(self, bare, add):
        folder = bare(best={})
        code, said = add("--checkpoint", folder, "--dry-run")
        assert code == 0 and said.startswith(f"{folder / SIDECAR}: would be written\n")
        assert "assumed: models.overlap_ratio = 0.5 (settle with --set)" in said
        assert documents(folder) == {}

    def test_twice_is_once(self, bare, add):
        folder = bare(best={})
        before = weights(folder)
        assert ": written\n" in add("--checkpoint", folder)[1]
        once = documents(folder)
        assert ": complete\n" in add("--checkpoint", folder)[1]
        assert documents(folder) == once and weights(folder) == before

    def test_what_was_inferred_stays_marked(self, bare, add, capsys):
        folder = bare(best={})
        sizes = resolve(folder).inferred.fields
        add("--checkpoint", folder)
        document = json.loads((folder / SIDECAR).read_text())
        name = "models.resampler_config.hidden_dim"
        assert document["inferred"][name] == sizes[name].evidence
        assert "models.overlap_ratio" not in document["inferred"]
        source = str(resolve(folder).sources[name])
        assert source == f"metadata: {SIDECAR} (inferred: {sizes[name].evidence})"
        tower = resolve(folder).sources["models.vision_config.hidden_size"]
        assert "(inferred: vision_backbone.encoder" in tower.detail
        add("--checkpoint", folder, "--set", f"{name}=48")
        assert name not in json.loads((folder / SIDECAR).read_text())["inferred"]

    def test_epoch_and_step_are_not_invented(self, bare, add):
        folder = bare(best={})
        add("--checkpoint", folder)
        record = json.loads((folder / SIDECAR).read_text())["training"]
        assert (record["epoch"], record["global_step"], record["val_loss"]) == (None, None, None)

    def test_report(self, bare, add, tmp_path):
        folder = bare(best={})
        code, said = add("--checkpoint", folder, "--json", "--report", tmp_path / "report.json")
        report = json.loads(said)
        assert json.loads((tmp_path / "report.json").read_text()) == report
        (entry,) = report["checkpoints"]
        assert entry["document"] == str(folder / SIDECAR) and entry["status"] == "written"
        assert entry["assumed"]["models.overlap_ratio"] == 0.5
        assert "models.latent_dimension" in entry["inferred"]
        assert report["summary"] == {"written": 1} and code == 0


class TestOriginalDocuments:
    def test_cut_off_behind_the_resampler(self, build, files, backbones, write, add, tmp_path):
        """What the original's writer left behind becomes a whole document; the rest is kept."""
        model = build(resampler_type="bimamba", lora={"r": 4})
        text = files.cut_off(files.metadata(model, backbones))
        path = write(model, sidecar=text)
        before = PanoramaVLM.from_checkpoint(path)
        assert f"{tmp_path / SIDECAR}: written" in add("--checkpoint", path)[1]
        assert (tmp_path / KEPT).read_text() == text
        document = json.loads((tmp_path / SIDECAR).read_text())
        assert document["recipe"]["models"]["resampler_config"]["hidden_dim"] == 48
        assert document["experiment_name"] == "TINY" and document["stage"] == "finetune"
        after = PanoramaVLM.from_checkpoint(path)
        assert after.recipe == before.recipe
        assert not any("cut off" in note for note in after.resolution.notes)
        assert ": complete\n" in add("--checkpoint", path)[1]

    def test_the_record_of_the_training(self, build, files, backbones, write, add, tmp_path):
        model = build()
        whole = files.metadata(model, backbones)
        path = write(model, sidecar=whole)
        add("--checkpoint", path)
        record = json.loads((tmp_path / SIDECAR).read_text())["training"]
        assert (record["epoch"], record["global_step"], record["val_loss"]) == (1, 7, 0.5)
        assert record["stage_config"] == whole["training_config"]
        assert record["data"] == whole["dataset"]

    def test_the_step_of_another_file_is_not_taken_over(
        self, build, files, backbones, write, add, tmp_path
    ):
        """And a loss of 0 is how the original wrote that there was none."""
        model = build()
        whole = files.metadata(model, backbones)
        whole["epoch_info"] |= {"current_epoch": 4, "global_step": 90}
        add("--checkpoint", write(model, sidecar=whole))
        record = json.loads((tmp_path / SIDECAR).read_text())["training"]
        assert (record["epoch"], record["global_step"], record["val_loss"]) == (1, 7, None)
        (tmp_path / SIDECAR).unlink()
        whole["epoch_info"] = {"current_epoch": 1, "global_step": 7, "val_loss": 0}
        add("--checkpoint", write(model, sidecar=whole))
        assert json.loads((tmp_path / SIDECAR).read_text())["training"]["val_loss"] is None


class TestSeveralInOneFolder:
    def test_of_one_run_they_share_a_document(self, build, files, backbones, add, tmp_path):
        model = build()
        for name in ("siglip_mlp_e2p_epoch01.ckpt", "last.ckpt"):
            files.write_run(tmp_path, model, backbones, name=name)
        code, said = add("--recursive", tmp_path)
        assert code == 0 and "2 checkpoint(s): 1 complete, 1 written" in said
        assert set(documents(tmp_path)) == {SIDECAR}
        once = documents(tmp_path)
        assert "2 checkpoint(s): 2 complete" in add("--recursive", tmp_path)[1]
        for name in ("siglip_mlp_e2p_epoch01.ckpt", "last.ckpt"):
            assert ": complete\n" in add("--checkpoint", tmp_path / name)[1]
        assert documents(tmp_path) == once

    def test_of_two_models_each_has_its_own(self, bare, add):
        """Describing one never makes the other one fail."""
        folder = bare(a={}, b={"latent_dimension": 24})
        assert (
            f"{folder / 'a.ckpt'}{OWN_SIDECAR}: written"
            in add("--checkpoint", folder / "a.ckpt")[1]
        )
        assert resolve(folder / "b.ckpt").conflicts == []
        code, said = add("--recursive", folder)
        assert code == 0 and "1 complete, 1 written" in said
        assert set(documents(folder)) == {f"a.ckpt{OWN_SIDECAR}", f"b.ckpt{OWN_SIDECAR}"}
        assert resolve(folder / "a.ckpt").config.models.latent_dimension == 40
        assert resolve(folder / "b.ckpt").config.models.latent_dimension == 24

    def test_what_is_said_about_one_does_not_hold_for_the_other(self, bare, add):
        folder = bare(best={}, last={})
        add("--recursive", folder)
        add("--checkpoint", folder / "last.ckpt", "--set", "models.overlap_ratio=0.25")
        assert set(documents(folder)) == {SIDECAR, f"last.ckpt{OWN_SIDECAR}"}
        assert resolve(folder / "best.ckpt").value("models.overlap_ratio") == 0.5
        assert resolve(folder / "last.ckpt").value("models.overlap_ratio") == 0.25
        assert "2 complete" in add("--recursive", folder)[1]

    def test_said_about_all_it_holds_for_all(self, own, add, tmp_path):
        """Also where each file holds a copy that says otherwise, with another step."""
        for name in ("best", "last"):
            save_checkpoint(own(), tmp_path / f"{name}.ckpt", stage=name)
        assert add("--recursive", tmp_path, "--set", "models.overlap_ratio=0.25")[0] == 0
        assert set(documents(tmp_path)) >= {SIDECAR}
        for name in ("best", "last"):
            found = resolve(tmp_path / f"{name}.ckpt")
            assert found.conflicts == [] and found.value("models.overlap_ratio") == 0.25

    def test_the_document_of_another_model(self, bare, add):
        folder = bare(a={})
        add("--checkpoint", folder)
        bare(folder, b={"latent_dimension": 24})
        code, said = add("--checkpoint", folder / "b.ckpt")
        assert code == 2 and "written for other weights" in said
        assert add("--checkpoint", folder / "b.ckpt", "--prefer", "weights")[0] == 0
        for name in ("a", "b"):
            assert resolve(folder / f"{name}.ckpt").conflicts == []


class TestTree:
    def test_one_that_fails_does_not_keep_the_others(self, bare, add, tmp_path):
        folder = bare(best={})
        (folder / "cut").mkdir()
        (folder / "cut" / "last.ckpt").write_bytes((folder / "best.ckpt").read_bytes()[:900])
        (folder / ".best.ckpt.0123.tmp").write_bytes(b"unfinished")
        code, said = add("--recursive", tmp_path)
        assert code == 1 and "2 checkpoint(s): 1 failed, 1 written" in said
        assert f"failed            {folder / 'cut' / 'last.ckpt'} is truncated" in said
        assert (folder / SIDECAR).is_file()
        code, said = add("--recursive", tmp_path, "--json")
        report = json.loads(said)
        assert code == 1 and report["summary"] == {"complete": 1, "failed": 1}
        (failed,) = [e for e in report["checkpoints"] if e["status"] == "failed"]
        assert "is truncated" in failed["error"]

    def test_nothing_there(self, add, tmp_path):
        code, said = add("--recursive", tmp_path)
        assert code == 2 and said.startswith(f"error: there is no checkpoint in {tmp_path}")
        assert add("--recursive", tmp_path / "none")[0] == 2

    def test_one_of_the_two_is_needed(self, add, tmp_path):
        assert "required" in add()[1]
        assert "not allowed with" in add("--checkpoint", tmp_path, "--recursive", tmp_path)[1]

    def test_a_bar_on_a_terminal(self, bare, add, tmp_path, monkeypatch):
        bare(a={}, b={})
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        assert "2/2" in add("--recursive", tmp_path)[1]


def test_a_change_of_the_file_is_found_out(own, add, tmp_path):
    """The document describes names and shapes; weights with others are not its weights."""
    save_checkpoint(own(), tmp_path / "best.ckpt")
    strip_metadata(tmp_path / "best.ckpt", tmp_path / "best.ckpt")
    contents = torch.load(tmp_path / "best.ckpt")
    state = contents["state_dict"]
    state["model.projector.linear.bias"] = torch.zeros(24)
    del state["model.vision_backbone.norm.bias"], state["model.vision_backbone.norm.weight"]
    torch.save(contents, tmp_path / "best.ckpt")
    code, said = add("--checkpoint", tmp_path)
    assert code == 2 and "fingerprint" in said


def test_a_setting_that_a_document_left_out_is_written_into_it(own, tmp_path):
    save_checkpoint(own(), tmp_path / "best.ckpt")
    contents = torch.load(tmp_path / "best.ckpt", weights_only=True)
    del contents[EMBEDDED]
    contents["state_dict"] = without_record(contents["state_dict"])
    torch.save(contents, tmp_path / "best.ckpt")
    document = json.loads((tmp_path / SIDECAR).read_text())
    del document["recipe"]["models"]["overlap_ratio"]
    (tmp_path / SIDECAR).write_text(json.dumps(document))
    assert resolve(tmp_path).assumed == ["models.overlap_ratio"]
    assert add_metadata(tmp_path, overrides={"models.overlap_ratio": 0.5}).written
    assert resolve(tmp_path).assumed == []
    assert add_metadata(tmp_path).complete
