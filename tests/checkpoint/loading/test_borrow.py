"""Checkpoints that leave a backbone to a named model: split ones, and trained tensors alone."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForCausalLM

from panovlm.checkpoint.loading.borrow import digest
from panovlm.checkpoint.resolve import resolve
from panovlm.cli.main import main
from panovlm.errors import CheckpointError, ContradictionError
from panovlm.models.model import PanoramaVLM

load = PanoramaVLM.from_checkpoint
IDS = torch.tensor([[4, 5, 6, 7, 8]])
TABLES = ("embed_tokens.weight", "lm_head.weight")


def pixels() -> torch.Tensor:
    return torch.randn(1, 2, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def compare(loaded, model) -> None:
    with torch.no_grad():
        ids, mask = IDS, torch.ones_like(IDS)
        assert_close(
            loaded.vision_tokens(pixels()), model.vision_tokens(pixels()), rtol=0, atol=2e-5
        )
        ours, theirs = (m(pixels(), ids, mask).logits for m in (loaded, model))
        assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.fixture
def frozen(original, backbones):
    """A model of which the backbones are those of their folders, but for new tokens' rows."""

    def of(language="qwen2", *, lora=None, **settings):
        spec = original.Spec(language=language, lora=lora, **settings)
        model = original.build(spec, backbones)
        rows = len(model.tokenizer)
        with torch.no_grad():
            encoder = AutoModel.from_pretrained(backbones.vision["siglip"]).vision_model
            model.vision_backbone.encoder.load_state_dict(encoder.state_dict())
            plain = AutoModelForCausalLM.from_pretrained(backbones.language[language])
            torch.manual_seed(11)
            plain.resize_token_embeddings(rows, mean_resizing=False)
            trained = {n: t for n, t in model.language_model.state_dict().items() if "lora_" in n}
            model.language_model = original.with_lora(plain, spec) if lora else plain
            model.language_model.load_state_dict(trained, strict=False)
        return model.eval()

    return of


def trainables(model, files) -> dict[str, torch.Tensor]:
    """Everything but the tower and the language model, under names as LLaVA's trainer has them."""
    state = files.state_dict(model, prefix="", aliases=False)
    apart = ("vision_backbone.encoder.", "language_model.")
    return {f"base_model.model.{n}": t for n, t in state.items() if not n.startswith(apart)}


@pytest.fixture
def split(frozen, files, backbones, tmp_path):
    """A folder of adapters beside what else was trained."""
    model = frozen(lora={"r": 3, "lora_alpha": 12})
    model.language_model.peft_config["default"].base_model_name_or_path = str(
        backbones.language["qwen2"]
    )
    model.language_model.save_pretrained(tmp_path)
    torch.save(trainables(model, files), tmp_path / "non_lora_trainables.bin")
    return model, tmp_path


class TestSplit:
    def test_loads_given_the_tower(self, split, backbones):
        model, folder = split
        overrides = {"models.vision_name": str(backbones.vision["siglip"])}
        for path in (folder, folder / "non_lora_trainables.bin"):
            loaded = load(path, overrides=overrides)
            compare(loaded, model)
        found = loaded.resolution
        assert set(found.borrowed) == {"vision_backbone.encoder.", "language_model."}
        assert found.config.models.language_model_name == str(backbones.language["qwen2"])
        notes = " ".join(found.notes)
        assert "of the vision tower are those of" in notes and "no digest was recorded" in notes

    def test_projector_file_beside_lora_weights(self, split, backbones, tmp_path):
        model, folder = split
        (folder / "lora_weights").mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.move(folder / name, folder / "lora_weights" / name)
        shutil.move(folder / "non_lora_trainables.bin", folder / "mm_projector.bin")
        loaded = load(folder, overrides={"vision_name": str(backbones.vision["siglip"])})
        compare(loaded, model)

    def test_what_is_missing_is_named(self, split):
        _, folder = split
        with pytest.raises(CheckpointError, match=r"vision tower.*--set models\.vision_name=NAME"):
            resolve(folder)

    def test_a_base_that_is_not_here(self, split, backbones):
        _, folder = split
        config = folder / "adapter_config.json"
        raw = json.loads(config.read_text())
        config.write_text(json.dumps({**raw, "base_model_name_or_path": "someone/else"}))
        tower = {"models.vision_name": str(backbones.vision["siglip"])}
        with pytest.raises(CheckpointError, match="someone/else"):
            load(folder, overrides=tower)
        base = {"models.language_model_name": str(backbones.language["qwen2"])}
        assert load(folder, overrides={**tower, **base})

    def test_another_base_of_the_same_sizes(self, split, backbones):
        _, folder = split
        overrides = {
            "models.vision_name": str(backbones.vision["siglip"]),
            "models.language_model_name": str(backbones.language["llama"]),
        }
        with pytest.raises(ContradictionError, match="made for another language model"):
            load(folder, overrides=overrides)

    def test_without_adapters(self, frozen, files, backbones, tmp_path):
        """A first stage: the projector alone was trained, the tokenizer's rows came new."""
        model = frozen()
        state = trainables(model, files)
        whole = files.state_dict(model, prefix="", aliases=False)
        state |= {n: t for n, t in whole.items() if n.endswith(TABLES)}
        torch.save(state, tmp_path / "mm_projector.bin")
        names = {
            "models.vision_name": str(backbones.vision["siglip"]),
            "models.language_model_name": str(backbones.language["qwen2"]),
        }
        compare(load(tmp_path, overrides=names), model)

    def test_metadata_settles_it_for_good(self, split, backbones, capsys):
        model, folder = split
        name = f"models.vision_name={backbones.vision['siglip']}"
        file = str(folder / "non_lora_trainables.bin")
        assert main(["add-metadata", "--checkpoint", file, "--set", name]) == 0
        compare(load(folder), model)
        assert main(["inspect", str(folder)]) == 0
        printed = capsys.readouterr().out
        assert "elsewhere: vision_backbone.encoder.* from" in printed


class TestAbsentBackbones:
    """Nothing but the caller's word says that they were frozen."""

    @pytest.mark.parametrize(
        ("prefix", "field", "folder"),
        [
            ("vision_backbone.encoder.", "models.vision_name", "siglip"),
            ("language_model.", "models.language_model_name", "qwen2"),
        ],
    )
    def test_only_by_name(self, prefix, field, folder, frozen, files, backbones, tmp_path):
        model = frozen()
        path = files.write_run(tmp_path, model, backbones)
        contents = torch.load(path)
        contents["state_dict"] = {
            n: t
            for n, t in contents["state_dict"].items()
            if not n.startswith(f"model.{prefix}") or n.endswith(TABLES)
        }
        torch.save(contents, path)
        with pytest.raises(CheckpointError, match=rf"no weight of .*is named.*--set {field}=NAME"):
            resolve(path)
        found = {**backbones.vision, **backbones.language}[folder]
        compare(load(path, overrides={field: str(found)}), model)

    def test_adapters_without_what_they_adapt(self, frozen, files, backbones, tmp_path):
        """What a trainer keeps that saves trained tensors only; the file names its base."""
        model = frozen(lora={"r": 3, "lora_alpha": 12})
        path = files.write_run(tmp_path, model, backbones)
        contents = torch.load(path)
        contents["state_dict"] = {
            n: t
            for n, t in contents["state_dict"].items()
            if "language_model" not in n or "lora_" in n or n.endswith(TABLES)
        }
        torch.save(contents, path)
        loaded = load(path)
        compare(loaded, model)
        assert list(loaded.resolution.borrowed) == ["language_model."]

    def test_a_part_of_a_backbone_is_no_reference(self, frozen, files, backbones, tmp_path):
        path = files.write_run(tmp_path, frozen(), backbones)
        contents = torch.load(path)
        contents["state_dict"] = {
            n: t for n, t in contents["state_dict"].items() if "layers.1.mlp.fc1.bias" not in n
        }
        torch.save(contents, path)
        with pytest.raises(CheckpointError, match=r"layers\.1.*absent"):
            load(path, overrides={"vision_name": str(backbones.vision["siglip"])})


def test_the_digest_covers_names_types_shapes_and_values():
    one = {"language_model.a": torch.arange(6.0).view(2, 3), "language_model.b": torch.ones(2)}
    same = {
        "language_model.base_model.model.b": torch.ones(2),
        "language_model.a": torch.arange(6.0).view(3, 2).view(2, 3),
    }
    before = digest("language_model.", one)
    assert digest("language_model.", same) == before
    for name, tensor in (
        ("a", torch.arange(6.0).view(3, 2)),
        ("a", torch.arange(6.0).view(2, 3).to(torch.bfloat16)),
        ("a", torch.arange(6.0).view(2, 3) + 1e-6),
        ("c", torch.zeros(1)),
    ):
        assert digest("language_model.", {**one, f"language_model.{name}": tensor}) != before
