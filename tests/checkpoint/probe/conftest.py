"""Saved models whose documents can be edited while their weights and probes stay."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch

from panovlm.checkpoint.documents.metadata import EMBEDDED
from panovlm.checkpoint.find.locate import SIDECAR
from panovlm.checkpoint.saving.save import save_checkpoint, without_record


@pytest.fixture(scope="session")
def originals(own, tmp_path_factory):
    """Save a model once; equal settings give the same file."""
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
def saved(originals, tmp_path):
    """A copy of a saved model; its document lies only inside the file, perhaps edited."""

    def of(edits: dict[str, Any] | None = None, **settings):
        path = tmp_path / "best.ckpt"
        shutil.copy(originals(**settings), path)
        (tmp_path / SIDECAR).unlink(missing_ok=True)
        return edited(path, edits or {})

    return of


def edited(path, fields):
    """Change fields of the document inside a file, which has no settings among its weights."""
    contents = torch.load(path, weights_only=True)
    document = json.loads(contents[EMBEDDED])
    for name, value in fields.items():
        place = document["recipe"]
        *way, leaf = name.split(".")
        for key in way:
            place = place[key]
        assert place[leaf] != value, f"{name} is {value!r} already"
        place[leaf] = value
    state = without_record(contents["state_dict"]) if fields else contents["state_dict"]
    torch.save({**contents, "state_dict": state, EMBEDDED: json.dumps(document)}, path)
    return path
