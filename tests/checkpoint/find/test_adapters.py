"""Adapters in a folder of their own: put onto weights exactly, or refused with both ways out."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch.testing import assert_close

from panovlm.checkpoint.repair.metadata import add_metadata
from panovlm.checkpoint.resolve import resolve
from panovlm.errors import CheckpointError, ContradictionError
from panovlm.models.model import PanoramaVLM

LORA = {"lora": {"r": 3, "lora_alpha": 12}}
IDS = torch.tensor([[4, 5, 6, 7, 8]])
load = PanoramaVLM.from_checkpoint


def logits(language_model) -> torch.Tensor:
    with torch.no_grad():
        return language_model(input_ids=IDS).logits


@pytest.fixture
def fresh(original, backbones):
    """An adapted model whose language model is that of its folder: only adapters were trained."""

    def of(language="qwen2", *, zero=False, **lora):
        settings = {**LORA["lora"], **lora}
        model = original.build(original.Spec(language=language, lora=settings), backbones)
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_pretrained(backbones.language[language])
        plain.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
        trained = {n: t for n, t in model.language_model.state_dict().items() if "lora_" in n}
        model.language_model = original.with_lora(plain, model.spec)
        model.language_model.load_state_dict(
            {n: torch.zeros_like(t) if zero and "lora_B" in n else t for n, t in trained.items()},
            strict=False,
        )
        model.language_model.peft_config["default"].base_model_name_or_path = str(
            backbones.language[language]
        )
        return model.eval()

    return of


@pytest.fixture
def run(files, backbones, tmp_path):
    """Write a checkpoint whose language model is plain, with ``lora_weights/`` beside it."""

    def written(model, *, merged=False, plain=True, safe=True, hyper=True, **options):
        path = files.write_run(tmp_path, model, backbones, hyper=hyper, **options)
        folder = tmp_path / "lora_weights"
        model.language_model.save_pretrained(folder, safe_serialization=safe)
        contents = torch.load(path)
        state = contents["state_dict"]
        if merged:
            whole = model.language_model.merge_and_unload()
            names = [n for n in state if n.startswith("model.language_model.")]
            for name in names:
                del state[name]
            state |= {f"model.language_model.{n}": t for n, t in whole.state_dict().items()}
        elif plain:
            for name in [n for n in state if "lora_" in n]:
                del state[name]
            for name in list(state):
                bare = name.replace("base_model.model.", "").replace(".base_layer", "")
                state[bare] = state.pop(name)
        torch.save(contents, path)
        return path

    return written


class TestBesideAPlainCheckpoint:
    @pytest.mark.parametrize("safe", [True, False])
    @pytest.mark.parametrize("language", ["qwen2", "llama"])
    def test_put_on_when_the_weights_are_those_before(self, language, safe, fresh, run):
        model = fresh(language)
        expected = logits(model.language_model)
        path = run(model, safe=safe)
        loaded = load(path)
        assert_close(logits(loaded.language_model), expected, rtol=0, atol=2e-5)
        with loaded.language_model.disable_adapter():
            assert (logits(loaded.language_model) - expected).abs().max() > 1e-2
        assert any("that was adapted" in note for note in loaded.resolution.notes)
        assert loaded.recipe.lora.rank == 3 and loaded.recipe.lora.alpha == 12

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_left_out_when_they_are_merged(self, dtype, fresh, run):
        model = fresh()
        path = run(model, merged=True)
        contents = torch.load(path)
        contents["state_dict"] = {n: t.to(dtype) for n, t in contents["state_dict"].items()}
        torch.save(contents, path)
        loaded = load(path, dtype=torch.float32)
        expected = logits(model.language_model.to(dtype).float())
        assert_close(logits(loaded.language_model), expected, rtol=0, atol=2e-5)
        assert not loaded.recipe.lora.use_lora
        assert any("merged into the weights already" in note for note in loaded.resolution.notes)

    def test_nothing_tells(self, build, run):
        """The language model was trained before, so that its weights are no known model's."""
        model = build(**LORA)
        expected = logits(model.language_model)
        path = run(model)
        with pytest.raises(CheckpointError) as error:
            resolve(path)
        for way in ("use_lora=true", "use_lora=false", "models.language_model_name=FOLDER"):
            assert way in str(error.value)
        put_on = load(path, overrides={"lora.use_lora": True})
        assert_close(logits(put_on.language_model), expected, rtol=0, atol=2e-5)
        left_out = load(path, overrides={"use_lora": False})
        with put_on.language_model.disable_adapter():
            assert torch.equal(logits(left_out.language_model), logits(put_on.language_model))
        assert (logits(left_out.language_model) - expected).abs().max() > 1e-2

    @pytest.mark.parametrize("use_lora", [True, False])
    def test_metadata_settles_it_for_good(self, use_lora, build, run):
        model = build(**LORA)
        path = run(model)
        add_metadata(path, overrides={"lora.use_lora": use_lora})
        found = resolve(path)
        assert (found.adapters is not None) == use_lora == found.config.lora.use_lora
        assert found.conflicts == []

    def test_the_adapted_model_may_be_named_by_the_caller(self, fresh, run, backbones, tmp_path):
        model = fresh()
        expected = logits(model.language_model)
        path = run(model)
        config = tmp_path / "lora_weights" / "adapter_config.json"
        raw = json.loads(config.read_text())
        config.write_text(json.dumps({**raw, "base_model_name_or_path": "/moved/away"}))
        with pytest.raises(CheckpointError, match="nothing tells"):
            resolve(path)
        folder = str(backbones.language["qwen2"])
        loaded = load(path, overrides={"models.language_model_name": folder})
        assert_close(logits(loaded.language_model), expected, rtol=0, atol=2e-5)

    def test_layers_marked_as_adapted_were_not_merged(self, build, run, tmp_path):
        model = build(**LORA)
        path = run(model, plain=False)
        contents = torch.load(path)
        contents["state_dict"] = {
            n: t for n, t in contents["state_dict"].items() if "lora_" not in n
        }
        torch.save(contents, path)
        loaded = load(path)
        assert_close(logits(loaded.language_model), logits(model.language_model), rtol=0, atol=2e-5)
        shutil.rmtree(tmp_path / "lora_weights")
        with pytest.raises(CheckpointError, match=r"base_layer.*but not the adapters"):
            load(path)

    def test_embeddings_of_another_model(self, build, run):
        model = build(**LORA)
        path = run(model)
        contents = torch.load(path)
        name = "model.language_model.model.embed_tokens.weight"
        contents["state_dict"][name] = contents["state_dict"][name] + 1
        contents["state_dict"]["model.language_model.lm_head.weight"] = contents["state_dict"][name]
        torch.save(contents, path)
        with pytest.raises(ContradictionError, match=r"adapter_model.*different values"):
            load(path, overrides={"lora.use_lora": True})

    def test_their_own_record_tells_their_scale(self, fresh, run, files, backbones):
        """The checkpoint's hyper-parameters are those of the stage before."""
        model = fresh()
        hyper = files.hyper_parameters(model, backbones, lora_rank=16, lora_alpha=5)
        found = resolve(run(model, hyper=hyper))
        assert (found.config.lora.rank, found.config.lora.alpha) == (3, 12)
        assert found.sources["lora.alpha"].detail == "lora_weights/adapter_config.json"
        assert found.conflicts == []

    def test_rank_stabilised(self, fresh, run):
        model = fresh(use_rslora=True)
        expected = logits(model.language_model)
        assert_close(logits(load(run(model)).language_model), expected, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("merged", [False, True])
    def test_dora(self, merged, fresh, run):
        """PEFT's own file names the vector of lengths without a leaf."""
        model = fresh(use_dora=True)
        expected = logits(model.language_model)
        with model.language_model.disable_adapter():
            assert (logits(model.language_model) - expected).abs().max() > 1e-2
        path = run(model, merged=merged)
        loaded = load(path)
        assert_close(logits(loaded.language_model), expected, rtol=0, atol=2e-5)
        assert loaded.recipe.lora.use_lora is not merged
        if not merged:
            assert loaded.recipe.lora.use_dora
            config = path.parent / "lora_weights" / "adapter_config.json"
            raw = json.loads(config.read_text())
            config.write_text(json.dumps({n: v for n, v in raw.items() if n != "use_dora"}))
            assert "lora_magnitude_vector" in resolve(path).sources["use_dora"].detail

    @pytest.mark.parametrize("said", [True, False])
    def test_a_document_that_says_the_other_kind(self, said, fresh, run, tmp_path):
        path = run(fresh(use_dora=not said))
        config = tmp_path / "lora_weights" / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": said}))
        with pytest.raises(ContradictionError, match="use_dora"):
            load(path)
        assert load(path, prefer="weights").recipe.lora.use_dora is not said

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"bias": "all"}, "bias='all'"),
            ({"lora_bias": True}, "lora_bias"),
            ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
            ({"peft_type": "IA3"}, "IA3"),
        ],
    )
    def test_other_kinds(self, change, told, fresh, run, tmp_path):
        path = run(fresh())
        config = tmp_path / "lora_weights" / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
        with pytest.raises(
            CheckpointError, match=rf"adapter_config\.json.*{told}.*merge_and_unload"
        ):
            resolve(path)

    def test_adapters_of_another_language_model(
        self, fresh, run, build, files, backbones, tmp_path
    ):
        path = run(fresh())
        other = build(**LORA, language="llama")
        contents = files.checkpoint(other, backbones, hyper=None, data=None)
        state = {n: t for n, t in contents["state_dict"].items() if "lora_" not in n}
        torch.save({"state_dict": state}, path)
        with pytest.raises(CheckpointError):
            load(path)

    def test_half_of_them(self, fresh, run, tmp_path):
        path = run(fresh(), safe=False)
        file = tmp_path / "lora_weights" / "adapter_model.bin"
        tensors = torch.load(file)
        torch.save({n: t for n, t in tensors.items() if "layers.1" not in n}, file)
        with pytest.raises(ContradictionError, match="adapted in some decoder layers"):
            load(path)

    @pytest.mark.parametrize("kept", ["lora_A", "lora_B"])
    def test_one_of_each_pair(self, kept, fresh, run, tmp_path):
        path = run(fresh(), safe=False)
        file = tmp_path / "lora_weights" / "adapter_model.bin"
        torch.save({n: t for n, t in torch.load(file).items() if kept in n}, file)
        with pytest.raises(CheckpointError, match="lora_A and lora_B belong together|" + kept):
            load(path)

    def test_an_empty_folder(self, build, write, tmp_path):
        (tmp_path / "lora_weights").mkdir()
        with pytest.raises(CheckpointError, match=r"lora_weights.*lora\.use_lora=false"):
            resolve(write(build()))
        resolve(write(build()), {"lora.use_lora": False})


class TestEffect:
    def test_freshly_initialised_ones_load_and_are_named(self, fresh, files, backbones, tmp_path):
        """In every checkpoint of the original system B is still zero."""
        model = fresh(zero=True)
        loaded = load(files.write_run(tmp_path, model, backbones))
        assert any("freshly initialised" in note for note in loaded.resolution.notes)
        assert torch.equal(logits(loaded.language_model), logits(model.language_model))

    def test_fresh_ones_beside_a_plain_checkpoint(self, fresh, run):
        model = fresh(zero=True)
        loaded = load(run(model))
        assert loaded.recipe.lora.use_lora
        assert any("freshly initialised" in note for note in loaded.resolution.notes)

    @pytest.mark.parametrize("value", [0.0, float("nan")])
    def test_dead_ones(self, value, build, files, backbones, tmp_path):
        path = files.write_run(tmp_path, build(**LORA), backbones)
        contents = torch.load(path)
        for name, tensor in contents["state_dict"].items():
            if "lora_A" in name:
                contents["state_dict"][name] = torch.full_like(tensor, value)
        torch.save(contents, path)
        with pytest.raises(CheckpointError, match="change nothing that can be computed"):
            load(path)

    @pytest.mark.parametrize("value", [0.0, float("inf")])
    def test_a_dead_one_among_sound_ones(self, value, build, files, backbones, tmp_path):
        path = files.write_run(tmp_path, build(**LORA), backbones)
        contents = torch.load(path)
        last = [name for name in contents["state_dict"] if "lora_A" in name][-1]
        contents["state_dict"][last].fill_(value)
        torch.save(contents, path)
        with pytest.raises(CheckpointError, match="change nothing that can be computed"):
            load(path)

    def test_no_note_for_trained_ones(self, build, files, backbones, tmp_path):
        loaded = load(files.write_run(tmp_path, build(**LORA), backbones))
        assert not any("effect" in note for note in loaded.resolution.notes)


def test_an_adapter_of_another_name(build, files, backbones, tmp_path):
    model = build(**LORA)
    path = files.write_run(
        tmp_path, model, backbones, prefix=lambda n: "model." + n.replace(".default.", ".mine.")
    )
    loaded = load(path)
    assert_close(logits(loaded.language_model), logits(model.language_model), rtol=0, atol=2e-5)


@pytest.mark.parametrize("marked", [True, False])
def test_the_whole_model_was_wrapped_by_peft(marked, build, files, backbones, tmp_path):
    """``get_peft_model(panorama_vlm)`` puts the wrapper in front of everything."""
    model = build(**LORA)

    def name(n):
        bare = n.replace("language_model.base_model.model.", "language_model.")
        return "base_model.model." + (bare if marked else bare.replace(".base_layer", ""))

    loaded = load(files.write_run(tmp_path, model, backbones, prefix=name))
    assert_close(logits(loaded.language_model), logits(model.language_model), rtol=0, atol=2e-5)


def test_merged_inside_the_wrapper(build, files, backbones, tmp_path):
    model = build(language="qwen3")
    path = files.write_run(
        tmp_path,
        model,
        backbones,
        prefix=lambda n: (
            "model." + n.replace("language_model.", "language_model.base_model.model.", 1)
        ),
    )
    assert torch.equal(logits(load(path).language_model), logits(model.language_model))
