"""Whole models on a device that is not the CPU: the same losses, gradients, answers and probes.

``test_devices.py`` runs this file in a process of its own, whose torch has the stand-in device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from standin import DEVICE, stand_in
from torch import Tensor
from torch.testing import assert_close

from panovlm import doctor
from panovlm.checkpoint.probe.compare import compare as probe_differences
from panovlm.checkpoint.probe.measure import take_probe
from panovlm.config.schema import LoRASettings, Settings, StageConfig
from panovlm.data.augment import Tint, jitter
from panovlm.data.collate import collate
from panovlm.data.on_device import with_views
from panovlm.data.packing import pack
from panovlm.models.assemble import new_model
from panovlm.models.language.quantized import quantize_linears
from panovlm.models.model import PanoramaVLM
from panovlm.panorama.device import DeviceViews
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.uncut import together, uncut
from panovlm.panorama.views import views_of
from panovlm.training.module import StageModule

TURNS = [("what is left of the red ball ?", "a house"), ("is it red ?", "it is a house")]
TOWER = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4}
TOWERS = {
    "siglip": {"model_type": "siglip_vision_model", "intermediate_size": 40, "image_size": 16},
    "clip": {"model_type": "clip_vision_model", "intermediate_size": 40, "image_size": 16},
    "dinov2": {"model_type": "dinov2", "mlp_ratio": 2, "image_size": 16},
    "naflex": {"model_type": "siglip2_vision_model", "intermediate_size": 40, "num_patches": 16},
}
LANGUAGE = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
}
RESAMPLERS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "bimamba": {"hidden_dim": 16},
    "qformer": {"num_query_tokens": 4, "num_hidden_layers": 1, "num_attention_heads": 2},
    "perceiver": {"num_latents": 4, "hidden_dim": 16, "num_attention_heads": 2},
    "conv": {"hidden_dim": 16},
    "c_abstractor": {"hidden_dim": 16, "rows": 2, "columns": 2},
    "identity": {},
    "avg_pool": {"window": 2},
    "spatial_pool": {"rows": 2, "columns": 2},
    "masked_drop": {"rate": 0.5},
}


def build(tower: str = "siglip", language: str = "qwen3", **models: object) -> PanoramaVLM:
    torch.manual_seed(0)
    settings = Settings.model_validate(
        {
            "models": {
                "vision_config": {**TOWER, **TOWERS[tower]},
                "language_config": {"model_type": language, **LANGUAGE},
                "resampler_type": "mlp",
                "latent_dimension": 24,
                **models,
            },
            "image_processing": {"crop_strategy": "anyres_e2p", "image_size": 16},
            "training": {"stage_configs": {"finetune": {}}, "stages": ["finetune"]},
        }
    )
    return new_model(settings, (text for turn in TURNS for text in turn)).eval()


def move(model: PanoramaVLM) -> None:
    model.to(DEVICE)
    model.language_model.tie_weights()  # a stand-in's parameters are new ones


def pixels(model: PanoramaVLM) -> Tensor:
    count = len(views_of(model.recipe.image_processing))
    return torch.randn(2, count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def batch(model: PanoramaVLM, *, packed: bool) -> dict[str, Tensor]:
    chat, items = model.chat(), []
    for number, views in enumerate(pixels(model)):
        turns = TURNS if packed and number else TURNS[:1]
        one = pack([chat.training_example([turn], None) for turn in turns], chat)
        item = {"pixel_values": views, "source": "", "input_ids": one.ids, "labels": one.labels}
        items.append(item | ({"segments": one.segments} if len(turns) > 1 else {}))
    made: dict[str, Any] = collate(items, pad_id=0)
    del made["source"]
    return made


def same_steps(model: PanoramaVLM, given: dict[str, Any], loss: Callable[..., Tensor]) -> None:
    """Compare a loss and all gradients with those of the CPU."""

    def step(batch: dict[str, Any]) -> dict[str, Tensor]:
        model.zero_grad()
        found = loss(**batch)
        found.backward()
        grads = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        return {"loss": found.detach().cpu(), **grads}

    wanted = step(given)
    with stand_in() as device:
        move(model)
        there = {n: t.to(device) if isinstance(t, Tensor) else t for n, t in given.items()}
        found = step(there)
    assert len(wanted) > 1
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def same_training(model: PanoramaVLM, *, packed: bool = False, **how: bool) -> None:
    same_steps(model, batch(model, packed=packed), lambda **given: model(**given, **how).loss)


@pytest.mark.parametrize("kind", RESAMPLERS)
def test_resamplers(kind: str) -> None:
    same_training(build(resampler_type=kind, resampler_config=RESAMPLERS[kind]))


def test_tokens_that_are_dropped_in_training() -> None:
    model = build(resampler_type="masked_drop", resampler_config={"rate": 0.5}).train()
    with stand_in() as device:
        move(model)
        tokens = model.resampled_features(pixels(model).to(device))
    assert bool((tokens.cpu() == 0).any())


def test_views_that_see_each_other() -> None:
    chosen = {"hidden_dim": 16, "cross_view": True, "directions": "mean"}
    same_training(build(resampler_type="bimamba", resampler_config=chosen))


@pytest.mark.parametrize("tower", ["clip", "dinov2", "naflex"])
def test_towers(tower: str) -> None:
    same_training(build(tower))


@pytest.mark.parametrize(
    "models",
    [
        {"pe_type": "directions", "stitching_mode": "sphere"},
        {"global_view": "first_view", "stitching_mode": "resample"},
        {"stitching_mode": "concat", "vision_rope": "closed_yaw"},
        {
            "use_projection_positional_encoding": False,
            "vision_token_fallback_position": "suffix",
            "training_placeholder": False,
        },
    ],
)
def test_positions_and_stitching(models: dict[str, object]) -> None:
    same_training(build(**models))


@pytest.mark.parametrize(
    ("language", "attention", "rope"),
    [
        ("qwen2", "sdpa", "sequence"),
        ("qwen2", "eager", "closed_yaw"),
        ("gemma3_text", "sdpa", "closed_yaw"),
    ],
)
def test_several_questions_in_a_row(language: str, attention: str, rope: str) -> None:
    model = build(language=language, vision_rope=rope)
    model.language_model.set_attn_implementation(attention)
    same_training(model, packed=True)


def test_text_projection() -> None:
    same_training(build(use_text_projection=True), project_text=True)


@pytest.mark.parametrize(
    ("loss", "pairs"),
    [
        ("vicreg", "columns"),
        ("vicreg", "directions"),
        ("barlow_twins", "columns"),
        ("info_nce", "directions"),
        ("dense_cl", "columns"),
    ],
)
def test_overlap_losses(loss: str, pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their statistics, and the division by what a step of several batches holds."""
    model = build(use_vicreg_projector=True, overlap_loss=loss, overlap_pairs=pairs)
    settings = StageConfig(batch_size=2, accumulate_grad_batches=2)
    describe: Any = None
    stage = StageModule(model, stage="vision", settings=settings, total_steps=2, describe=describe)
    logged: dict[str, float] = {}
    monkeypatch.setattr(stage, "log", lambda name, value, **_: logged.update({name: float(value)}))

    def step(**given: Any) -> Tensor:
        return stage.training_step(given, 0)

    same_steps(model, {"source": ["a", "b"], "pixel_values": pixels(model)}, step)
    with stand_in():
        stage.on_before_optimizer_step(None)  # type: ignore[arg-type]
    assert "train_overlap_effective_rank" in logged


@pytest.mark.parametrize(("kind", "dora"), [("nf4", True), ("int8", False)])
def test_quantised_language_models(kind: Any, dora: bool) -> None:
    pytest.importorskip("bitsandbytes")
    model = build()
    quantize_linears(model.language_model, kind)
    model.add_adapters(LoRASettings(use_lora=True, rank=2, use_dora=dora))
    same_training(model.eval())


@pytest.mark.parametrize(
    ("language", "rope"), [("qwen3", "closed_yaw"), ("gemma3_text", "sequence")]
)
def test_answers(language: str, rope: str) -> None:
    model = build(language=language, vision_rope=rope)
    rng = np.random.default_rng(0)
    panoramas = [rng.integers(0, 256, (64, 128, 3), dtype=np.uint8) for _ in range(2)]
    questions = [question for question, _ in TURNS]
    requests = [(panorama, question) for panorama in panoramas for question in questions]

    def said() -> list[object]:
        stream = model.answer_each(requests, batch_size=3, max_new_tokens=5, repetition_penalty=1.2)
        return [
            model.answers(panoramas[0], questions, max_new_tokens=5),
            model.answers(panoramas[0], questions, max_new_tokens=5, num_beams=2),
            sorted(str(answer) for _, answer in stream),
            model.generate(pixels(model).to(model.device), max_new_tokens=3).tolist(),
        ]

    wanted = said()
    with stand_in():
        move(model)
        assert said() == wanted


@pytest.mark.parametrize(
    "models",
    [
        {"vision_rope": "closed_yaw"},
        {"resampler_type": "bimamba", "resampler_config": {"hidden_dim": 16, "cross_view": True}},
        {"resampler_type": "qformer", "resampler_config": RESAMPLERS["qformer"]},
        {"resampler_type": "identity", "pe_type": "directions"},
    ],
)
def test_probes(models: dict[str, object]) -> None:
    model = build(**models)
    wanted = take_probe(model)
    with stand_in():
        move(model)
        found = take_probe(model)
    assert wanted is not None and found is not None
    for part, measured in found.parts.items():
        assert measured.device == DEVICE.type
        assert not probe_differences(part, wanted.parts[part], measured, stored="float32")


@pytest.mark.parametrize("augment", [False, True])
def test_views_that_the_device_cuts(augment: bool) -> None:
    pipeline = ViewPipeline(build().recipe.image_processing)
    rng = np.random.default_rng(0)
    panoramas = [rng.integers(0, 256, (side, 2 * side, 3), dtype=np.uint8) for side in (64, 80, 64)]
    groups = together([uncut(panorama, pipeline) for panorama in panoramas])
    tints = [Tint.drawn(rng) for _ in panoramas]
    with stand_in() as device:
        given: Any = {"uncut": [group.on(device) for group in groups]}
        cut = with_views(given | ({"tints": tints} if augment else {}), DeviceViews(pipeline))
        assert cut["pixel_values"].device == device
        found = cut["pixel_values"].cpu().numpy()
    for views, panorama, tint in zip(found, panoramas, tints, strict=True):
        wanted = pipeline.render(panorama)
        wanted = jitter(wanted, tint) if augment else wanted
        assert np.array_equal(views, pipeline.normalise(wanted))


def test_doctor() -> None:
    """The stand-in is the accelerator of this process."""
    with stand_in() as device:
        found = {check.name: check for check in doctor.checks()}
    assert found["accelerator"].outcome == "works"
    assert found[f"scan by torch on {device.type}"].outcome == "works"
