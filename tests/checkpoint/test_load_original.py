"""Checkpoints of the original system load as the model that wrote them, and compute the same."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from torch.testing import assert_close

from panovlm.models.model import PanoramaVLM

TEXTS = ["<|vision|> what is left a red", "system what <|vision|> ball is right"]


def batch(model, dtype=torch.float32, views: int = 3):
    generator = torch.Generator().manual_seed(5)
    ids = torch.tensor([model.tokenizer(text)["input_ids"] for text in TEXTS])
    labels = ids.clone()
    labels[:, :3] = -100
    pixels = torch.randn(2, views, 3, 16, 16, generator=generator).to(dtype)
    return pixels, ids, torch.ones_like(ids), labels


def compare(loaded, model, views: int = 3, dtype=torch.float32) -> None:
    """Compare every stage of the two models, and the weights bit by bit."""
    pixels, ids, mask, labels = batch(model, dtype, views)
    close = {"rtol": 0, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 0, "atol": 2e-2}
    with torch.no_grad():
        assert_close(loaded.vision_features(pixels), model.vision_features(pixels), **close)
        assert_close(loaded.resampled_features(pixels), model.resampled_features(pixels), **close)
        assert_close(loaded.vision_tokens(pixels), model.vision_tokens(pixels), **close)
        ours = loaded(pixels, ids, mask, labels)
        theirs = model(pixels, ids, mask, labels)
    assert_close(ours.logits, theirs.logits, **close)
    assert_close(ours.loss, theirs.loss, **close)
    ends = {"pad_token_id": model.tokenizer.pad_token_id, "eos_token_id": None}
    greedy = {"do_sample": False, "max_new_tokens": 5, **ends}
    answer = loaded.generate(pixels, ids, mask, **greedy)
    assert answer.shape == (2, 5)
    assert torch.equal(answer, model.generate(pixels, ids, mask, **greedy))


def same_weights(loaded, model) -> None:
    theirs = model.state_dict()
    ours = loaded.state_dict()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
        assert tensor.dtype == theirs[name].dtype
    left_out = {name for name in theirs if name not in ours}
    assert all(name.startswith(("resampler.", "vision_to_language_")) for name in left_out)


RESAMPLERS = {
    "mlp": {"resampler_type": "mlp"},
    "mlp, odd": {"resampler_type": "mlp", "resampler": {"hidden_dim": 37}, "latent_dimension": 33},
    "mlp, plain": {"resampler_type": "mlp", "resampler": {"use_ln": False, "depth": 4}},
    "mlp, one layer": {"resampler_type": "mlp", "resampler": {"depth": 1}},
    "bimamba": {"resampler_type": "bimamba"},
    "bimamba, odd": {
        "resampler_type": "bidirectional_mamba",
        "resampler": {"hidden_dim": 33, "expand": 1.37, "d_state": 3, "d_conv": 2, "depth": 1},
    },
    "bimamba, norm last": {"resampler_type": "bimamba", "resampler": {"norm_first": False}},
    "qformer": {"resampler_type": "qformer"},
    "qformer, deep": {
        "resampler_type": "qformer",
        "resampler": {"num_query_tokens": 7, "num_hidden_layers": 3},
    },
}
BACKBONES = {
    "siglip, alone": {"vision": "siglip_vision", "language": "qwen3"},
    "clip": {"vision": "clip", "language": "llama"},
    "dinov2": {"vision": "dinov2", "language": "llama"},
    "dinov2, gated": {"vision": "dinov2_swiglu", "language": "qwen3"},
}
HEADS = {
    "no norm": {"use_vicreg_norm": False},
    "no overlap head": {"use_vicreg_projector": False},
    "small overlap head": {
        "vicreg_projector_dim": 20,
        "vicreg_projector_hidden": 28,
        "vicreg_projector_depth": 3,
        "vicreg_projector_ln": False,
    },
    "flat overlap head": {"vicreg_projector_depth": 1},
    "text projection": {"use_text_projection": True},
    "suffix": {"vision_token_fallback_position": "suffix"},
}
STITCHING = {
    "concat": {"stitching_mode": "concat"},
    "stride_views": {"stitching_mode": "stride_views", "overlap_ratio": 0.25},
    "resample": {"stitching_mode": "resample"},
    "resample, linear": {
        "stitching_mode": "resample",
        "stitch_interp": "linear",
        "stitch_target_cols": 7,
    },
    "resample, one view wide": {
        "stitching_mode": "resample",
        "stitch_target_to_view_width": True,
        "overlap_ratio": 0.25,
    },
    "positions": {"use_projection_positional_encoding": True, "overlap_ratio": 0.25},
    "positions, angle only": {
        "use_projection_positional_encoding": True,
        "pe_spatial_encoding_type": "learned",
        "pe_temperature": 100.0,
    },
    "positions, counted": {
        "use_projection_positional_encoding": True,
        "pe_enable_continuity": False,
        "latent_dimension": 33,
    },
}
LORA = {
    "lora": {"lora": {"r": 3, "lora_alpha": 12}},
    "lora, some": {"lora": {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj"]}},
    "lora, merged": {"lora": {"r": 3, "lora_alpha": 12}, "merged": True},
}


@pytest.mark.parametrize("settings", [*RESAMPLERS.values()], ids=[*RESAMPLERS])
def test_resamplers(settings, build, files, backbones, tmp_path):
    """Sizes are read off the weights alone; only norm_first leaves no trace in them."""
    model = build(**settings)
    last = settings.get("resampler", {}).get("norm_first") is False
    path = files.write_run(tmp_path, model, backbones)
    loaded = PanoramaVLM.from_checkpoint(path, overrides={"norm_first": False} if last else None)
    same_weights(loaded, model)
    compare(loaded, model)
    assert not any(module.training for module in loaded.modules())


@pytest.mark.parametrize("settings", [*BACKBONES.values(), *LORA.values()], ids=[*BACKBONES, *LORA])
def test_backbones_and_adapters(settings, build, files, backbones, tmp_path):
    model = build(**settings)
    path = files.write_run(tmp_path, model, backbones)
    loaded = PanoramaVLM.from_checkpoint(path)
    compare(loaded, model)
    if "dinov2" not in settings.get("vision", ""):
        same_weights(loaded, model)


@pytest.mark.parametrize(
    "settings", [*HEADS.values(), *STITCHING.values()], ids=[*HEADS, *STITCHING]
)
def test_what_only_config_yaml_tells(settings, build, files, backbones, tmp_path):
    model = build(**settings)
    path = files.write_run(tmp_path, model, backbones, config=files.config(model, backbones))
    loaded = PanoramaVLM.from_checkpoint(path)
    same_weights(loaded, model)
    compare(loaded, model)


PADDED = ["what is left a red ball", "a red", "system what"]


class TestTexts:
    """How rows of text are cut and where vision tokens go in padded batches."""

    def compare(self, loaded, model, texts) -> None:
        ids, mask = (torch.zeros(len(texts), 8, dtype=torch.long) for _ in range(2))
        for row, text in enumerate(texts):
            tokens = model.tokenizer(text)["input_ids"]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
        labels = torch.where(mask == 1, ids, -100)
        pixels = torch.randn(len(texts), 3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            ours, theirs = loaded(pixels, ids, mask, labels), model(pixels, ids, mask, labels)
        assert_close(ours.logits, theirs.logits, rtol=0, atol=2e-5)
        assert_close(ours.loss, theirs.loss, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("fallback", ["prefix", "suffix"])
    @pytest.mark.parametrize("limit", [512, 5, 2])
    @pytest.mark.parametrize("placeholder", ["", "<|vision|> "])
    def test_padded_batch(self, fallback, limit, placeholder, build, files, backbones, tmp_path):
        model = build(vision_token_fallback_position=fallback, max_text_length=limit)
        config = files.config(model, backbones)
        loaded = PanoramaVLM.from_checkpoint(
            files.write_run(tmp_path, model, backbones, config=config)
        )
        self.compare(loaded, model, [PADDED[0], placeholder + PADDED[1], PADDED[2]])

    def test_prompts_are_cut_too(self, build, files, backbones, tmp_path):
        model = build(max_text_length=4)
        config = files.config(model, backbones)
        loaded = PanoramaVLM.from_checkpoint(
            files.write_run(tmp_path, model, backbones, config=config)
        )
        compare(loaded, model)
        # A shorter prompt beside it, padded in front, is answered as if it stood alone.
        pixels, ids, mask, _ = batch(model)
        ids, mask = ids.clone(), mask.clone()
        ids[1, 3:], ids[1, :3] = ids[1, :-3].clone(), 0
        mask[1, :3] = 0
        together = loaded.generate(pixels, ids, mask, do_sample=False, max_new_tokens=4)
        alone = loaded.generate(pixels[1:], ids[1:, 3:], do_sample=False, max_new_tokens=4)
        assert torch.equal(together[1:], alone)

    def test_the_length_in_the_metadata(self, build, files, backbones, tmp_path):
        model = build(max_text_length=3)
        sidecar = files.metadata(model, backbones, max_text_length=3)
        loaded = PanoramaVLM.from_checkpoint(
            files.write_run(tmp_path, model, backbones, sidecar=sidecar)
        )
        self.compare(loaded, model, PADDED)

    def test_nobody_tells(self, build, files, backbones, tmp_path):
        """The data module's own length is none of the model's."""
        model = build()
        data = files.data_parameters(model, backbones, max_text_length=3)
        loaded = PanoramaVLM.from_checkpoint(files.write_run(tmp_path, model, backbones, data=data))
        assert loaded.recipe.models.max_text_length == 3
        assert loaded.recipe.models.fusion_text_limit == 512
        assert "models.fusion_text_limit" in loaded.resolution.assumed
        self.compare(loaded, model, PADDED)


def test_text_projection_serves_stage_resampler_only(build, files, backbones, tmp_path):
    model = build(use_text_projection=True)
    loaded = PanoramaVLM.from_checkpoint(files.write_run(tmp_path, model, backbones))
    pixels, ids, mask, labels = batch(model)
    with torch.no_grad():
        theirs = model(pixels, ids, mask, labels, project=True)
        ours = loaded(pixels, ids, mask, labels, project_text=True)
        assert_close(ours.logits, theirs.logits, rtol=0, atol=2e-5)
        assert (ours.logits - loaded(pixels, ids, mask, labels).logits).abs().max() > 1e-2


def test_overlap_comes_from_the_hyper_parameters(build, files, backbones, tmp_path):
    """No other document of a normal run tells it, and its key is model_overlap_ratio."""
    model = build(overlap_ratio=0.75)
    loaded = PanoramaVLM.from_checkpoint(files.write_run(tmp_path, model, backbones))
    compare(loaded, model)
    source = loaded.resolution.sources["models.overlap_ratio"]
    assert (source.kind, "hyper_parameters" in source.detail) == ("metadata", True)
    assert loaded.recipe.image_processing.overlap_ratio == 0.5


def test_a_leading_whole_view_counts_as_view_0(build, files, backbones, tmp_path):
    model = build(use_projection_positional_encoding=True)
    data = files.data_parameters(model, backbones, crop_strategy="anyres_e2p")
    path = files.write_run(
        tmp_path, model, backbones, data=data, config=files.config(model, backbones)
    )
    loaded = PanoramaVLM.from_checkpoint(path)
    assert loaded.leading_global and loaded.recipe.models.global_view == "first_view"
    compare(loaded, model, views=4)


class TestNames:
    """Wrappers, aliases, and the layout before 2025-09-30."""

    @pytest.mark.parametrize(
        "prefix",
        ["", "model.", "module.", "_orig_mod.", "model._orig_mod.", "module.model._orig_mod."],
    )
    def test_prefixes(self, prefix, build, files, backbones, tmp_path):
        model = build()
        path = files.write_run(tmp_path, model, backbones, prefix=prefix)
        same_weights(PanoramaVLM.from_checkpoint(path), model)

    @pytest.mark.parametrize(
        ("part", "wrapped"),
        [
            ("vision_backbone.encoder.", "vision_backbone.encoder._orig_mod."),
            ("vision_backbone.", "vision_backbone.module."),
            ("vision_backbone.encoder.", "vision_backbone.encoder.module."),
            ("resampler_module.", "resampler_module._orig_mod."),
            ("resampler_module.resampler.", "resampler_module.resampler.module._orig_mod."),
            ("language_model.", "language_model._orig_mod."),
            ("language_model.", "language_model.module."),
            ("projector.linear.", "projector.linear._fsdp_wrapped_module."),
            ("vicreg_projector.", "_orig_mod.vicreg_projector."),
        ],
    )
    def test_one_wrapped_subtree(self, part, wrapped, build, files, backbones, tmp_path):
        model = build(use_vicreg_projector=True)
        path = files.write_run(
            tmp_path,
            model,
            backbones,
            prefix=lambda name: (
                "model." + name.replace(part, wrapped, 1)
                if name.startswith(part)
                else "model." + name
            ),
        )
        same_weights(PanoramaVLM.from_checkpoint(path), model)

    def test_without_aliases(self, build, files, backbones, tmp_path):
        model = build()
        loaded = PanoramaVLM.from_checkpoint(
            files.write_run(tmp_path, model, backbones, aliases=False)
        )
        same_weights(loaded, model)

    @pytest.mark.parametrize("resampler_type", ["mlp", "bimamba"])
    def test_older_layout(self, resampler_type, build, files, backbones, tmp_path):
        model = build(resampler_type=resampler_type)
        path = files.write_run(tmp_path, model, backbones, older=True)
        same_weights(PanoramaVLM.from_checkpoint(path), model)

    @pytest.mark.parametrize("with_config", [False, True])
    def test_older_overlap_head_is_left_out(self, with_config, build, files, backbones, tmp_path):
        """It read the tower's features; only stage vision used it."""
        model = build(vicreg_reads_vision=True)
        config = files.config(model, backbones) if with_config else None
        path = files.write_run(tmp_path, model, backbones, older=True, config=config)
        loaded = PanoramaVLM.from_checkpoint(path)
        assert loaded.vicreg_projector is None
        assert any("overlap head" in note for note in loaded.resolution.notes)
        compare(loaded, model)


OF_4 = {
    "qwen2": {
        "rope_theta": 1e6,
        "rope_scaling": None,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "max_window_layers": 2,
        "tie_word_embeddings": True,
    },
    "llama": {
        "rope_theta": 500.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 16,
        },
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
    },
}


@pytest.mark.parametrize("language", OF_4)
def test_configurations_as_transformers_4_wrote_them(
    language, original, files, backbones, tmp_path
):
    """Rotary positions stand there under names that transformers 5 has no more."""
    config = {**files.LANGUAGE[language], "max_position_embeddings": 256}
    folder = files.write_language(tmp_path / "lm", config, files.word_tokenizer())
    old = {**files.LM, "model_type": language, "torch_dtype": "float32", **OF_4[language]}
    (folder / "config.json").write_text(json.dumps(old))
    mine = files.Backbones(backbones.vision, {language: folder})
    model = original.build(original.Spec(language=language), mine)
    loaded = PanoramaVLM.from_checkpoint(files.write_run(tmp_path / "run", model, mine))
    ours, theirs = (m.language_model.model.rotary_emb.inv_freq for m in (loaded, model))
    assert torch.equal(ours, theirs)
    compare(loaded, model)


class TestTypes:
    def test_bfloat16(self, build, files, backbones, tmp_path):
        model = build(use_projection_positional_encoding=True)
        path = files.write_run(
            tmp_path,
            model,
            backbones,
            dtype=torch.bfloat16,
            config=files.config(model, backbones),
        )
        loaded = PanoramaVLM.from_checkpoint(path)
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        theirs = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
        assert all(torch.equal(v, theirs[k]) for k, v in loaded.state_dict().items())
        again = PanoramaVLM.from_checkpoint(path, dtype=torch.float32)
        with torch.no_grad():
            pixels, ids, mask, labels = batch(model)
            rough, exact = again(pixels, ids, mask, labels), model(pixels, ids, mask, labels)
        assert_close(rough.logits, exact.logits, rtol=0, atol=0.05)

    def test_one_bfloat16_backbone(self, build, files, backbones, tmp_path):
        """A backbone stored in another type on disk keeps it."""
        model = build()
        path = files.write_run(tmp_path, model, backbones)
        contents = torch.load(path)
        for name, tensor in contents["state_dict"].items():
            if "language_model" in name:
                contents["state_dict"][name] = tensor.to(torch.bfloat16)
        torch.save(contents, path)
        loaded = PanoramaVLM.from_checkpoint(path)
        assert loaded.language_model.dtype == torch.bfloat16
        assert loaded.projector.linear.weight.dtype == torch.float32
        pixels, ids, mask, labels = batch(model)
        with torch.no_grad():
            assert loaded(pixels, ids, mask, labels).logits.isfinite().all()


class TestFiles:
    """What stands in the file besides the weights decides nothing about them."""

    def test_values_of_any_kind_and_layout(self, build, files, backbones, tmp_path):
        """Parameters, strided views into larger tensors, paths among the hyper-parameters."""
        model = build()
        hyper = files.hyper_parameters(model, backbones, pretrained_dir=tmp_path)
        path = files.write_run(tmp_path, model, backbones, hyper=hyper)
        contents = torch.load(path, weights_only=False)
        state = contents["state_dict"]
        name = "model.projector.linear.weight"
        larger = torch.zeros(100, 50)
        larger[3:27, 5:45] = state[name]
        state[name] = state["model.vision_to_language_projection.weight"] = larger[3:27, 5:45]
        name = "model.language_model.model.layers.0.mlp.up_proj.weight"
        state[name] = torch.nn.Parameter(state[name].t().contiguous().t())
        torch.save(contents, path)
        same_weights(PanoramaVLM.from_checkpoint(path), model)

    @pytest.mark.parametrize("weights_only", [True, False])
    def test_optimizer_states_are_no_weights(self, weights_only, build, files, backbones, tmp_path):
        model = build(lora={"r": 3, "lora_alpha": 12})
        path = files.write_run(tmp_path, model, backbones, weights_only=weights_only)
        compare(PanoramaVLM.from_checkpoint(path), model)

    def test_adapter_folder_beside_a_file_with_adapters(self, build, files, backbones, tmp_path):
        model = build(lora={"r": 3, "lora_alpha": 12})
        path = files.write_run(tmp_path, model, backbones)
        model.language_model.save_pretrained(tmp_path / "lora_weights", safe_serialization=False)
        compare(PanoramaVLM.from_checkpoint(path), model)

    def test_folder_of_the_run(self, build, files, backbones, tmp_path):
        model, other = build(), build(resampler_type="bimamba")
        files.write_run(tmp_path, other, backbones, name="siglip_mlp_e2p_epoch01_loss0.1.ckpt")
        files.write_run(tmp_path, model, backbones, name="last.ckpt")
        files.write_run(tmp_path, other, backbones, name="last-v1.ckpt")
        same_weights(PanoramaVLM.from_checkpoint(tmp_path), model)
        files.write_run(tmp_path, other, backbones, name="best.ckpt")
        same_weights(PanoramaVLM.from_checkpoint(tmp_path), other)

    def test_a_bare_state_dict(self, build, files, backbones, tmp_path):
        model = build()
        torch.save(files.state_dict(model, prefix=""), tmp_path / "pytorch_model.bin")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(files.config(model, backbones)))
        loaded = PanoramaVLM.from_checkpoint(tmp_path)
        same_weights(loaded, model)
        compare(loaded, model)


class TestTokens:
    """Rows of the embedding table are the tokenizer's tokens, whatever the backbone had."""

    @pytest.mark.parametrize("rows", [22, 25, 90])
    def test_vocabulary_of_another_size(self, rows, original, files, backbones, tmp_path):
        folder = files.write_language(
            tmp_path / "lm",
            {**files.LANGUAGE["llama"], "vocab_size": rows},
            files.word_tokenizer(),
        )
        mine = files.Backbones(backbones.vision, {**backbones.language, "llama": folder})
        model = original.build(original.Spec(language="llama"), mine)
        loaded = PanoramaVLM.from_checkpoint(files.write_run(tmp_path / "run", model, mine))
        assert loaded.get_input_embeddings().weight.shape[0] == len(model.tokenizer)
        assert loaded.language_model.config.vocab_size == len(model.tokenizer)
        compare(loaded, model)

    def test_padding_behind_the_last_row(self, original, files, backbones, tmp_path):
        """A padded vocabulary is cut, and the backbone's id of padding with it."""
        folder = files.write_language(
            tmp_path / "lm",
            {**files.LANGUAGE["qwen2"], "pad_token_id": 60, "eos_token_id": 61},
            files.word_tokenizer(),
        )
        mine = files.Backbones(backbones.vision, {"qwen2": folder})
        model = original.build(original.Spec(), mine)
        loaded = PanoramaVLM.from_checkpoint(files.write_run(tmp_path / "run", model, mine))
        compare(loaded, model)

    @pytest.mark.parametrize(
        "special",
        [
            pytest.param({"eos_token": "<|im_end|>"}, id="no pad"),
            pytest.param({"bos_token": "<|im_start|>"}, id="no end"),
            pytest.param({"eos_token": "<|endoftext|>"}, id="end of text"),
            pytest.param({"pad_token": "<pad>"}, id="only pad"),
        ],
    )
    def test_special_tokens(self, special, original, files, backbones, tmp_path):
        tokenizer = files.word_tokenizer(**special)
        folder = files.write_language(tmp_path / "lm", files.LANGUAGE["qwen2"], tokenizer)
        mine = files.Backbones(backbones.vision, {**backbones.language, "qwen2": folder})
        model = original.build(original.Spec(), mine)
        loaded = PanoramaVLM.from_checkpoint(files.write_run(tmp_path / "run", model, mine))
        assert loaded.tokenizer.get_vocab() == model.tokenizer.get_vocab()
        assert loaded.tokenizer.pad_token == model.tokenizer.pad_token
        assert loaded.config.vision_token_id == model.vision_id
        compare(loaded, model)

    def test_texts_become_the_same_tokens(self, build, files, backbones, tmp_path):
        model = build()
        loaded = PanoramaVLM.from_checkpoint(files.write_run(tmp_path, model, backbones))
        for text in TEXTS:
            assert loaded.tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]

    def test_tokenizer_that_has_the_tokens_already(self, original, files, backbones, tmp_path):
        """Nothing is added, so the padded vocabulary of the backbone stays as it is."""
        tokenizer = files.word_tokenizer()
        original.prepare(tokenizer)
        folder = files.write_language(tmp_path / "lm", files.LANGUAGE["qwen2"], tokenizer)
        mine = files.Backbones(backbones.vision, {**backbones.language, "qwen2": folder})
        model = original.build(original.Spec(), mine)
        assert model.language_model.get_input_embeddings().weight.shape[0] == 64
        loaded = PanoramaVLM.from_checkpoint(files.write_run(tmp_path / "run", model, mine))
        assert loaded.get_input_embeddings().weight.shape[0] == 64
        compare(loaded, model)


def test_without_placeholder_and_with_padding(build, files, backbones, tmp_path):
    model = build()
    loaded = PanoramaVLM.from_checkpoint(files.write_run(tmp_path, model, backbones))
    pixels, *_ = batch(model)
    ids = torch.tensor([[4, 5, 6, 7], [8, 9, 3, 3]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        ours, theirs = loaded(pixels, ids, mask, ids), model(pixels, ids, mask, ids)
    assert_close(ours.logits, theirs.logits, rtol=0, atol=2e-5)
    assert_close(ours.loss, theirs.loss, rtol=0, atol=2e-5)
