"""What ``panovlm inspect`` tells."""

from __future__ import annotations

import json
import shlex

import pytest
import torch

from panovlm.checkpoint.fields import flatten
from panovlm.checkpoint.report.describe import as_json, as_text, components, rows
from panovlm.checkpoint.resolve import resolve
from panovlm.cli.main import main
from panovlm.errors import CheckpointError


def test_every_field_has_value_and_source(build, write):
    found = resolve(write(build(resampler_type="bimamba")))
    table = {row.field: row for row in rows(found)}
    hidden = table["models.resampler_config.hidden_dim"]
    assert hidden.value == 48 and hidden.source.startswith("weights: ")
    assert table["models.overlap_ratio"].source == "metadata: hyper_parameters inside the file"
    assert table["models.stitching_mode"].assumed
    assert [row.field for row in rows(found)] == sorted(table)


def test_fields_of_inferred_backbones_are_listed_one_by_one(build, write):
    found = resolve(write(build(), hyper=None, data=None))
    table = {row.field: row for row in rows(found)}
    assert table["models.vision_config.hidden_size"].value == 32
    assert table["models.vision_config.num_attention_heads"].assumed


def test_parts_are_counted(build, write):
    model = build(lora={"r": 4})
    found = components(resolve(write(model)))
    expected = sum(p.numel() for p in model.language_model.parameters())
    table = model.language_model.get_input_embeddings().weight.numel()
    assert found["language_model"] == expected + table  # the tied table stands there twice
    assert found["projector"] == sum(p.numel() for p in model.projector.parameters())


def test_verdicts(build, files, backbones, write):
    model = build()
    config = files.config(model, backbones)
    assert "verdict: loads, and every setting is known" in as_text(
        resolve(write(model, config=config))
    )
    text = as_text(resolve(write(model, sidecar={"model_config": {"latent_dimension": 7}})))
    assert "CONFLICT models.latent_dimension: 7" in text
    assert "verdict: does not load, metadata and weights" in text


def test_assumed_and_unknown_are_shown(build, write):
    path = write(build())
    text = as_text(resolve(path))
    assert "ASSUMED default: default of the original system" in text
    assert "5 setting(s) are assumed" in text and "verdict: loads, with assumed" in text
    contents = torch.load(path)
    contents["state_dict"]["critic.weight"] = torch.ones(2)
    torch.save(contents, path)
    assert "verdict: does not load, 1 tensor(s) belong nowhere" in as_text(resolve(path))


def test_as_data(build, write):
    found = as_json(resolve(write(build(vision="clip"))))
    assert json.loads(json.dumps(found)) == found
    assert found["layout"] == "original" and found["container"] == "torch"
    assert found["fields"]["models.latent_dimension"]["value"] == 40
    assert found["unknown_tensors"] == [] and found["conflicts"] == []


def test_the_command_that_settles_what_is_assumed(build, write, capsys):
    """It stands below the list, and a shell can run it as it is."""
    path = write(build(), hyper=None, data=None, name="with blank.ckpt")
    found = resolve(path)
    assert found.assumed
    with pytest.raises(CheckpointError) as error:
        found.raise_assumed()
    command = found.how_to_settle().partition("wrong):\n")[2]
    assert command in str(error.value) and command in as_text(found)
    assert "repair" not in str(error.value)  # it has no probe
    program, *arguments = shlex.split(command.replace("\\\n", ""))
    assert program == "panovlm" and main(arguments) == 0
    settled = resolve(path)
    assert settled.assumed == []
    assert flatten(settled.config) == flatten(found.config)
