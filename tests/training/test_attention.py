"""The choice of attention: other code, the same numbers, nothing of it in a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tests.training.conftest import MakeSettings

from panovlm.checkpoint.saving.save import describe_model
from panovlm.cli.options import ATTENTIONS
from panovlm.config.schema import Attention
from panovlm.errors import ConfigError, MissingDependencyError
from panovlm.models.attention import backbones, use_attention
from panovlm.models.model import PanoramaVLM
from panovlm.training.stage import check_attention, stage_model
from panovlm.training.tables import Tables


@pytest.fixture
def build(make_settings: MakeSettings) -> Any:
    def build(*changes: str) -> PanoramaVLM:
        settings = make_settings(Path("runs"), *changes)
        torch.manual_seed(0)
        return stage_model(settings, "finetune", Tables(settings), None).eval()

    return build


def chosen(model: PanoramaVLM) -> set[str]:
    return {backbone.config._attn_implementation for backbone in backbones(model)}


def test_the_command_line_has_what_an_experiment_has() -> None:
    assert get_args(Attention) == ATTENTIONS


def test_other_code_gives_the_same_numbers(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("environment.attn_implementation=sdpa")
    other = build("environment.attn_implementation=eager")
    assert (chosen(model), chosen(other)) == ({"sdpa"}, {"eager"})
    assert model.recipe.lora.use_lora  # the choice reaches the model below its adapters
    batch = {"pixel_values": torch.randn(1, 9, 3, 16, 16), "input_ids": torch.tensor([[5, 6, 7]])}
    calls: list[str] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append("fused")
        return fused(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        expected = model(**batch).logits
        assert calls
        calls.clear()
        found = other(**batch).logits
    assert not calls
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_no_checkpoint_tells_it(build: Any) -> None:
    documents = [
        describe_model(build(f"environment.attn_implementation={name}")).to_json()
        for name in ("eager", "sdpa")
    ]
    assert "eager" not in documents[0]
    assert "sdpa" not in documents[1]


@pytest.mark.skipif("flash_attn" in sys.modules, reason="the package is installed")
def test_flash_attention_needs_its_package(build: Any) -> None:
    with pytest.raises(MissingDependencyError, match="pip install flash-attn"):
        build("environment.attn_implementation=flash_attention_2")


def test_flash_attention_is_refused_where_it_cannot_compute(
    make_settings: MakeSettings, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flash = "environment.attn_implementation=flash_attention_2"
    with pytest.raises(ConfigError, match="half precision only"):
        check_attention(make_settings(Path("runs"), flash, "environment.precision=32-true"))
    several = "training.stage_configs.finetune.questions_per_sample=2"
    half = "environment.precision=bf16-mixed"
    with pytest.raises(ConfigError, match="questions_per_sample is 2"):
        check_attention(make_settings(Path("runs"), flash, half, several))
    one = "training.stage_configs.finetune.questions_per_sample=1"
    check_attention(make_settings(Path("runs"), flash, half, one))
    monkeypatch.setattr("panovlm.models.attention.find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"float32; add --dtype bfloat16"):
        use_attention(build(), "flash_attention_2")
