"""The whole model: wiring, generation, and the ways of Hugging Face."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import save_checkpoint
from panovlm.config.schema import LoRASettings, Settings
from panovlm.errors import CheckpointError, ConfigError
from panovlm.models.assemble import new_model
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.language.tokenizer import word_tokenizer
from panovlm.models.model import PanoramaVLM

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
LANGUAGE = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 5e5,
}
TOWERS = {
    "siglip": {"model_type": "siglip_vision_model", **TOWER},
    "clip": {"model_type": "clip_vision_model", **TOWER},
    "dinov2": {
        "model_type": "dinov2",
        "mlp_ratio": 2,
        **{key: value for key, value in TOWER.items() if key != "intermediate_size"},
    },
}
LANGUAGES = {
    "tied": {"model_type": "qwen2", "tie_word_embeddings": True, **LANGUAGE},
    "untied": {"model_type": "llama", "tie_word_embeddings": False, **LANGUAGE},
}
TEXTS = ["what is left of the red ball ?", "a house"]


def build(tower="siglip", language="tied", image=None, **models) -> PanoramaVLM:
    torch.manual_seed(0)
    settings = Settings.model_validate(
        {
            "models": {
                "vision_config": TOWERS[tower],
                "language_config": LANGUAGES[language],
                "resampler_config": {"hidden_dim": 48},
                "latent_dimension": 40,
                **models,
            },
            "image_processing": {"crop_strategy": "e2p", **(image or {})},
            "training": {"stage_configs": {s: {} for s in ("vision", "resampler", "finetune")}},
        }
    )
    model = new_model(settings, TEXTS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def model() -> PanoramaVLM:
    return build()


def pixels(count=2, views=3):
    return torch.randn(count, views, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def same_outputs(one, other):
    ids = torch.tensor([one.chat().prompt(TEXTS[1])] * 2)
    with torch.no_grad():
        ours, theirs = one(pixels(), ids, labels=ids), other(pixels(), ids, labels=ids)
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.loss, theirs.loss)


def test_auto_is_the_cpu_where_torch_was_built_for_a_gpu_that_is_not_there(
    model, tmp_path, monkeypatch
):
    """As torch's usual builds for Linux are."""
    save_checkpoint(model, tmp_path / "model.safetensors")
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: torch.device("cuda"))
    assert torch.accelerator.current_accelerator() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = PanoramaVLM.from_checkpoint(tmp_path / "model.safetensors", device="auto")
    assert found.device == torch.device("cpu")


def test_a_file_that_was_written_on_a_gpu_opens_without_one(model, tmp_path, monkeypatch):
    file = tmp_path / "gpu.ckpt"
    save_checkpoint(model, file)
    contents = torch.load(file, weights_only=True)
    with monkeypatch.context() as there:
        there.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        torch.save(contents, file)
    with pytest.raises(RuntimeError, match="Attempting to deserialize object on a CUDA device"):
        torch.load(file, weights_only=True)
    same_outputs(model, PanoramaVLM.from_checkpoint(file, strict=True))


class TestVision:
    def test_shapes(self, model):
        with torch.no_grad():
            assert model.vision_features(pixels()).shape == (6, 16, 32)
            assert model.resampled_features(pixels()).shape == (6, 16, 40)
            tokens = model.vision_tokens(pixels())
        assert tokens.shape == (2, 4 * (4 + 2 * 2), 24)  # overlap 0.5 of 4 columns
        assert model.projector.num_tokens(3, 16) == tokens.shape[1]

    def test_four_dimensions_are_one_view(self, model):
        with torch.no_grad():
            one = model.vision_tokens(pixels()[:, 0])
            assert torch.equal(one, model.vision_tokens(pixels()[:, :1]))
        with pytest.raises(ConfigError, match=r"\[B, V, 3, h, w\]"):
            model.vision_tokens(pixels()[0, 0])

    def test_views_of_a_sample_stay_together(self, model):
        with torch.no_grad():
            both = model.vision_tokens(pixels())
            assert_close(model.vision_tokens(pixels()[1:]), both[1:])

    @pytest.mark.parametrize("global_view", ["apart", "first_view"])
    def test_a_leading_whole_view(self, global_view):
        model = build(image={"crop_strategy": "anyres_e2p"}, global_view=global_view)
        assert model.leading_global
        strip = 4 * (4 + 2 * 2)
        expected = strip + 16 if global_view == "apart" else strip + 4 * 2
        with torch.no_grad():
            assert model.vision_tokens(pixels(views=4)).shape[1] == expected


class TestForward:
    def test_the_placeholder_is_where_the_vision_tokens_go(self, model):
        """As if the language model were given the fused embeddings by hand."""
        place = model.config.vision_token_id
        ids = torch.tensor([[5, place, 6, 7]])
        with torch.no_grad():
            vision = model.vision_tokens(pixels(1))
            text = model.get_input_embeddings()(ids)
            fused = torch.cat((text[:, :1], vision, text[:, 2:]), 1)
            expected = model.language_model(inputs_embeds=fused).logits
            assert_close(model(pixels(1), ids).logits, expected)
            assert_close(model(vision_tokens=vision, input_ids=ids).logits, expected)

    def test_text_alone(self, model):
        ids = torch.tensor([[5, 6, 7, 8]])
        with torch.no_grad():
            expected = model.language_model(input_ids=ids).logits
            assert_close(model(input_ids=ids).logits, expected)

    def test_pixels_alone_are_no_text(self, model):
        with pytest.raises(ConfigError, match="input_ids"):
            model(pixels())

    def test_the_loss_is_of_the_labelled_text(self, model):
        place = model.config.vision_token_id
        ids = torch.tensor([[place, 5, 6, 7]])
        labels = torch.tensor([[-100, -100, 6, 7]])
        with torch.no_grad():
            found = model(pixels(1), ids, labels=labels)
        scores = found.logits[0, -3:-1].log_softmax(-1)
        expected = -(scores[0, 6] + scores[1, 7]) / 2
        assert_close(found.loss, expected)

    def test_every_trained_part_gets_a_gradient(self):
        model = build(use_text_projection=True).train()
        ids = torch.tensor([model.chat().prompt(TEXTS[1])])
        model(pixels(1), ids, labels=ids, project_text=True).loss.backward()
        for name in ("resampler_module", "projector", "text_projection", "language_model"):
            part = getattr(model, name)
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


class TestGenerate:
    GREEDY = {"do_sample": False, "max_new_tokens": 5}

    def test_new_tokens_only_and_as_by_hand(self, model):
        ids = torch.tensor([model.chat().prompt(TEXTS[1])])
        answer = model.generate(pixels(1), ids, **self.GREEDY, eos_token_id=None)
        assert answer.shape == (1, 5)
        current, place = ids, model.config.vision_token_id
        assert (ids == place).sum() == 1
        for step in range(5):
            with torch.no_grad():
                logits = model(pixels(1), current).logits
            best = logits[:, -1].argmax(-1)
            assert best == answer[:, step]
            current = torch.cat((current, best[:, None]), 1)

    def test_a_batch_of_unequal_prompts_answers_like_each_alone(self, model):
        chat = model.chat()
        prompts = [chat.prompt(text) for text in TEXTS]
        width = max(map(len, prompts))
        pad = model.tokenizer.pad_token_id
        ids = torch.tensor([p + [pad] * (width - len(p)) for p in prompts])
        mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prompts])
        together = model.generate(pixels(), ids, mask, **self.GREEDY, eos_token_id=None)
        for row, prompt in enumerate(prompts):
            alone = model.generate(
                pixels()[row : row + 1], torch.tensor([prompt]), **self.GREEDY, eos_token_id=None
            )
            assert torch.equal(together[row], alone[0])

    def test_without_prompt_the_default_question_is_asked(self, model):
        question = model.recipe.models.default_generation_prompt
        ids = torch.tensor([model.chat().prompt(question)] * 2)
        asked = model.generate(pixels(), ids, **self.GREEDY)
        assert torch.equal(model.generate(pixels(), **self.GREEDY), asked)

    def test_it_stops_at_the_tokenizers_end(self, model):
        ids = torch.tensor([model.chat().prompt(TEXTS[1])])
        first = model.generate(pixels(1), ids, **self.GREEDY, eos_token_id=None)[0, 0]
        stopped = model.generate(pixels(1), ids, **self.GREEDY, eos_token_id=int(first))
        assert stopped.shape == (1, 1)

    def test_a_panorama_and_a_question(self, model):
        panorama = np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8)
        answer = model.answer(panorama, "what is left ?", do_sample=False, max_new_tokens=4)
        assert isinstance(answer, str)
        assert "<|" not in answer


class TestTokenizer:
    def test_a_longer_one_is_refused(self, model):
        with pytest.raises(ConfigError, match=r"only \d+ rows.*models\.tokenizer_name"):
            model.attach_tokenizer(word_tokenizer(f"word{i}" for i in range(99)))
        assert len(model.tokenizer) == model.get_input_embeddings().weight.shape[0]

    def test_none_at_all(self, tmp_path):
        model = build()
        model.tokenizer = None
        with pytest.raises(ConfigError, match="no tokenizer"):
            model.chat()


class TestHuggingFace:
    """save_pretrained, from_pretrained and the Auto classes."""

    @pytest.mark.parametrize("language", LANGUAGES)
    @pytest.mark.parametrize("tower", TOWERS)
    def test_round_trip(self, tower, language, tmp_path):
        model = build(tower, language)
        model.save_pretrained(tmp_path)
        for again in (PanoramaVLM.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
            assert type(again) is PanoramaVLM and not again.training
            self.check(again, model)

    @pytest.mark.parametrize(
        ("vision_config", "language_config"),
        [
            ({"model_type": "vit", **TOWER}, LANGUAGES["tied"]),
            (TOWERS["clip"], {"model_type": "gpt_neox", **LANGUAGE}),
        ],
        ids=["vit", "gpt_neox"],
    )
    def test_families_that_older_versions_named_otherwise(
        self, vision_config, language_config, tmp_path
    ):
        head = {"vicreg_projector_dim": 20, "vicreg_projector_hidden": 24}
        model = build(vision_config=vision_config, language_config=language_config, **head)
        model.save_pretrained(tmp_path)
        for load in (PanoramaVLM.from_pretrained, PanoramaVLM.from_checkpoint):
            self.check(load(tmp_path), model)

    @pytest.mark.parametrize("resampler_type", ["bimamba", "qformer"])
    def test_resamplers(self, resampler_type, tmp_path):
        config = {"bimamba": {"hidden_dim": 33, "depth": 1}, "qformer": {"num_hidden_layers": 1}}
        model = build(resampler_type=resampler_type, resampler_config=config[resampler_type])
        model.save_pretrained(tmp_path)
        self.check(PanoramaVLM.from_pretrained(tmp_path), model)

    @pytest.mark.parametrize("language", LANGUAGES)
    def test_adapters(self, language, tmp_path):
        model = build(language=language)
        model.add_adapters(LoRASettings(rank=2, alpha=6, target_modules=("q_proj", "up_proj")))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.5)
        model.eval().save_pretrained(tmp_path)
        self.check(PanoramaVLM.from_pretrained(tmp_path), model)

    def test_shards_and_types(self, tmp_path):
        model = build(language="untied")
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        model.save_pretrained(tmp_path, max_shard_size="40KB")
        assert (tmp_path / "model.safetensors.index.json").is_file()
        again = PanoramaVLM.from_pretrained(tmp_path)
        assert again.dtype == torch.bfloat16
        self.check(again, model)

    def test_the_configuration_alone(self, model, tmp_path):
        model.config.save_pretrained(tmp_path)
        again = AutoConfig.from_pretrained(tmp_path)
        assert isinstance(again, PanoramaVLMConfig)
        assert again.typed_recipe() == model.recipe == model.config.typed_recipe()
        assert again.vision_token_id == model.config.vision_token_id
        assert again.text_config.model_type == "qwen2"
        assert again.vision_config.num_attention_heads == 4
        assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "panovlm"

    @pytest.mark.parametrize("shards", ["1GB", "40KB"])
    def test_such_a_folder_is_a_checkpoint_too(self, shards, tmp_path):
        head = {"vicreg_projector_dim": 20, "vicreg_projector_hidden": 24}
        model = build("clip", "untied", overlap_ratio=0.25, **head)
        model.save_pretrained(tmp_path, max_shard_size=shards)
        model.tokenizer.save_pretrained(tmp_path)
        loaded = PanoramaVLM.from_checkpoint(tmp_path, strict=True)
        self.check(loaded, model)
        assert loaded.recipe == model.recipe
        assert loaded.tokenizer.get_vocab() == model.tokenizer.get_vocab()
        assert resolve(tmp_path).sources["models.overlap_ratio"].detail == "config.json"

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda state: state.pop("projector.linear.bias"), "1 missing, first projector"),
            (lambda state: state.update({"critic": torch.ones(2)}), "1 unexpected, first critic"),
        ],
    )
    def test_a_folder_that_is_not_complete(self, change, told, model, tmp_path):
        model.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        change(state)
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        for cls in (PanoramaVLM, AutoModel):
            with pytest.raises(CheckpointError, match=told):
                cls.from_pretrained(tmp_path)
        with pytest.raises(CheckpointError):
            PanoramaVLM.from_checkpoint(tmp_path)

    def check(self, again, model):
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
        assert again.state_dict().keys() == model.state_dict().keys()
        buffers = dict(model.named_buffers())
        for name, buffer in again.named_buffers():
            assert torch.equal(buffer, buffers[name]), name
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied
        same_outputs(model, again)


class TestAssemble:
    """A new model of an experiment's settings."""

    def test_untrained_parts_are_as_the_settings_say(self, model):
        assert model.language_model.config.vocab_size == len(model.tokenizer)
        assert model.recipe.image_processing.image_size == (16, 16)
        assert model.recipe.lora.use_lora is False
        assert model.recipe.models.layout == "panovlm-1"
        assert model.record().recipe == model.config.typed_recipe()

    def test_the_same_seed_gives_the_same_model(self):
        one, other = build().state_dict(), build().state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_pretrained_parts_keep_their_weights(self, tmp_path):
        torch.manual_seed(2)
        tower = AutoModel.from_config(AutoConfig.for_model(**TOWERS["clip"]))
        tower.save_pretrained(tmp_path / "tower")
        processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}}
        (tmp_path / "tower" / "preprocessor_config.json").write_text(json.dumps(processor))
        language = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**LANGUAGES["untied"], vocab_size=40)
        )
        language.save_pretrained(tmp_path / "lm")
        word_tokenizer(TEXTS).save_pretrained(tmp_path / "words")
        model = build(
            vision_config=None,
            language_config=None,
            vision_name=str(tmp_path / "tower"),
            language_model_name=str(tmp_path / "lm"),
            tokenizer_name=str(tmp_path / "words"),
        )
        grown = len(model.tokenizer)
        assert grown == len(word_tokenizer(TEXTS)) + 1
        assert model.get_input_embeddings().weight.shape[0] == grown
        assert model.recipe.image_processing.vision_processor == processor
        assert model.config.vision_config.model_type == "clip_vision_model"
        # build() adds small noise to every weight; what it was added to is the folder's.
        near = {"rtol": 0, "atol": 0.5}
        theirs = tower.state_dict()
        for name, tensor in model.vision_backbone.encoder.state_dict().items():
            assert_close(tensor, theirs[name], **near)
        rows = language.get_input_embeddings().weight[: grown - 1]
        assert_close(model.get_input_embeddings().weight[: grown - 1], rows, **near)

    def test_settings_without_a_usable_backbone(self):
        with pytest.raises(ConfigError, match=r"models\.vision_config"):
            build(vision_config={"model_type": "no such tower"})
        with pytest.raises(ConfigError, match=r"models\.vision_config|models\.vision_name"):
            build(vision_config=None, vision_name="/nowhere/tower")
        with pytest.raises(ConfigError, match=r"models\.language"):
            build(language_config={"model_type": "qwen2", "hidden_size": "wide"})


@pytest.mark.parametrize("change", [lambda m: m.to(torch.bfloat16), lambda m: m.half()])
def test_half_precision_rounds_no_frequencies(change, tmp_path):
    model, exact = change(build()), build()
    computed = {n: b for n, b in exact.named_buffers() if n not in exact.state_dict()}
    assert any(name.endswith("inv_freq") for name in computed)
    for name, buffer in computed.items():
        assert torch.equal(model.get_buffer(name), buffer), name
    assert {p.dtype for p in model.parameters()} == {model.dtype} != {torch.float32}
    save_checkpoint(model, tmp_path / "best.ckpt")
    same_outputs(model, PanoramaVLM.from_checkpoint(tmp_path, strict=True))


def test_computed_buffers_move_with_the_model():
    moved = build().to("meta")
    assert all(buffer.is_meta for buffer in moved.buffers())
