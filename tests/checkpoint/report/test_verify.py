"""The questions that ``verify`` asks, and the first one that comes out negative."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from panovlm.checkpoint.find.locate import SIDECAR
from panovlm.checkpoint.probe.record import ENTRY
from panovlm.checkpoint.report.verify import verify
from panovlm.checkpoint.saving.save import save_checkpoint, strip_metadata, without_record
from panovlm.errors import CheckpointError, ConfigError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original(own, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_checkpoint(own(), folder / "best.ckpt")
    return folder


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def asked(found):
    return [(check.name, check.outcome) for check in found.checks]


ALL = [(name, "passed") for name in ("configuration", "proof", "weights", "probe")]


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"strict": True}], ids=str)
def test_all_is_well(options, run):
    for path in (run, run / "best.ckpt"):
        found = verify(path, device=CPU, **options)
        assert found.holds and found.path == run / "best.ckpt"
        assert asked(found) == ALL
        assert found.verdict == "loads, and computes what it computed when it was saved"
    plain = json.loads(json.dumps(found.as_json()))
    assert plain["holds"] and plain["probe"]["found"] == "the probe inside best.ckpt"
    assert len(plain["probe"]["compared"]) == 6 and plain["probe"]["differences"] == {}


def edit(run, **fields):
    document = json.loads((run / SIDECAR).read_text())
    document["recipe"]["models"] |= fields
    (run / SIDECAR).write_text(json.dumps(document))


def test_another_model_than_the_one_that_was_saved(run):
    contents = torch.load(run / "best.ckpt", weights_only=True)
    kept = {name: value for name, value in contents.items() if name != "panovlm_metadata"}
    kept["state_dict"] = without_record(kept["state_dict"])
    torch.save(kept, run / "best.ckpt")
    edit(run, overlap_ratio=0.25)
    found = verify(run, device=CPU)
    assert asked(found) == [*ALL[:3], ("probe", "failed")] and not found.holds
    assert found.verdict == "does not load: it is not the model that was saved"
    assert "models.overlap_ratio = 0.25" in found.checks[-1].detail
    plain = found.as_json()
    assert plain["probe"]["differences"] == {
        "projector": ["output of another shape, or no longer finite"]
    }
    changed = verify(run, device=CPU, overrides={"overlap_ratio": 0.75})
    assert changed.holds and changed.verdict == "loads, changed by the settings that you gave"
    assert changed.as_json()["probe"]["expected"] == ["projector"]


def test_a_contradiction(run):
    edit(run, latent_dimension=41)
    found = verify(run, device=CPU)
    assert asked(found) == [("configuration", "failed")]
    assert found.verdict == "does not load"
    assert "latent_dimension: 41" in found.checks[0].detail


def test_a_bare_file(run):
    strip_metadata(run / "best.ckpt", run / "best.ckpt")
    (run / SIDECAR).unlink()
    found = verify(run, device=CPU)
    assert found.holds and asked(found) == [*ALL[:3], ("probe", "not checked")]
    assert found.verdict == "loads; it has no probe that shows whether it computes what it did"
    assert found.as_json()["assumed"]
    strict = verify(run, device=CPU, strict=True)
    assert asked(strict) == [("configuration", "failed")]


def changed(run, change):
    contents = torch.load(run / "best.ckpt", weights_only=True)
    change(contents)
    torch.save(contents, run / "best.ckpt")


def test_weights_that_do_not_fit(run):
    changed(run, lambda c: c["state_dict"].pop("model.vision_backbone.norm.bias"))
    found = verify(run, device=CPU, prefer="metadata")
    assert asked(found) == [("configuration", "passed"), ("proof", "failed")]
    assert "vision_backbone.norm.bias" in found.checks[-1].detail


def test_a_tensor_without_place(run):
    changed(run, lambda c: c["state_dict"].update({"model.projector.more.weight": torch.ones(2)}))
    found = verify(run, device=CPU, prefer="metadata")
    assert asked(found) == [("configuration", "passed"), ("proof", "failed")]


def test_a_damaged_probe(run):
    changed(run, lambda c: c.update({ENTRY: "{"}))
    assert asked(verify(run, device=CPU)) == [*ALL[:3], ("probe", "failed")]


def test_a_truncated_file(run):
    path = run / "best.ckpt"
    path.write_bytes(path.read_bytes()[:-2000])
    found = verify(run, device=CPU)
    assert asked(found) == [("configuration", "failed")] and found.resolution is None
    assert json.loads(json.dumps(found.as_json()))["verdict"] == "does not load"


def test_a_wrong_question(run, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        verify(tmp_path / "none", device=CPU)
    with pytest.raises(ConfigError, match="unknown setting"):
        verify(run, device=CPU, overrides={"nonsense": 1})
