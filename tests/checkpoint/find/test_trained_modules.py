"""Modules that PEFT trained as a whole beside adapters (``modules_to_save``) take their places."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import save_checkpoint
from panovlm.errors import CheckpointError, ConfigError, ContradictionError
from panovlm.models.model import PanoramaVLM

load = PanoramaVLM.from_checkpoint
UNTIED = {"models.language_config.tie_word_embeddings": False}


def logits(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, 3, 32, 32, generator=generator)
    with torch.no_grad():
        return model.eval()(pixel_values=pixels, input_ids=torch.tensor([[5, 6, 7, 8]])).logits


def trained(model, targets: str | list[str], modules: list[str], *, whole: bool = False):
    """Adapt a model, or its language model, as if training had changed all that it may change."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=targets, modules_to_save=modules)
    if whole:
        model = adapted = get_peft_model(model, config)
    else:
        adapted = model.language_model = get_peft_model(model.language_model, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def base(small, tmp_path):
    """Make a model whose language model is that of a folder."""

    def of(*, tied: bool = False):
        folder = tmp_path / "base"
        language = {**small.LANGUAGE, "tie_word_embeddings": tied}
        model = small.small_model(language_config=language, language_model_name=str(folder))
        model.language_model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        return model

    return of


def split(model, folder: Path) -> Path:
    """Write the adapters, and beside them what else there is."""
    folder.mkdir()
    model.language_model.save_pretrained(folder)
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("language_model.")}
    torch.save(state, folder / "non_lora_trainables.bin")
    return folder


@pytest.mark.parametrize("modules", [["lm_head"], ["norm"], ["mlp", "embed_tokens"]])
class TestOfTheLanguageModel:
    def test_in_one_state_dict(self, base, tmp_path, modules):
        model = trained(base(), ["q_proj"], modules)
        torch.save(model.state_dict(), tmp_path / "model.pt")
        loaded = load(tmp_path / "model.pt")
        assert_close(logits(loaded), logits(model), rtol=0, atol=0)
        assert "replaced by what was trained" in " ".join(loaded.resolution.notes)

    def test_beside_what_else_was_trained(self, base, tmp_path, modules):
        model = trained(base(), ["q_proj"], modules)
        loaded = load(split(model, tmp_path / "run"))
        assert_close(logits(loaded), logits(model), rtol=0, atol=0)

    def test_beside_a_whole_checkpoint(self, base, tmp_path, modules):
        model = base()
        save_checkpoint(model, tmp_path / "best.ckpt")
        trained(model, ["q_proj"], modules).language_model.save_pretrained(
            tmp_path / "lora_weights"
        )
        (tmp_path / "checkpoint_metadata.json").unlink()
        contents = torch.load(tmp_path / "best.ckpt")
        torch.save({"state_dict": contents["state_dict"]}, tmp_path / "best.ckpt")
        loaded = load(tmp_path / "best.ckpt", overrides={"lora.use_lora": True})
        assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_of_the_whole_model(base, tmp_path):
    model = base()
    wrapped = trained(model, r".*language_model.*q_proj", ["projector", "norm"], whole=True)
    torch.save(wrapped.state_dict(), tmp_path / "model.pt")
    assert_close(logits(load(tmp_path / "model.pt")), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_a_copy_is_no_longer_tied(base, tmp_path, module):
    """PEFT copies a module to train it, so that what it was tied to stays as it was."""
    model = trained(base(tied=True), ["q_proj"], [module])
    folder = split(model, tmp_path / "run")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for path in (folder, tmp_path / "model.pt"):
        with pytest.raises(ContradictionError, match=r"--set models\..*tie_word_embeddings=false"):
            load(path)
        assert_close(logits(load(path, overrides=UNTIED)), logits(model), rtol=0, atol=0)


def test_what_was_replaced_alone_is_not_taken(base, tmp_path):
    state = trained(base(), ["q_proj"], ["norm"]).state_dict()
    kept = {n: t for n, t in state.items() if "modules_to_save" not in n}
    torch.save(kept, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"norm\.weight \[\d+\]: absent"):
        load(tmp_path / "model.pt")


def test_two_are_not_chosen_from(base, tmp_path):
    model = trained(base(), ["q_proj"], ["norm"])
    state = model.state_dict()
    other = {n.replace(".default.", ".b."): t for n, t in state.items() if "modules_to_save" in n}
    torch.save({**state, **other}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="two tensors claim"):
        load(tmp_path / "model.pt")


def test_a_document_would_not_tell_of_them(base, tmp_path):
    for modules in ([], ["norm"]):
        model = trained(base(), ["q_proj"], modules)
        with pytest.raises(ConfigError, match="adapters"):
            save_checkpoint(model, tmp_path / "best.ckpt")
        assert not (tmp_path / "best.ckpt").exists()
        shutil.rmtree(tmp_path / "base")


class TestAdapterConfig:
    @pytest.fixture
    def folder(self, base, tmp_path):
        return split(trained(base(), ["q_proj"], []), tmp_path / "run")

    def edit(self, folder, **fields):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    @pytest.mark.parametrize(
        "fields",
        [
            {"alora_invocation_tokens": [1, 2]},
            {"a_field_of_tomorrow": True},
            {"layer_replication": [[0, 2], [1, 2]]},
            {"trainable_token_indices": [3]},
        ],
    )
    def test_a_setting_that_is_not_known(self, folder, fields):
        self.edit(folder, **fields)
        with pytest.raises(CheckpointError, match=rf"not read here \({next(iter(fields))}="):
            resolve(folder)

    @pytest.mark.parametrize("began", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
    def test_beginnings_that_changed_the_base(self, folder, began):
        self.edit(folder, init_lora_weights=began)
        with pytest.raises(CheckpointError, match=f"init_lora_weights='{began}' changed"):
            resolve(folder)

    def test_settings_without_bearing(self, folder):
        expected = logits(load(folder))
        self.edit(folder, init_lora_weights="gaussian", unsloth_fixed=True, inference_mode=True)
        assert torch.equal(logits(load(folder)), expected)


def test_adapters_that_changed_their_base_hold_it(base, tmp_path):
    """In one state dict the changed weights are there, so that nothing is lost."""
    model = base()
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights="pissa")
    model.language_model = get_peft_model(model.language_model, config)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    model.language_model.save_pretrained(tmp_path / "lora_weights")
    assert_close(logits(load(tmp_path / "model.pt")), logits(model), rtol=0, atol=0)


class TestAdaptersThatPeftAlonePutThere:
    """The settings among the weights tell their scale, which no shape shows."""

    @pytest.mark.parametrize(
        ("options", "scale"),
        [
            ({"lora_alpha": 6}, 3),
            ({"lora_alpha": 6, "use_rslora": True}, 6 / 2**0.5),
            ({"lora_alpha": 6, "use_dora": True}, 3),
            ({"lora_alpha": 6, "init_lora_weights": "pissa"}, 3),
            ({"lora_alpha": 6, "bias": "lora_only"}, 3),
        ],
    )
    def test_in_one_state_dict(self, small, tmp_path, options, scale):
        model = small.small_model(language_config={**small.LANGUAGE, "attention_bias": True})
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **options)
        model.language_model = get_peft_model(model.language_model, config, adapter_name="mine")
        with torch.no_grad():
            for parameter in model.language_model.parameters():
                parameter.add_(0.1 * parameter.requires_grad)
        torch.save(model.state_dict(), tmp_path / "model.pt")
        loaded = load(tmp_path / "model.pt", strict=True)
        assert loaded.recipe.lora.alpha == pytest.approx(2 * scale)
        assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
        if "bias" not in options:  # what PEFT says of them beside it is the same
            model.language_model.save_pretrained(tmp_path)
            shutil.move(tmp_path / "mine", tmp_path / "lora_weights")
            again = load(tmp_path / "model.pt", strict=True).recipe.lora
            targets = {"target_modules": loaded.recipe.lora.target_modules}  # PEFT has no order
            assert again.model_copy(update=targets) == loaded.recipe.lora

    @pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern"])
    def test_several_scales_cannot_be_told(self, small, pattern):
        model = small.small_model()
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **{pattern: {"q_proj": 4}})
        model.language_model = get_peft_model(model.language_model, config)
        with pytest.raises(ConfigError, match="several ranks or scales"):
            model.state_dict()
