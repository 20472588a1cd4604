"""The tokenizer that belongs to a checkpoint, and none that only looks like it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from panovlm.checkpoint.saving.save import ATTACHED_TOKENIZER, save_checkpoint
from panovlm.errors import ConfigError, ContradictionError
from panovlm.models.model import PanoramaVLM

load = PanoramaVLM.from_checkpoint
QUESTION = "what is left of the red ball ?"


@pytest.fixture
def saved(own, tmp_path):
    """A checkpoint whose tokenizer stands beside it alone."""
    save_checkpoint(own(), tmp_path / "best.ckpt")
    contents = torch.load(tmp_path / "best.ckpt")
    del contents[ATTACHED_TOKENIZER]
    torch.save(contents, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def swap(folder, one="left", other="red") -> None:
    """Let two words change their places, so that nothing but what is read changes."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(tokenizer))


def test_beside_the_file(saved, own):
    assert load(saved).tokenizer.encode(QUESTION) == own().tokenizer.encode(QUESTION)


def test_other_words_beside_the_file(saved, own, tmp_path):
    swap(tmp_path / "tokenizer")
    for options in ({}, {"probe": False}):
        with pytest.raises(ContradictionError, match=r"tokenizer\.json differ .*tokenizer_name="):
            load(saved, **options)
    named = load(saved, overrides={"models.tokenizer_name": str(tmp_path / "tokenizer")})
    assert named.tokenizer.encode(QUESTION) != own().tokenizer.encode(QUESTION)


def test_a_file_that_is_missing_or_added(saved, tmp_path):
    folder = tmp_path / "tokenizer"
    (folder / "added_tokens.json").write_text("{}")
    with pytest.raises(ContradictionError, match=r"added_tokens\.json differ"):
        load(saved)
    (folder / "added_tokens.json").unlink()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ContradictionError, match=r"chat_template\.jinja differ"):
        load(saved)


def test_inside_the_file(own, tmp_path):
    save_checkpoint(own(), tmp_path / "best.ckpt")
    contents = torch.load(tmp_path / "best.ckpt")
    files = contents[ATTACHED_TOKENIZER]
    text = bytes(files["tokenizer.json"].tolist()).replace(b'"left"', b'"lift"')
    files["tokenizer.json"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    torch.save(contents, tmp_path / "best.ckpt")
    with pytest.raises(ContradictionError, match=r"tokenizer\.json differ"):
        load(tmp_path / "best.ckpt", probe=False)


def test_a_named_one_counts_more_than_a_carried_one(own, tmp_path):
    save_checkpoint(own(), tmp_path / "best.ckpt")
    shutil.copytree(tmp_path / "tokenizer", tmp_path / "other")
    swap(tmp_path / "other")
    stated = {"models.tokenizer_name": str(tmp_path / "other")}
    one, other = load(tmp_path / "best.ckpt"), load(tmp_path / "best.ckpt", overrides=stated)
    assert one.tokenizer.encode(QUESTION) != other.tokenizer.encode(QUESTION)
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "best.ckpt", overrides={"models.tokenizer_name": "./not/there"})
