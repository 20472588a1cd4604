"""``panovlm convert --to backbones``: both backbones as models that transformers reads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, SiglipVisionModel

from panovlm.checkpoint.saving.save import save_checkpoint
from panovlm.cli.main import main
from panovlm.config.schema import LoRASettings, Settings
from panovlm.models.assemble import new_model

IDS = torch.tensor([[4, 5, 6, 7, 8]])
ADAPTERS = LoRASettings.model_validate({"rank": 2, "target_modules": ["q_proj", "v_proj"]})


@pytest.fixture
def model(own):
    return copy.deepcopy(own())


@pytest.fixture
def adapted(model):
    model.add_adapters(ADAPTERS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model.eval()


def run(capsys, *words) -> tuple[int, str]:
    code = main(["convert", *map(str, words), "--to", "backbones"])
    out, err = capsys.readouterr()
    return code, out + err


def test_transformers_computes_the_same_with_them(adapted, tmp_path, capsys):
    save_checkpoint(adapted, tmp_path / "best.ckpt")
    assert run(capsys, tmp_path / "best.ckpt", tmp_path / "out", "--merge-lora")[0] == 0
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    tower = SiglipVisionModel.from_pretrained(tmp_path / "out/vision")
    language = AutoModelForCausalLM.from_pretrained(tmp_path / "out/language")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/language")
    with torch.no_grad():
        found = tower(pixels).last_hidden_state
        assert_close(found, adapted.vision_backbone.encoder(pixels).last_hidden_state)
        wanted = adapted.language_model(input_ids=IDS).logits
        assert_close(language(input_ids=IDS).logits, wanted, rtol=0, atol=1e-5)
    assert tokenizer.get_vocab() == adapted.tokenizer.get_vocab()


def test_another_model_begins_with_them(model, tmp_path, capsys):
    save_checkpoint(model, tmp_path / "best.ckpt")
    run(capsys, tmp_path / "best.ckpt", tmp_path / "out")
    names = {
        "vision_name": str(tmp_path / "out/vision"),
        "language_model_name": str(tmp_path / "out/language"),
    }
    sizes = {"resampler_type": "qformer", "resampler_config": {"num_hidden_layers": 1}}
    blocks = {
        "models": {**names, **sizes, "latent_dimension": 16},
        "training": {"stage_configs": {s: {} for s in ("vision", "resampler", "finetune")}},
    }
    other = new_model(Settings.model_validate(blocks), [])
    for part in ("vision_backbone.encoder", "language_model"):
        before, now = (m.get_submodule(part).state_dict() for m in (model, other))
        assert before.keys() == now.keys()
        assert all(torch.equal(before[name], now[name]) for name in before)


def test_adapters_are_merged_only_when_asked(adapted, tmp_path, capsys):
    save_checkpoint(adapted, tmp_path / "best.ckpt")
    code, said = run(capsys, tmp_path / "best.ckpt", tmp_path / "out")
    assert code == 2 and "--merge-lora" in said
    assert not (tmp_path / "out").exists()


def test_nothing_to_merge(model, tmp_path, capsys):
    save_checkpoint(model, tmp_path / "best.ckpt")
    code, said = run(capsys, tmp_path / "best.ckpt", tmp_path / "out", "--merge-lora")
    assert code == 2 and "no adapters" in said
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays(model, tmp_path, capsys):
    save_checkpoint(model, tmp_path / "best.ckpt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    code, said = run(capsys, tmp_path / "best.ckpt", tmp_path / "out")
    assert code == 2 and "--overwrite" in said
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
