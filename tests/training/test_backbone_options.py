"""Every option of backbones and adapters, from YAML to a reloaded model that answers.

Each is trained for two steps, saved, proved and probed in a strict load, and read from its weights
alone.
"""

from __future__ import annotations

import io
import shutil
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from rich.console import Console

from panovlm.checkpoint.loading.load import assemble
from panovlm.checkpoint.probe.check import check_probe
from panovlm.checkpoint.probe.measure import precisions
from panovlm.checkpoint.report.verify import verify
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import strip_metadata
from panovlm.config.model_recipe import TargetPreset
from panovlm.config.schema import Attention
from panovlm.evaluation.session import run_evaluation
from panovlm.models.attention import FLASH, backbones
from panovlm.models.model import PanoramaVLM
from panovlm.panorama.image import read_panorama
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.training.run import train
from panovlm.training.rundir import LAST

SIZES = "hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 1, intermediate_size: 24"
TOWERS = {
    "dinov3": f"{{model_type: dinov3_vit, {SIZES}, patch_size: 4, num_register_tokens: 2}}",
    "dinov3, gated": f"{{model_type: dinov3_vit, {SIZES}, patch_size: 8, num_register_tokens: 4,"
    " use_gated_mlp: true, hidden_act: silu, query_bias: false}",
    "siglip 2, NaFlex": f"{{model_type: siglip2_vision_model, {SIZES}, patch_size: 8,"
    " num_patches: 9, vision_use_head: false}",
}
ADAPTERS = {
    **{name: f"target_modules: {name}" for name in get_args(TargetPreset)},
    "dora": "use_dora: true",
}
NAMES = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "dora": ("q_proj", "v_proj"),
}
NAMES["all-linear"] = NAMES["attention"] + NAMES["mlp"]


def trained(make_settings: Any, runs: Path, *changes: str) -> Path:
    """Train two steps of stage finetune and return the run folder."""
    settings = make_settings(
        runs,
        "data.csv_val=[]",
        "training.stages=[finetune]",
        "training.stage_configs.finetune.accumulate_grad_batches=1",
        "models.resampler_type=mlp",
        "models.resampler_config={depth: 1, hidden_dim: 8, dropout: 0.0}",
        "models.vision_config={attention_dropout: 0.0}",
        *changes,
    )
    return train(settings, console=Console(file=io.StringIO()))


def loaded(folder: Path, scenes: Path) -> PanoramaVLM:
    """Load a run as strictly as can be; see that it answers, and computes as in training."""
    assert torch.load(folder / LAST, weights_only=True)["global_step"] == 2
    found = verify(folder, device=torch.device("cpu"), strict=True)
    assert found.holds, found.checks[-1].detail
    assert [check.outcome for check in found.checks] == ["passed"] * len(found.checks)
    model = PanoramaVLM.from_checkpoint(folder, strict=True)
    panorama = read_panorama(next(scenes.glob("images/*")))
    assert isinstance(model.answer(panorama, "What is behind you?", max_new_tokens=2), str)
    pixels = torch.from_numpy(ViewPipeline(model.recipe.image_processing)(panorama))[None]
    prompt = torch.tensor([model.chat().prompt("What is behind you?")])
    with torch.no_grad():
        evaluated = model(pixels, prompt).logits
        model.train()
        for part in model.modules():  # chance is left out: training resizes positions at random
            part.training = part.training and "rope" not in type(part).__name__.lower()
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        torch.testing.assert_close(model(pixels, prompt).logits, evaluated)
    return model.eval()


def bare(folder: Path, to: Path) -> Any:
    """Resolve the weights without anything that describes them."""
    to.mkdir()
    strip_metadata(folder / LAST, to / LAST)
    shutil.copytree(folder / "tokenizer", to / "tokenizer")
    return resolve(to)


@pytest.mark.parametrize("tower", TOWERS)
def test_towers(make_settings: Any, scenes: Path, tmp_path: Path, tower: str) -> None:
    config = {"models.vision_config": TOWERS[tower]}
    size = 24 if "NaFlex" in tower else 16
    changes = [f"{name}={value}" for name, value in config.items()]
    blocks = "training.stage_configs.finetune.trainable={vision_blocks: 1}"
    folder = trained(
        make_settings, tmp_path, *changes, blocks, f"image_processing.image_size={size}"
    )
    model = loaded(folder, scenes)
    before, after = model.recipe, bare(folder, tmp_path / "bare")
    assert after.conflicts == []
    own = before.models.vision_config
    assert own is not None
    observed = {
        name.rpartition(".")[2]: seen.value
        for name, seen in after.inferred.fields.items()
        if name.startswith("models.vision_config.")
    }
    assert {"model_type", "hidden_size", "patch_size", "num_hidden_layers"} <= observed.keys()
    assert observed == {name: own[name] for name in observed}
    if "dinov3" in tower:  # its positions are in no table
        assert "models.vision_config.image_size" in after.assumed
        assert "image_processing.image_size" in after.assumed
    # What no shape shows, known again, gives the same.
    known = {"models.vision_config": own, "lora.alpha": 4, "image_processing.image_size": size}
    again = PanoramaVLM.from_checkpoint(tmp_path / "bare", overrides=known)
    pixels = torch.randn(1, 9, 3, size, size)
    with torch.no_grad():
        assert torch.equal(again.vision_tokens(pixels), model.vision_tokens(pixels))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters(make_settings: Any, scenes: Path, tmp_path: Path, kind: str) -> None:
    folder = trained(
        make_settings, tmp_path, *(f"lora.{one.replace(': ', '=')}" for one in [ADAPTERS[kind]])
    )
    model = loaded(folder, scenes)
    lora = model.recipe.lora
    assert lora.use_dora is (kind == "dora")
    assert set(lora.target_modules) == set(NAMES[kind])
    moved = [
        name
        for name, tensor in model.named_parameters()
        if "lora_B" in name and bool(tensor.detach().any())
    ]
    assert len(moved) == len(NAMES[kind])
    if kind == "dora":
        vectors = {n: t for n, t in model.state_dict().items() if "lora_magnitude_vector" in n}
        assert len(vectors) == 2
        for name, vector in vectors.items():
            weight = model.state_dict()[name.split(".lora_")[0] + ".base_layer.weight"]
            assert not torch.equal(vector, weight.norm(dim=1))  # it was trained
    after = bare(folder, tmp_path / "bare")
    assert after.config.lora.use_dora is lora.use_dora
    assert after.sources["lora.use_dora"].kind == "weights"
    assert set(after.config.lora.target_modules) == set(lora.target_modules)


@pytest.mark.parametrize("name", [name for name in get_args(Attention) if name != FLASH])
def test_attention(make_settings: Any, scenes: Path, tmp_path: Path, name: str) -> None:
    folder = trained(make_settings, tmp_path, f"environment.attn_implementation={name}")
    model = loaded(folder, scenes)  # with its own attention, compared with the probe of training
    assert {one.config._attn_implementation for one in backbones(model)} == {"sdpa"}


@pytest.mark.parametrize(
    ("stitching", "strategy"),
    [("sphere", "e2p_sphere"), ("drop_overlap", "anyres_e2p"), ("concat", "erp")],
)
def test_rotary_positions_on_the_loop(
    make_settings: Any, scenes: Path, tmp_path: Path, stitching: str, strategy: str
) -> None:
    changes = [
        "models.vision_rope=closed_yaw",
        f"models.stitching_mode={stitching}",
        f"image_processing.crop_strategy={strategy}",
        "models.vision_config.patch_size=4",
    ]
    if strategy == "erp":
        changes += [
            f"models.vision_config={TOWERS['dinov3']}",
            "image_processing.image_size=[16, 32]",
        ]
    folder = trained(make_settings, tmp_path, *changes)
    model = loaded(folder, scenes)
    assert model.recipe.models.vision_rope == "closed_yaw"
    after = bare(folder, tmp_path / "bare")
    assert "models.vision_rope" in after.assumed
    # No shape shows it, but the probe does.
    wrong = resolve(folder, {"models.vision_rope": "sequence"})
    line = assemble(wrong)
    assert list(check_probe(line, wrong, precisions(line)).differences) == ["language"]


def test_an_evaluation_turns_tokens_as_training_does(
    make_settings: Any, scenes: Path, tmp_path: Path
) -> None:
    """Answers of a whole evaluation, against steps of the training forward pass one by one."""
    changes = ("models.vision_rope=closed_yaw", "models.stitching_mode=sphere")
    model = PanoramaVLM.from_checkpoint(trained(make_settings, tmp_path, *changes))
    for parameter in model.language_model.parameters():  # so that places decide what is said
        parameter.data.mul_(4)
    generation = model.recipe.generation.model_copy(update={"max_new_tokens": 4})
    found = run_evaluation(
        model,
        tables=[str(scenes / "test.csv")],
        data_dir="",
        generation=generation,
        folder=tmp_path,
        prefix="loop",
        progress=False,
    )
    chat, rope = model.chat(), model.vision_rope
    said: dict[bool, list[str]] = {True: [], False: []}
    for answer, bent in product(found.answers, said):
        panorama = read_panorama(Path(answer.question.image))
        pixels = torch.from_numpy(ViewPipeline(model.recipe.image_processing)(panorama))[None]
        ids = torch.tensor([chat.prompt(answer.question.text)])
        prompt = ids.shape[1]
        model.vision_rope = rope if bent else None
        with torch.no_grad():
            for _ in range(4):
                new = model(pixels, ids).logits[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat((ids, new), dim=1)
        said[bent].append(chat.decode_answer(ids[0, prompt:].tolist()))
    assert [answer.prediction for answer in found.answers] == said[True]
    assert said[False] != said[True]
