"""Configuration files of named backbones, on this machine only."""

from __future__ import annotations

import json

import pytest

from panovlm.checkpoint.settle.backbone_files import (
    named_config,
    named_processor,
    processed_size,
    vision_part,
)
from panovlm.errors import CheckpointError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A Hugging Face cache that holds one file of ``org/name``."""

    def made(variable, hub):
        for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(variable, str(tmp_path))
        repository = tmp_path / hub / "models--org--name"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("abc\n")
        (repository / "snapshots" / "abc").mkdir(parents=True)
        (repository / "snapshots" / "abc" / "config.json").write_text('{"model_type": "x"}')

    return made


@pytest.mark.parametrize(
    ("variable", "hub"),
    [("HF_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")],
)
def test_the_cache(variable, hub, cache):
    cache(variable, hub)
    assert named_config("org/name") == {"model_type": "x"}
    assert named_config("org/other") is None
    assert named_processor("org/name") is None


def test_folders(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert named_config(str(tmp_path)) == {"a": 1}
    monkeypatch.chdir(tmp_path)
    for name in ("", "/gone", "./gone", "a/b/c", "plain"):
        assert named_config(name) is None


def test_either_form_of_a_processor(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": 1}}))
    assert named_processor(str(tmp_path)) == {"size": 1}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 2}))
    assert named_processor(str(tmp_path)) == {"size": 2}


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_file(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json.*fetch the file again"):
        named_config(str(tmp_path))


def test_the_vision_half_of_two_towers():
    both = {"model_type": "clip", "vision_config": {"a": 1}, "text_config": {"b": 2}}
    assert vision_part(both) == {"a": 1, "model_type": "clip_vision_model"}
    named = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}
    assert vision_part(named) == {"model_type": "siglip_vision_model"}
    assert vision_part({"model_type": "dinov2"}) == {"model_type": "dinov2"}
    assert both["vision_config"] == {"a": 1}


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        ({"size": {"height": 16, "width": 24}}, (16, 24)),
        ({"size": 16}, (16, 16)),
        ({"size": {"shortest_edge": 20}}, (20, 20)),
        ({"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 16}, (16, 16)),
        (
            {"size": 20, "do_center_crop": True, "crop_size": {"height": 16, "width": 24}},
            (16, 24),
        ),
        ({"size": 20, "do_center_crop": False, "crop_size": 16}, (20, 20)),
        ({"size": 20, "do_resize": False}, None),
        ({"size": {"max_pixels": 20}}, None),
        ({}, None),
    ],
)
def test_size_of_processed_pictures(processor, size):
    assert processed_size(processor) == size
