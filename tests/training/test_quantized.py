"""Training adapters upon a language model in four or eight bits."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from panovlm.checkpoint.saving.convert import convert
from panovlm.errors import ConfigError, MissingDependencyError
from panovlm.models.language.quantized import quantized
from panovlm.models.model import PanoramaVLM
from panovlm.panorama.image import read_panorama
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.training.checkpoints import CheckpointWriter
from panovlm.training.dry_run import plan
from panovlm.training.run import train
from panovlm.training.rundir import BEST, LAST

SMALL = Path(__file__).parent.parent / "small.yaml"
ALONE = ("training.stages=[finetune]", "training.stage_configs.finetune.epochs={}")


@pytest.fixture(scope="module")
def settings_of(make_settings: Any, backbones: dict[str, Path]) -> Any:
    def of(runs: Path, *overrides: str, kind: str = "nf4") -> Any:
        return make_settings(
            runs,
            "models.vision_config=null",
            f"models.vision_name={backbones['vision']}",
            "models.language_config=null",
            f"models.language_model_name={backbones['language']}",
            "training.stage_configs.resampler.trainable={language_model: false}",
            "training.save=trainable",
            f"models.language_quantization={kind}",
            *overrides,
        )

    return of


def quietly(settings: Any, **options: Any) -> Path:
    return train(settings, console=Console(file=io.StringIO()), **options)


def stored(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    del state["model.recipe_bytes"]
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def folder(settings_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last run folder of all stages, each of which starts from the one before."""
    return quietly(settings_of(tmp_path_factory.mktemp("runs")))


def test_adapters_are_trained_and_the_base_is_not(folder: Path, backbones: Any) -> None:
    loaded = PanoramaVLM.from_checkpoint(folder, strict=True)
    trained = [t for n, t in stored(folder / BEST).items() if "lora_B" in n]
    assert trained and all(bool(t.any()) for t in trained)
    plain = AutoModelForCausalLM.from_pretrained(backbones["language"])
    layers = dict(quantized(loaded.language_model))
    assert len(layers) == 7
    for name, layer in layers.items():
        own = name.removeprefix("base_model.model.").removesuffix(".base_layer")
        assert layer.is_rounded_from(plain.get_submodule(own).weight)


def test_the_file_holds_no_weight_of_the_base(folder: Path) -> None:
    language = {n for n in stored(folder / BEST) if n.startswith("language_model.")}
    tables = ("embed_tokens.weight", "lm_head.weight")  # the tokenizer has grown
    assert language and all("lora_" in n or n.endswith(tables) for n in language)


def test_answers_are_the_same_from_wherever_it_is_loaded(
    folder: Path, scenes: Path, tmp_path: Path
) -> None:
    """From the run folder; complete in one file; and with what it computes with as weights."""
    convert(folder, tmp_path / "whole.safetensors", to="safetensors")
    convert(folder, tmp_path / "merged.safetensors", to="safetensors", merge_lora=True)
    panorama = read_panorama(next(scenes.rglob("test*.jpg")))
    found: list[list[list[int]]] = []
    for source in (folder, tmp_path / "whole.safetensors", tmp_path / "merged.safetensors"):
        model = PanoramaVLM.from_checkpoint(source, strict=True)
        pixels = torch.from_numpy(ViewPipeline(model.recipe.image_processing)(panorama))[None]
        ids, mask = model.chat().prompts(["what is left of the red ball ?", "what is red ?"])
        made = model.generate(pixels, ids, mask, min_new_tokens=6, max_new_tokens=6)
        found.append(made.tolist())
    assert found[0] == found[1] == found[2] and len(found[0]) == 2


@pytest.mark.parametrize("kind", ["int8", "fp4"])
def test_the_other_kinds(kind: str, settings_of: Any, tmp_path: Path) -> None:
    only = [part.format(1) for part in ALONE]
    folder = quietly(settings_of(tmp_path, *only, "lora.use_dora=true", kind=kind))
    loaded = PanoramaVLM.from_checkpoint(folder, strict=True)
    assert {layer.kind for _, layer in quantized(loaded.language_model)} == {kind}


def test_an_interrupted_stage_goes_on(
    settings_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [part.format(2) for part in ALONE]
    constant = "training.stage_configs.finetune.schedule=constant"
    whole = quietly(settings_of(tmp_path / "whole", *two, constant))
    expected = stored(whole / LAST)
    write = CheckpointWriter._write_last

    def once(self: CheckpointWriter, trainer: Any) -> None:
        write(self, trainer)
        if trainer.current_epoch == 0:
            raise KeyboardInterrupt

    settings = settings_of(tmp_path / "half", *two, constant)
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(CheckpointWriter, "_write_last", once)
        quietly(settings)
    half = quietly(settings, resume=True)
    found = stored(half / LAST)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


class TestRefused:
    @pytest.mark.parametrize(
        ("override", "told"),
        [
            ("training.save=all", r"training\.save to 'trainable'"),
            ("models.language_config={model_type: qwen3}", "builds an untrained language model"),
            (
                "training.stage_configs.finetune.trainable={language_model: true}",
                r"finetune\.trainable\.language_model asks to train it",
            ),
            ("models.language_quantization=int4", "'none', 'int8', 'nf4' or 'fp4'"),
        ],
    )
    def test_settings(self, override: str, told: str, settings_of: Any, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=told):
            settings_of(tmp_path, override)

    def test_without_bitsandbytes(
        self, settings_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("panovlm.models.language.quantized.find_spec", lambda name: None)
        with pytest.raises(MissingDependencyError, match=r"panovlm\[quant\]"):
            quietly(settings_of(tmp_path))
        assert list(tmp_path.iterdir()) == []


def test_the_dry_run_counts_all_weights_and_less_memory(settings_of: Any, tmp_path: Path) -> None:
    full, quarter = (plan(settings_of(tmp_path, kind=kind)) for kind in ("none", "nf4"))
    for one, other in zip(full.stages, quarter.stages, strict=True):
        assert one.components == other.components
        # Four matrices of 16 x 16 and three of 16 x 32, from 32 bits to four and a half.
        assert one.memory - other.memory == (4 * 16 * 16 + 3 * 16 * 32) * (32 - 4.5) / 8
