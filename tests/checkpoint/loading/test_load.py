"""From a file to the model: nothing missing, nothing left over, nothing without a value."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from panovlm.checkpoint.loading.load import build_empty, complete, prove_model, tied_names
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import save_checkpoint, strip_metadata, without_record
from panovlm.errors import (
    AssumedSettingsWarning,
    CheckpointError,
    ConfigError,
    ContradictionError,
)
from panovlm.models.model import PanoramaVLM

load = PanoramaVLM.from_checkpoint


@pytest.fixture
def edit(write):
    """Write a run and change its state dict."""

    def edited(model, change, **options):
        path = write(model, **options)
        contents = torch.load(path)
        change(contents["state_dict"])
        torch.save(contents, path)
        return path

    return edited


class TestBrokenFiles:
    def test_no_such_path(self, tmp_path):
        with pytest.raises(CheckpointError, match="does not exist"):
            load(tmp_path / "none.ckpt")

    def test_a_folder_without_checkpoint(self, build, write, tmp_path):
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            load(tmp_path)
        write(build(), name="epoch.ckpt")
        shutil.move(tmp_path / "epoch.ckpt", tmp_path / "below.ckpt")
        below = tmp_path / "vision" / "e2p_mlp"
        below.mkdir(parents=True)
        shutil.move(tmp_path / "below.ckpt", below / "last.ckpt")
        with pytest.raises(CheckpointError, match=r"folders below it do: .*e2p_mlp"):
            load(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"\0" * 512, b"PK\x03\x04 no archive", b"text"])
    def test_no_checkpoint_at_all(self, content, tmp_path):
        path = tmp_path / "last.ckpt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"last\.ckpt"):
            load(path)

    @pytest.mark.parametrize("kept", [0.2, 0.6, 0.999])
    def test_truncated(self, kept, build, write):
        path = write(build())
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * kept)])
        with pytest.raises(CheckpointError, match=r"last\.ckpt"):
            load(path)

    def test_a_checkpoint_of_something_else(self, backbones, tmp_path):
        state = AutoModelForCausalLM.from_pretrained(backbones.language["llama"]).state_dict()
        torch.save({"state_dict": state}, tmp_path / "last.ckpt")
        with pytest.raises(CheckpointError, match=r"no tensor belongs.*checkpoint of something"):
            load(tmp_path)

    def test_tensors_of_no_elements(self, build, edit):
        """Sharded training leaves such shells."""

        def empty(state):
            for name in state:
                if "resampler" in name:
                    state[name] = state[name].new_empty(0)

        with pytest.raises(CheckpointError):
            load(edit(build(), empty))


class TestEveryTensorCounts:
    @pytest.mark.parametrize(
        "name",
        [
            "vision_backbone.encoder.post_layernorm.bias",
            "vision_backbone.encoder.encoder.layers.1.mlp.fc2.weight",
            "vision_backbone.norm.bias",
            "language_model.model.layers.1.mlp.up_proj.weight",
            "language_model.model.norm.weight",
            "projector.linear.bias",
            "vicreg_projector.mlp.3.bias",
            "resampler_module.resampler.mlp.3.bias",
        ],
    )
    def test_a_missing_one_is_named(self, name, build, edit):
        def drop(state):
            for stored in [f"model.{name}", f"model.{name}".replace("resampler_module.", "", 1)]:
                state.pop(stored, None)
            if name.startswith("projector"):
                del state["model.vision_to_language_projection.bias"]

        with pytest.raises(CheckpointError) as error:
            load(edit(build(), drop))
        assert name in str(error.value) and "absent" in str(error.value)

    @pytest.mark.parametrize(
        "name",
        [
            "model.vision_backbone.encoder.extra.weight",
            "model.language_model.model.layers.9.mlp.up_proj.weight",
            "model.projector.linear2.weight",
            "model.vicreg_projector.mlp.9.weight",
            "model.text_projection.scale",
            "model.critic.weight",
            "ema.weight",
        ],
    )
    def test_an_unknown_one_is_named(self, name, build, edit):
        with pytest.raises(CheckpointError) as error:
            load(edit(build(), lambda state: state.update({name: torch.ones(3, 3)})))
        subtree = name.removeprefix("model.").rpartition(".9.")[0]
        assert (subtree or name.removeprefix("model.")) in str(error.value)

    def test_one_of_another_shape_is_named(self, build, edit):
        name = "model.language_model.model.norm.weight"
        with pytest.raises(ContradictionError, match=r"model\.norm\.weight"):
            load(edit(build(), lambda state: state.update({name: torch.ones(25)})))

    def test_two_models_in_one_file(self, build, edit):
        def twice(state):
            state.update({k.replace("model.", "module.", 1): v for k, v in list(state.items())})

        with pytest.raises(CheckpointError, match=r"two tensors claim .*two models"):
            load(edit(build(), twice))

    def test_an_alias_with_other_values(self, build, edit):
        name = "model.resampler.mlp.0.weight"
        path = edit(build(), lambda state: state.update({name: state[name] + 1}))
        with pytest.raises(ContradictionError, match=r"resampler\.mlp\.0\.weight.*different"):
            load(path)

    def test_an_alias_of_another_shape(self, build, edit):
        name = "model.vision_to_language_projection.weight"
        with pytest.raises(ContradictionError, match="two names of one tensor"):
            load(edit(build(), lambda state: state.update({name: torch.ones(2, 2)})))

    def test_an_alias_of_equal_values_elsewhere_in_memory(self, build, edit):
        name = "model.resampler.mlp.0.weight"
        load(edit(build(), lambda state: state.update({name: state[name].clone()})))

    def test_parts_of_two_models(self, build, edit):
        """The projection of a model of another latent dimension."""

        def other(state):
            for name in ("model.projector.linear", "model.vision_to_language_projection"):
                state[f"{name}.weight"] = torch.ones(24, 41)

        with pytest.raises(ContradictionError, match=r"latent_dimension.*two models"):
            load(edit(build(), other))


class TestNamedBackbones:
    def test_one_whose_folder_is_gone(self, build, files, backbones, write):
        model = build()
        gone = files.hyper_parameters(model, backbones, vision_name="/gone/siglip")
        path = write(model, hyper=gone)
        with pytest.raises(CheckpointError) as error:
            load(path)
        text = str(error.value)
        assert "/gone/siglip" in text and "models.vision_name=FOLDER" in text
        assert "models.vision_config=JSON" in text
        mended = load(path, overrides={"models.vision_name": str(backbones.vision["siglip"])})
        config = json.loads((backbones.vision["siglip"] / "config.json").read_text())
        given = load(path, overrides={"models.vision_config": config})
        pixels = torch.randn(1, 2, 3, 16, 16)
        with torch.no_grad():
            expected = model.vision_tokens(pixels)
            assert_close(mended.vision_tokens(pixels), expected, rtol=0, atol=2e-5)
            assert_close(given.vision_tokens(pixels), expected, rtol=0, atol=2e-5)

    def test_one_whose_tokenizer_is_gone(self, build, files, backbones, write):
        """It loads without tokenizer, says so, and asks for one where it is needed."""
        model = build()
        hyper = files.hyper_parameters(model, backbones, language_model_name="/gone/qwen")
        path = write(model, hyper=hyper, data=None)
        config = json.loads((backbones.language["qwen2"] / "config.json").read_text())
        given = {"models.language_config": config}
        loaded = load(path, overrides=given)
        assert loaded.tokenizer is None
        assert any("no tokenizer: " in note for note in loaded.resolution.notes)
        with pytest.raises(ConfigError, match=r"models\.tokenizer_name"):
            loaded.chat()
        words = {"tokenizer_name": str(backbones.language["qwen2"])}
        assert len(load(path, overrides=given | words).tokenizer) == len(model.tokenizer)

    def test_a_tokenizer_of_another_length(self, build, files, backbones, write, tmp_path):
        other = files.word_tokenizer()
        other.add_tokens(["more", "words"])
        other.save_pretrained(tmp_path / "words")
        path = write(build(language="llama"))
        with pytest.raises(CheckpointError, match="do not belong together"):
            load(path, overrides={"tokenizer_name": str(tmp_path / "words")})

    def test_families_that_no_shape_tells(self, original, files, backbones, tmp_path):
        """A language model of another family loads by its configuration alone."""
        config = {
            "model_type": "gpt2",
            "vocab_size": 64,
            "n_embd": 24,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 128,
            "bos_token_id": 2,
            "eos_token_id": 2,
        }
        folder = files.write_language(tmp_path / "gpt2", config, files.word_tokenizer())
        mine = files.Backbones(backbones.vision, {**backbones.language, "gpt2": folder})
        model = original.build(original.Spec(language="gpt2"), mine)
        path = files.write_run(tmp_path / "run", model, mine)
        loaded = load(path)
        ids = torch.tensor([[4, 5, model.vision_id, 6]])
        pixels = torch.randn(1, 2, 3, 16, 16)
        with torch.no_grad():
            ours = loaded(pixels, ids).logits
            theirs = model(pixels, ids, torch.ones_like(ids)).logits
        assert_close(ours, theirs, rtol=0, atol=2e-5)
        bare = files.write_run(tmp_path / "bare", model, mine, hyper=None, data=None)
        with pytest.raises(CheckpointError, match=r"models\.language_config"):
            load(bare)


class TestValues:
    """Every parameter and buffer has the value of the file, or of a normally built model."""

    SPECS = [
        {"vision": "siglip", "language": "qwen2", "resampler_type": "mlp"},
        {"vision": "clip", "language": "llama", "resampler_type": "bimamba", "lora": {"r": 2}},
        {"vision": "dinov2", "language": "qwen3", "resampler_type": "qformer"},
    ]

    @pytest.mark.parametrize("spec", SPECS)
    def test_nothing_comes_from_uninitialised_memory(self, spec, build, files, backbones, write):
        """Every allocation without value is made NaN or a huge number."""
        model = build(**spec)
        path = write(model, hyper=files.hyper_parameters(model, backbones, lora_rank=2))
        torch.use_deterministic_algorithms(True)
        before, torch.utils.deterministic.fill_uninitialized_memory = (
            torch.utils.deterministic.fill_uninitialized_memory,
            True,
        )
        try:
            loaded = load(path)
        finally:
            torch.utils.deterministic.fill_uninitialized_memory = before
            torch.use_deterministic_algorithms(False)
        for name, tensor in (*loaded.named_parameters(), *loaded.named_buffers()):
            assert not tensor.is_meta, name
            if tensor.is_floating_point():
                assert tensor.isfinite().all(), name
            else:
                assert tensor.abs().max() < 1e6, name

    @pytest.mark.parametrize("spec", SPECS)
    def test_buffers_that_no_file_holds(self, spec, build, files, backbones, write):
        """Rotary frequencies and position ids, as transformers computes them."""
        model = build(**spec)
        loaded = load(write(model, hyper=files.hyper_parameters(model, backbones, lora_rank=2)))
        stored = set(loaded.state_dict())
        theirs = dict(model.named_buffers())
        found = {n: b for n, b in loaded.named_buffers() if n not in stored}
        assert any("inv_freq" in name for name in found)
        if spec["vision"] != "dinov2":
            assert any("position_ids" in name for name in found)
        for name, buffer in found.items():
            assert torch.equal(buffer, theirs[name]), name
            assert buffer.dtype == theirs[name].dtype

    @pytest.mark.parametrize("lora", [None, {"r": 3, "lora_alpha": 6}])
    @pytest.mark.parametrize("kept", ["both", "embed_tokens", "lm_head"])
    def test_tied_embeddings_stay_tied(self, kept, lora, build, edit):
        model = build(language="qwen2", lora=lora)

        def drop(state):
            for name in list(state):
                other = {"embed_tokens": "lm_head", "lm_head": "embed_tokens"}.get(kept)
                if other and other in name:
                    del state[name]

        path = edit(model, drop)
        loaded = load(path)
        table = loaded.get_input_embeddings().weight
        assert loaded.get_output_embeddings().weight is table
        expected = model.language_model.get_input_embeddings().weight
        assert torch.equal(table, expected)
        assert len(list(loaded.parameters())) == len({id(p) for p in loaded.parameters()})

    def test_embeddings_that_are_not_tied(self, build, write):
        loaded = load(write(build(language="llama")))
        assert loaded.get_output_embeddings().weight is not loaded.get_input_embeddings().weight

    def test_tied_by_configuration_but_not_by_value(self, build, edit):
        name = "model.language_model.lm_head.weight"
        path = edit(build(), lambda state: state.update({name: state[name] + 1}))
        with pytest.raises(ContradictionError, match="tie_word_embeddings"):
            load(path)

    def test_buffers_of_older_transformers(self, build, edit):
        def add(state):
            state["model.language_model.model.rotary_emb.inv_freq"] = torch.zeros(3)
            state["model.vision_backbone.encoder.embeddings.position_ids"] = torch.zeros(1, 16)

        loaded = load(edit(build(), add))
        assert (loaded.language_model.model.rotary_emb.inv_freq > 0).all()

    def test_type_and_mode(self, build, write):
        path = write(build())
        loaded = load(path, dtype=torch.bfloat16)
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        rotary = load(path).language_model.model.rotary_emb.inv_freq
        assert torch.equal(loaded.language_model.model.rotary_emb.inv_freq, rotary)
        assert rotary.dtype == torch.float32
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
        assert not any(module.training for module in loaded.modules())
        assert loaded.resolution.path == path

    def test_training_after_loading_leaves_the_file_alone(self, build, write):
        """The weights are mapped from the file; changing them must not change it."""
        path = write(build())
        before = path.read_bytes()
        loaded = load(path).train()
        with torch.no_grad():
            for parameter in loaded.parameters():
                parameter.add_(1)
        assert path.read_bytes() == before
        assert all(isinstance(p, nn.Parameter) for p in loaded.parameters())
        assert loaded.projector.linear.weight.requires_grad


class TestProof:
    def test_building_takes_no_memory_for_weights(self, build, write):
        found = resolve(write(build(lora={"r": 4})))
        model = build_empty(complete(found))
        assert all(parameter.is_meta for parameter in model.parameters())
        assert not any(buffer.is_meta for buffer in model.buffers())
        proof = prove_model(found, model)
        assert proof.holds and not proof.missing
        assert len(proof.matched) == len(model.state_dict())

    def test_ties_are_known_in_both_directions(self, build, write):
        names = tied_names(build_empty(complete(resolve(write(build(language="qwen2"))))))
        pair = ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight")
        assert names == {pair[0]: pair[1], pair[1]: pair[0]}
        assert tied_names(build_empty(complete(resolve(write(build(language="llama")))))) == {}


def test_strict_refuses_what_nobody_knows(build, files, backbones, write):
    model = build()
    with pytest.raises(CheckpointError, match="stitching_mode"):
        load(write(model), strict=True)
    load(write(model, config=files.config(model, backbones)), strict=True)
    known = {
        "stitching_mode": "drop_overlap",
        "use_projection_positional_encoding": False,
        "default_generation_prompt": "x",
        "vision_token_fallback_position": "prefix",
    }
    load(write(model), strict=True, overrides=known)


class TestAssumed:
    """What nobody recorded never goes unsaid."""

    def test_a_warning_names_it(self, own, tmp_path):
        save_checkpoint(own(), tmp_path / "whole.ckpt")
        strip_metadata(tmp_path / "whole.ckpt", tmp_path / "bare.ckpt")
        (tmp_path / "checkpoint_metadata.json").unlink()
        with pytest.warns(AssumedSettingsWarning, match=r"models\.overlap_ratio.*strict=True"):
            load(tmp_path / "bare.ckpt")
        with warnings.catch_warnings():
            warnings.simplefilter("error", AssumedSettingsWarning)
            load(tmp_path / "whole.ckpt")

    def test_a_document_states_only_what_stands_in_it(self, own, tmp_path):
        """No default fills the place of a field that was removed."""
        model = own(overlap_ratio=0.25)
        save_checkpoint(model, tmp_path / "best.ckpt")
        path = tmp_path / "checkpoint_metadata.json"
        document = json.loads(path.read_text())
        del document["recipe"]["models"]["overlap_ratio"], document["probe"]
        path.write_text(json.dumps(document))
        torch.save({"state_dict": model.state_dict()}, tmp_path / "best.ckpt")
        assert load(tmp_path, strict=True).recipe == model.recipe  # the weights keep it
        state = without_record(model.state_dict())
        torch.save({"state_dict": state}, tmp_path / "best.ckpt")
        found = resolve(tmp_path)
        assert found.assumed == ["models.overlap_ratio"]
        with pytest.raises(CheckpointError, match=r"models\.overlap_ratio = 0\.5"):
            load(tmp_path, strict=True)
        loaded = load(tmp_path, strict=True, overrides={"overlap_ratio": 0.25})
        assert loaded.recipe == model.recipe


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype, build, edit):
    name = "model.language_model.model.layers.1.mlp.up_proj.weight"

    def quantise(state):
        state[name] = (16 * state[name]).to(dtype)

    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=rf"layers\.1\.mlp\.up_proj\.weight: {kind} in the"):
        load(edit(build(), quantise))


def test_no_tokenizer_is_looked_up_by_a_name_that_nobody_gave(own, tmp_path):
    """Neither a made-up name nor the default one is the language model's."""
    save_checkpoint(own(), tmp_path / "whole.ckpt")
    bare = tmp_path / "bare" / "last.ckpt"
    bare.parent.mkdir()
    strip_metadata(tmp_path / "whole.ckpt", bare)
    config = own().config.text_config.to_dict()
    for overrides in (None, {"models.language_config": config}):
        loaded = load(bare, overrides=overrides)
        assert loaded.tokenizer is None
        assert loaded.recipe.models.language_model_name == "unnamed-qwen3"
        notes = loaded.resolution.notes
        assert notes == ["no tokenizer: the checkpoint neither carries nor names one"]
