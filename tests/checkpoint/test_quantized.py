"""Checkpoints of models whose language model is quantised, well described or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from panovlm.checkpoint.repair.metadata import add_metadata
from panovlm.checkpoint.repair.solve import solve
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.convert import convert
from panovlm.checkpoint.saving.extract import extract_backbones
from panovlm.checkpoint.saving.save import save_checkpoint, strip_metadata, without_record
from panovlm.cli.main import main
from panovlm.config.schema import LoRASettings, Settings
from panovlm.errors import (
    CheckpointError,
    ConfigError,
    ContradictionError,
    MissingDependencyError,
)
from panovlm.models.assemble import new_model
from panovlm.models.model import PanoramaVLM

load = PanoramaVLM.from_checkpoint
FIELD = "models.language_quantization"
IDS = torch.tensor([[4, 5, 6, 7, 8]])


def logits(model: PanoramaVLM) -> torch.Tensor:
    pixels = torch.randn(1, 9, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model(pixels, IDS).logits


@pytest.fixture(scope="session")
def quantized(backbones: Any) -> Any:
    """Make a model upon a quantised language model, with adapters that do something."""
    made: dict[tuple[Any, ...], PanoramaVLM] = {}

    def of(kind: str = "nf4", language: str = "qwen2", **lora: Any) -> PanoramaVLM:
        key = (kind, language, *sorted(lora.items()))
        if key not in made:
            torch.manual_seed(7)
            settings = Settings.model_validate(
                {
                    "models": {
                        "vision_config": {
                            "model_type": "siglip_vision_model",
                            "hidden_size": 16,
                            "intermediate_size": 24,
                            "num_hidden_layers": 1,
                            "num_attention_heads": 1,
                            "image_size": 16,
                            "patch_size": 8,
                        },
                        "language_model_name": str(backbones.language[language]),
                        "resampler_config": {"hidden_dim": 48},
                        "latent_dimension": 40,
                        FIELD.removeprefix("models."): kind,
                    },
                    "training": {
                        "save": "trainable",
                        "stage_configs": {"finetune": {}},
                        "stages": ["finetune"],
                    },
                }
            )
            model = new_model(settings, [])
            model.add_adapters(LoRASettings(use_lora=True, rank=2, alpha=4, dropout=0, **lora))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(std=0.1)
            made[key] = model.eval()
        return made[key]

    return of


@pytest.fixture
def saved(quantized: Any, tmp_path: Path) -> Any:
    """Write such a model to ``run/best.ckpt``."""

    def of(*args: Any, **options: Any) -> tuple[PanoramaVLM, Path]:
        model = quantized(*args, **options)
        (tmp_path / "run").mkdir()
        save_checkpoint(model, tmp_path / "run" / "best.ckpt", stage="finetune")
        return model, tmp_path / "run" / "best.ckpt"

    return of


class TestDescribed:
    @pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
    def test_loads_as_the_very_model(self, kind: str, saved: Any) -> None:
        model, path = saved(kind)
        loaded = load(path, strict=True)
        assert loaded.is_quantized and loaded.recipe.models.language_quantization == kind
        assert torch.equal(logits(loaded), logits(model))

    def test_dora(self, saved: Any) -> None:
        model, path = saved(use_dora=True)
        assert torch.equal(logits(load(path, strict=True)), logits(model))

    def test_the_file_refers_to_the_full_weights(self, saved: Any, backbones: Any) -> None:
        _, path = saved()
        names = torch.load(path, weights_only=True)["state_dict"]
        language = [n for n in names if n.startswith("model.language_model.")]
        assert all("lora_" in n or "embed_tokens" in n or "lm_head" in n for n in language)
        (reference,) = resolve(path).borrowed.values()
        assert reference.name == str(backbones.language["qwen2"]) and reference.digest

    def test_other_weights_under_the_name_are_refused(
        self, saved: Any, backbones: Any, tmp_path: Path
    ) -> None:
        _, path = saved()
        other = shutil.copytree(backbones.language["qwen2"], tmp_path / "other")
        model = AutoModelForCausalLM.from_pretrained(other)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-6  # rounded to the same bits
        model.save_pretrained(other)
        with pytest.raises(ContradictionError, match="other weights of the language model"):
            load(path, overrides={"models.language_model_name": str(other)})

    def test_half_precision_leaves_the_bits(self, saved: Any) -> None:
        model, path = saved()
        half = load(path, dtype=torch.bfloat16)
        assert_close(logits(half).float(), logits(model), rtol=0.1, atol=0.1)

    def test_without_bitsandbytes(self, saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        _, path = saved()
        monkeypatch.setattr("panovlm.models.language.quantized.find_spec", lambda name: None)
        assert resolve(path).assumed == []
        with pytest.raises(MissingDependencyError, match=r"pip install 'panovlm\[quant\]'"):
            load(path)
        assert not load(path, overrides={FIELD: "none"}).is_quantized


class TestOtherwise:
    """The caller, or another document, says something else."""

    def test_an_override_is_obeyed_and_told(self, saved: Any) -> None:
        model, path = saved()
        loaded = load(path, overrides={FIELD: "none"})
        assert not loaded.is_quantized
        assert loaded.resolution is not None
        assert "language model computes something else" in " ".join(loaded.resolution.notes)
        assert float((logits(loaded) - logits(model)).abs().max()) > 1e-3

    def test_a_document_that_says_none_contradicts(self, saved: Any) -> None:
        _, path = saved()
        document = path.parent / "checkpoint_metadata.json"
        raw = json.loads(document.read_text())
        raw["recipe"]["models"]["language_quantization"] = "none"
        document.write_text(json.dumps(raw))
        with pytest.raises(ContradictionError, match=r"language_quantization: 'none' .* 'nf4'"):
            load(path)
        assert load(path, prefer="weights").is_quantized

    def test_explain_tells_where_it_comes_from(self, saved: Any, capsys: Any) -> None:
        _, path = saved()
        assert main(["explain", str(path), "language_quantization"]) == 0
        told = capsys.readouterr().out
        assert "= 'nf4'" in told and "unobservable" in told


class TestUndescribed:
    def test_a_state_dict_names_its_base(self, quantized: Any, tmp_path: Path) -> None:
        model = quantized()
        torch.save(model.state_dict(), tmp_path / "bare.pt")
        loaded = load(tmp_path / "bare.pt", strict=True)
        assert torch.equal(logits(loaded), logits(model))

    def test_with_the_wrong_base(self, quantized: Any, backbones: Any, tmp_path: Path) -> None:
        torch.save(quantized().state_dict(), tmp_path / "bare.pt")
        other = shutil.copytree(backbones.language["qwen2"], tmp_path / "other")
        model = AutoModelForCausalLM.from_pretrained(other)
        with torch.no_grad():
            model.model.norm.weight[0] += 0.1
        model.save_pretrained(other)
        with pytest.raises(ContradictionError, match="quantised from another language model"):
            load(tmp_path / "bare.pt", overrides={"models.language_model_name": str(other)})

    def test_a_stripped_file_is_assumed_to_be_full(self, saved: Any, tmp_path: Path) -> None:
        _, path = saved()
        convert(path, tmp_path / "full.ckpt", to="lightning")
        strip_metadata(tmp_path / "full.ckpt", tmp_path / "bare.pt")
        assert FIELD in resolve(tmp_path / "bare.pt").assumed

    def test_its_probe_finds_it_again(self, saved: Any, tmp_path: Path) -> None:
        model, path = saved()
        convert(path, tmp_path / "full.ckpt", to="lightning")
        contents = torch.load(tmp_path / "full.ckpt", weights_only=True)
        del contents["panovlm_metadata"]
        contents["state_dict"] = without_record(contents["state_dict"])
        (tmp_path / "bare").mkdir()
        torch.save(contents, tmp_path / "bare" / "best.ckpt")
        models = model.config.typed_recipe().models
        known = {
            f"models.{c}_config": getattr(models, f"{c}_config") for c in ("vision", "language")
        }
        with pytest.raises(CheckpointError, match=r"Its weights are those of then(.|\n)*quantiz"):
            load(tmp_path / "bare", overrides=known)
        found = solve(tmp_path / "bare", overrides=known)
        assert found.complete and found.settled[FIELD] == "nf4"
        found.write()
        assert torch.equal(logits(load(tmp_path / "bare")), logits(model))


class TestConverted:
    @pytest.mark.parametrize("to", ["safetensors", "huggingface"])
    def test_is_complete_and_still_quantised(self, to: Any, saved: Any, tmp_path: Path) -> None:
        model, path = saved()
        target = tmp_path / ("full.safetensors" if to == "safetensors" else "full")
        convert(path, target, to=to)
        assert resolve(target).borrowed == {}
        assert torch.equal(logits(load(target, strict=True)), logits(model))
        if to == "huggingface":
            again = PanoramaVLM.from_pretrained(target).eval()
            assert torch.equal(logits(again), logits(model))

    @pytest.mark.parametrize("kind", ["int8", "fp4"])
    def test_merged_adapters_end_it(self, kind: str, saved: Any, tmp_path: Path) -> None:
        model, path = saved(kind)
        convert(path, tmp_path / "merged.ckpt", to="lightning", merge_lora=True)
        merged = load(tmp_path / "merged.ckpt", strict=True)
        assert not merged.is_quantized and not merged.recipe.lora.use_lora
        assert merged.recipe.models.language_quantization == "none"
        assert_close(logits(merged), logits(model), rtol=0, atol=1e-4)

    def test_other_types_would_be_other_bits(self, saved: Any, tmp_path: Path) -> None:
        _, path = saved()
        with pytest.raises(ConfigError, match="--merge-lora"):
            convert(path, tmp_path / "half", to="sharded", dtype=torch.bfloat16)
        assert not (tmp_path / "half").exists()

    def test_backbones_of_their_own(self, saved: Any, tmp_path: Path) -> None:
        model, path = saved()
        extract_backbones(path, tmp_path / "parts", merge_lora=True)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "parts" / "language").eval()
        with torch.no_grad():
            ours = model.language_model(input_ids=IDS).logits
            assert_close(plain(input_ids=IDS).logits, ours, rtol=0, atol=1e-4)


class TestWriting:
    def test_a_base_without_a_name(self, quantized: Any, backbones: Any, tmp_path: Path) -> None:
        model = quantized("int8", "llama")
        layer = model.language_model.get_base_model().model.layers[0].mlp.up_proj.base_layer
        before = layer.packed.clone()
        layer.packed[0, 0] ^= 1
        try:
            with pytest.raises(ConfigError, match=r"quantised from other weights .*1 of \d+"):
                save_checkpoint(model, tmp_path / "best.ckpt")
        finally:
            layer.packed.copy_(before)
        assert list(tmp_path.iterdir()) == []

    def test_save_pretrained_says_what_to_do(self, quantized: Any, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="panovlm convert"):
            quantized().save_pretrained(tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestStoredQuantized:
    """A base of which there are rounded weights only, as on some hub pages."""

    @pytest.fixture
    def rounded(self, backbones: Any, tmp_path: Path) -> Path:
        folder = shutil.copytree(backbones.language["qwen2"], tmp_path / "bnb-4bit")
        config = json.loads((folder / "config.json").read_text())
        told = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": told}))
        return folder

    def test_cannot_be_named(self, rounded: Path, saved: Any) -> None:
        _, path = saved()
        with pytest.raises(CheckpointError, match=r"stored quantised .*language_quantization=nf4"):
            load(path, overrides={"models.language_model_name": str(rounded)})

    def test_adapters_that_were_trained_upon_it(
        self, rounded: Path, quantized: Any, backbones: Any, tmp_path: Path
    ) -> None:
        """PEFT's folder names the rounded model, and so does the error."""
        model = quantized()
        split = tmp_path / "split"
        split.mkdir()
        state = {n: t for n, t in model.state_dict().items() if "recipe" not in n}
        apart = ("language_model.",)
        torch.save(
            {f"base_model.model.{n}": t for n, t in state.items() if not n.startswith(apart)},
            split / "non_lora_trainables.bin",
        )
        peft = model.language_model
        peft.peft_config["default"].base_model_name_or_path = str(rounded)
        peft.save_pretrained(split, save_embedding_layers=True)
        tower = json.dumps(model.config.vision_config.to_dict())
        given: dict[str, Any] = {"models.vision_config": json.loads(tower)}
        with pytest.raises(CheckpointError, match=r"stored quantised .*language_quantization=nf4"):
            load(split, overrides=given)
        given |= {"models.language_model_name": str(backbones.language["qwen2"]), FIELD: "nf4"}
        loaded = load(split, overrides=given)
        assert loaded.is_quantized
        inputs = {"input_ids": IDS}
        with torch.no_grad():
            ours = model.language_model(**inputs).logits
            assert_close(loaded.language_model(**inputs).logits, ours, rtol=0, atol=1e-5)


def test_a_document_from_before_the_setting_means_none(own: Any, tmp_path: Path) -> None:
    save_checkpoint(own(), tmp_path / "best.ckpt")
    document = tmp_path / "checkpoint_metadata.json"
    raw = json.loads(document.read_text())
    del raw["recipe"]["models"]["language_quantization"]
    document.write_text(json.dumps(raw))
    found = resolve(tmp_path)
    assert found.value(FIELD) == "none" and found.assumed == []
    assert add_metadata(tmp_path / "best.ckpt") is not None
