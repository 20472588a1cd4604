"""``panovlm explain``: value, source, and what else was considered."""

from __future__ import annotations

import json

import pytest

from panovlm.checkpoint.find.locate import SIDECAR
from panovlm.checkpoint.repair.metadata import add_metadata
from panovlm.checkpoint.saving.save import save_checkpoint, strip_metadata
from panovlm.cli.main import main


@pytest.fixture
def explain(capsys):
    """Run the command with ``--json``; return its exit code and the explanation."""

    def run(*words):
        code = main(["explain", *map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def saved(own, tmp_path):
    save_checkpoint(own(resampler_type="bimamba"), tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def outcomes(found):
    return {c["origin"]: (c["says"], c["outcome"]) for c in found["candidates"]}


class TestSources:
    def test_every_document_that_has_a_say(self, build, files, backbones, write, explain):
        """The original's four documents, the weights and the default, strongest first."""
        model = build(resampler_type="bimamba")
        document = files.metadata(model, backbones)
        path = write(model, sidecar=document, config=files.config(model, backbones))
        code, found = explain(path, "models.latent_dimension")
        assert code == 0
        assert outcomes(found) == {
            SIDECAR: (40, "taken"),
            "hyper_parameters inside the file": (40, "agrees"),
            "config.yaml": (40, "agrees"),
            "weights": (40, "agrees"),
            "default": (768, "not taken: weaker"),
        }
        assert [c["origin"] for c in found["candidates"]] == list(outcomes(found))
        assert found["source"] == f"metadata: {SIDECAR}" and not found["assumed"]
        assert found["absent"] == ["not there: metadata inside the file, config.json"]

    def test_only_one_document_tells(self, build, files, backbones, write, explain):
        model = build(stitching_mode="concat")
        path = write(model, config=files.config(model, backbones))
        _, found = explain(path, "stitching_mode")
        assert found["value"] == "concat" and found["source"] == "metadata: config.yaml"
        said = outcomes(found)
        assert said["hyper_parameters inside the file"] == (None, "says nothing")
        assert said["config.yaml"] == ("concat", "taken")
        assert said["default"] == ("drop_overlap", "not taken: weaker")

    def test_from_the_weights_alone(self, saved, explain):
        strip_metadata(saved, saved)
        saved.with_name(SIDECAR).unlink()
        _, found = explain(saved, "expand")
        weights = next(c for c in found["candidates"] if c["origin"] == "weights")
        assert weights["outcome"] == "taken" and weights["says"] == 1.75
        assert weights["evidence"].startswith("shortest number with int(expand * 48) = 84")
        assert found["observability"] == "observable" and not found["assumed"]
        _, found = explain(saved, "norm_first")
        assert found["assumed"] and found["observability"] == "unobservable"
        assert outcomes(found)["weights"] == (None, "says nothing")
        assert outcomes(found)["default"] == (True, "taken")
        add_metadata(saved)
        _, found = explain(saved, "norm_first")
        assert outcomes(found)[SIDECAR] == (True, "taken; it marks the value as assumed itself")
        assert found["assumed"]

    def test_unset_in_the_document_and_shown_by_the_weights(self, own, tmp_path, explain):
        save_checkpoint(own(vicreg_projector_dim=None), tmp_path / "best.ckpt")
        _, found = explain(tmp_path, "vicreg_projector_dim")
        assert outcomes(found)[SIDECAR] == (None, "leaves it unset")
        assert outcomes(found)["weights"] == (40, "taken")
        assert not found["bearing"]  # the head only serves training

    def test_really_unset(self, saved, explain):
        _, found = explain(saved, "models.tokenizer_name")
        assert found["value"] is None
        assert outcomes(found)[SIDECAR] == (None, "taken")

    def test_a_corrected_copy(self, saved, explain):
        add_metadata(saved, overrides={"overlap_ratio": 0.25})
        _, found = explain(saved, "models.overlap_ratio")
        assert found["value"] == 0.25 and outcomes(found)[SIDECAR] == (0.25, "taken")
        corrected = "metadata inside the file: corrected by the document beside it"
        assert corrected in found["absent"]


class TestOverridesAndConflicts:
    def test_an_override_of_the_same_shapes(self, saved, explain):
        code, found = explain(saved, "expand", "--set", "expand=1.76")
        assert code == 0 and found["value"] == 1.76
        assert outcomes(found)["override"] == (1.76, "taken")
        assert outcomes(found)["weights"] == (1.75, "agrees: the shapes are the same")

    def test_what_the_weights_disprove(self, saved, explain):
        code, found = explain(saved, "hidden_dim", "--set", "hidden_dim=50")
        assert code == 1
        assert outcomes(found)["override"] == (50, "contradicts the weights")
        assert "50 (override) against 48 (weights" in found["conflicts"][0]
        code, found = explain(saved, "hidden_dim", "--set", "hidden_dim=50", "--prefer", "weights")
        assert code == 0 and found["value"] == 48
        assert outcomes(found)["override"] == (50, "not taken: contradicts the weights")
        assert outcomes(found)["weights"] == (48, "taken")


class TestBackbones:
    def test_one_field_of_a_stated_configuration(self, saved, explain):
        _, found = explain(saved, "vision_config.num_attention_heads")
        assert found["field"] == "models.vision_config.num_attention_heads"
        assert found["observability"] == "constrained"
        assert outcomes(found)[SIDECAR] == (1, "taken")
        _, found = explain(saved, "vision_config.hidden_size")
        assert found["observability"] == "observable"
        assert outcomes(found)["weights"] == (64, "agrees")

    def test_a_named_one_on_this_machine(self, build, write, backbones, explain):
        _, found = explain(write(build()), "vision_config.num_attention_heads")
        label = f"config.json of {backbones.vision['siglip']}"
        assert outcomes(found)[label] == (4, "taken")
        assert found["source"] == f"metadata: {label}"

    def test_a_guess_of_its_family(self, build, write, explain):
        path = write(build(), hyper=None, data=None)
        _, found = explain(path, "vision_config.num_attention_heads")
        assert found["assumed"] and found["source"] == "default: usual value of this family"
        assert outcomes(found)["default"][1] == "taken"


def test_the_text(saved, capsys):
    assert main(["explain", str(saved), "overlap_ratio"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "models.overlap_ratio = 0.5"
    assert said[1] == f"from: metadata: {SIDECAR}"
    assert said[2] == "unobservable: it leaves no trace in any shape"
    taken = [line.split() for line in said if line.startswith(f"  {SIDECAR}")]
    assert taken == [[SIDECAR, "0.5", "taken"]]
    assert any("recipe in the weights" in line and line.endswith("agrees") for line in said)
    command = f"panovlm add-metadata --checkpoint {saved} --set models.overlap_ratio=VALUE"
    assert said[-1] == f"to set it: {command}"


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("overlap", r"there is no field 'overlap'. Did you mean"),
        ("hidden_size", r"field 'hidden_size' is ambiguous: models.language_config.hidden_size, "),
    ],
)
def test_no_such_field(field, told, saved, capsys):
    assert main(["explain", str(saved), field]) == 2
    assert told in capsys.readouterr().err


def test_every_field_can_be_explained(saved, capsys, explain):
    """Each has exactly one source that was taken, and it is the one that inspect prints."""
    assert main(["inspect", str(saved), "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)["fields"]
    for name, row in fields.items():
        code, found = explain(saved, name)
        taken = [c for c in found["candidates"] if c["outcome"].startswith("taken")]
        assert (code, len(taken)) == (0, 1), name
        assert found["value"] == row["value"] and found["source"] == row["source"], name
