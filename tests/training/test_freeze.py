"""Which parameters a stage may move."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from panovlm.config.schema import LoRASettings, StageConfig, Trainable
from panovlm.errors import ConfigError
from panovlm.models.assemble import new_model
from panovlm.models.model import PanoramaVLM
from panovlm.training.freeze import counts, freeze, rest_frozen, table, trainable_parts, widen

NOTHING = Trainable(resampler=False)


@pytest.fixture(scope="module")
def shared(make_settings: Any) -> PanoramaVLM:
    settings = make_settings(Path("runs"), "models.vision_config.num_hidden_layers=3")
    return new_model(settings, ["some words"])


@pytest.fixture
def model(shared: PanoramaVLM) -> PanoramaVLM:
    return shared.requires_grad_(True)


def trained(model: PanoramaVLM) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def under(model: PanoramaVLM, *prefixes: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        (Trainable(), ["resampler_module."]),
        (Trainable(resampler=False, projector=True), ["projector."]),
        (Trainable(vicreg_projector=True), ["resampler_module.", "vicreg_projector."]),
        (Trainable(resampler=False, language_model=True), ["language_model."]),
        (NOTHING.model_copy(update={"vision_blocks": -1}), ["vision_backbone."]),
        (
            NOTHING.model_copy(update={"vision_blocks": 2}),
            [f"vision_backbone.encoder.encoder.layers.{n}." for n in (1, 2)],
        ),
        (
            NOTHING.model_copy(update={"vision_blocks": 3}),
            [f"vision_backbone.encoder.encoder.layers.{n}." for n in (0, 1, 2)],
        ),
    ],
)
def test_exactly_the_chosen_parts(
    parts: Trainable, prefixes: list[str], model: PanoramaVLM
) -> None:
    freeze(model, parts)
    assert trained(model) == under(model, *prefixes)


def test_adapters_are_always_trained(make_settings: Any) -> None:
    model = new_model(make_settings(Path("runs")), ["some words"])
    model.add_adapters(LoRASettings(use_lora=True, rank=2, target_modules=("q_proj",)))
    freeze(model, NOTHING)
    assert {name.split(".")[-3] for name in trained(model)} == {"lora_A", "lora_B"}
    assert len(trained(model)) == 2


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (NOTHING, "this stage trains nothing; switch on a part"),
        (Trainable(vision_blocks=4), "trainable.vision_blocks is 4, but the tower has 3 blocks"),
    ],
)
def test_what_cannot_be(parts: Trainable, message: str, model: PanoramaVLM) -> None:
    with pytest.raises(ConfigError, match=message):
        freeze(model, parts)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("vision", {"resampler", "vicreg_projector"}),
        ("resampler", {"resampler", "projector"}),
        ("finetune", {"resampler", "projector"}),
    ],
)
def test_what_a_stage_trains_by_itself(stage: str, expected: set[str]) -> None:
    parts = trainable_parts(stage, StageConfig()).model_dump()
    assert parts.pop("vision_blocks") == 0
    assert {name for name, chosen in parts.items() if chosen} == expected
    assert trainable_parts(stage, StageConfig(trainable=NOTHING)) == NOTHING


def test_counts_and_table(model: PanoramaVLM) -> None:
    freeze(model, Trainable(projector=True))
    rows = {row.name: row for row in counts(model)}
    assert sum(row.total for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert {name for name, row in rows.items() if row.trainable} == {
        "resampler_module",
        "projector",
    }
    # One Linear from 16 to 16; the embedding table, tied to the head, counts once.
    assert rows["projector"].total == rows["projector"].trainable == 16 * 16 + 16
    console = Console(record=True, width=80, file=None, quiet=False)
    with console.capture() as capture:
        console.print(table(list(rows.values()), "what trains"))
    lines = capture.get().splitlines()
    assert "what trains" in lines[0]
    frozen = [line for line in lines if "frozen" in line]
    assert len(frozen) == 3
    total, moved = sum(r.total for r in rows.values()), sum(r.trainable for r in rows.values())
    assert f"{total:,}" in lines[-2] and f"{moved:,}" in lines[-2]


def test_trained_components_have_float32_weights(make_settings: Any) -> None:
    """In bfloat16 a small step would be lost in rounding; computed buffers stay as they are."""
    model = new_model(make_settings(Path("runs")), ["some words"]).bfloat16()
    before = {name: buffer.dtype for name, buffer in model.named_buffers()}
    freeze(model, Trainable(resampler=True, vision_blocks=1))
    widen(model)
    types = {name: p.dtype for name, p in model.named_parameters()}
    wide = under(model, "resampler_module.", "vision_backbone.")
    assert {types[name] for name in wide} == {torch.float32}
    assert {types[name] for name in types.keys() - wide} == {torch.bfloat16}
    assert {name: buffer.dtype for name, buffer in model.named_buffers()} == before


def test_adapters_leave_what_lies_under_them_in_half_precision(make_settings: Any) -> None:
    model = new_model(make_settings(Path("runs")), ["some words"])
    model.language_model.bfloat16()
    model.add_adapters(LoRASettings(use_lora=True, rank=2, target_modules=("q_proj",)))
    freeze(model, NOTHING)
    widen(model)
    for name, parameter in model.language_model.named_parameters():
        expected = torch.float32 if "lora_" in name else torch.bfloat16
        assert parameter.dtype == expected, name


def test_a_resampler_without_weights_is_not_frozen(make_settings: Any) -> None:
    """It drops tokens in training, whatever trains; frozen components are in evaluation mode."""
    changes = ("models.resampler_type=masked_drop", "models.resampler_config={rate: 0.5}")
    model = new_model(make_settings(Path("runs"), *changes), ["some words"]).train()
    freeze(model, Trainable(resampler=False, projector=True))
    rest_frozen(model)
    assert model.resampler_module.training and model.projector.training
    assert not model.vision_backbone.training
    pixels = torch.zeros(1, 1, 3, 16, 16)
    assert (model.resampled_features(pixels) == 0).all(2).sum() == 2
    console = Console(record=True, width=80)
    with console.capture() as capture:
        console.print(table(counts(model), "what trains"))
    assert re.search(r"resampler_module\W+0\W+no weights", capture.get())
