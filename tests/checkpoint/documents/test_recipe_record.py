"""The settings among the weights: whoever saves them, they are read, compared and never bound."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
import zlib
from random import Random

import pytest
import torch
import torch.distributed.checkpoint
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from panovlm.checkpoint.documents.recipe_record import RecipeRecord
from panovlm.checkpoint.formats import read_header
from panovlm.checkpoint.formats.header import MAX_RECORD, RECORD
from panovlm.checkpoint.repair.metadata import add_metadata
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import save_checkpoint, without_record
from panovlm.config.schema import LoRASettings
from panovlm.errors import CheckpointError, ConfigError, ContradictionError, PanoVLMError
from panovlm.models.model import PanoramaVLM

load = PanoramaVLM.from_checkpoint
UNUSUAL = {
    "resampler_type": "bimamba",
    "resampler_config": {"hidden_dim": 32, "depth": 2, "d_state": 4, "norm_first": False},
    "overlap_ratio": 0.25,
    "image": {"crop_strategy": "e2p_sphere", "pitch_rows": 2, "fov_deg": 75.0},
}


def bare(model, path, change=lambda state: state):
    """Write a state dict and nothing else."""
    state = change(dict(model.state_dict()))
    if path.suffix == ".safetensors":
        names = {n: t.contiguous() for n, t in state.items() if not n.endswith("lm_head.weight")}
        save_file(names, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_bare_weights_tell_every_setting(name, own, tmp_path):
    model = own(**UNUSUAL)
    loaded = load(bare(model, tmp_path / name), strict=True)
    assert loaded.record() == model.record() and loaded.recipe.models.overlap_ratio == 0.25
    assert loaded.config.vision_token_id == model.config.vision_token_id is not None
    sources = loaded.resolution.sources
    assert "recipe in the weights" in str(sources["models.overlap_ratio"])
    assert str(sources["hidden_dim"]).endswith("input_proj.weight[0]")


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.to(torch.bfloat16),
        lambda model: model.half(),
        torch.compile,
        copy.deepcopy,
        lambda model: torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        ),
    ],
)
def test_it_survives_what_is_done_to_models(change, own, tmp_path):
    model = copy.deepcopy(own(**UNUSUAL))
    changed = change(model)
    if hasattr(changed, "update_parameters"):
        changed.update_parameters(model)
        changed.update_parameters(model)
    name = next(name for name in changed.state_dict() if name.endswith(RECORD))
    stored = bytes(changed.state_dict()[name].tolist())
    assert RecipeRecord.from_bytes(stored, "here").tells(own(**UNUSUAL).config.typed_recipe())


def test_a_state_dict_is_never_where_a_model_has_its_settings_from(own):
    one, other = copy.deepcopy(own()), own(overlap_ratio=0.25)
    state = {**other.state_dict(), RECORD: torch.zeros(3 * 4096, dtype=torch.uint8)}
    one.load_state_dict(state, strict=True)
    told = RecipeRecord.from_bytes(bytes(one.state_dict()[RECORD].tolist()), "here")
    assert told.recipe.models.overlap_ratio == 0.5
    one.load_state_dict({n: t for n, t in state.items() if n != RECORD}, strict=True)


def test_it_follows_the_adapters(own, tmp_path):
    model = load(bare(own(), tmp_path / "model.pt"))
    model.add_adapters(LoRASettings(rank=2, alpha=5, target_modules=("q_proj",)))
    again = load(bare(model, tmp_path / "adapted.pt"), strict=True)
    assert again.recipe.lora.alpha == 5


def test_adapters_in_a_passing_state_are_not_saved(own, tmp_path):
    model = load(bare(own(), tmp_path / "model.pt"))
    model.add_adapters(LoRASettings(rank=2, alpha=5, target_modules=("q_proj",)))
    inner = model.language_model
    inner.merge_adapter()
    for save in (model.state_dict, lambda: save_checkpoint(model, tmp_path / "best.ckpt")):
        with pytest.raises(ConfigError, match=r"q_proj are merged .* unmerge_adapter"):
            save()
    assert not (tmp_path / "best.ckpt").exists()
    inner.unmerge_adapter()
    inner.disable_adapter_layers()
    for save in (model.state_dict, lambda: save_checkpoint(model, tmp_path / "best.ckpt")):
        with pytest.raises(ConfigError, match=r"q_proj, none are in use .* enable_adapter_layers"):
            save()
    inner.enable_adapter_layers()
    inner.add_adapter("other", inner.peft_config["default"])
    inner.set_adapter("other")
    with pytest.raises(ConfigError, match=r"\['other'\] are in use"):
        model.state_dict()
    inner.set_adapter("default")
    inner.delete_adapter("other")
    model.state_dict()
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.set_scale("default", 3.0)
    with pytest.raises(ConfigError, match=r"scaled by 7\.5, but lora\.alpha / lora\.rank is 2\.5"):
        model.state_dict()
    for layer in layers:
        layer.set_scale("default", 1.0)
    model.state_dict()


def test_adapters_around_the_model_that_are_merged_for_now(own):
    config = LoraConfig(r=2, target_modules=r".*language_model.*q_proj")
    model = get_peft_model(copy.deepcopy(own()), config)
    model.state_dict()
    model.merge_adapter()
    with pytest.raises(ConfigError, match="are merged"):
        model.state_dict()
    model.merge_and_unload().state_dict()


def test_a_document_that_says_otherwise(own, tmp_path):
    save_checkpoint(own(**UNUSUAL), tmp_path / "best.ckpt")
    sidecar = tmp_path / "checkpoint_metadata.json"
    document = json.loads(sidecar.read_text())
    document["recipe"]["models"]["overlap_ratio"] = 0.4
    document["recipe"]["models"]["vision_config"]["hidden_act"] = "relu"
    document["probe"] = None
    sidecar.write_text(json.dumps(document))
    path = bare(own(**UNUSUAL), tmp_path / "best.ckpt")
    with pytest.raises(ContradictionError) as error:
        load(path)
    assert "metadata and the recipe in the weights (recipe_bytes) contradict" in str(error.value)
    assert "models.overlap_ratio: 0.4 (checkpoint_metadata.json) against 0.25" in str(error.value)
    assert "models.vision_config.hidden_act: 'relu'" in str(error.value)
    for side, overlap in (("weights", 0.25), ("metadata", 0.4)):
        assert load(path, prefer=side).recipe.models.overlap_ratio == overlap
    assert add_metadata(path, prefer="metadata").written  # says for good which of them is right
    assert load(path, strict=True).recipe.models.overlap_ratio == 0.4
    assert add_metadata(path).complete


def test_shapes_that_say_otherwise(own, tmp_path):
    model, other = own(**UNUSUAL), own()
    path = tmp_path / "model.pt"
    bare(model, path, lambda state: {**state, RECORD: other.state_dict()[RECORD]})
    with pytest.raises(ContradictionError, match=r"resampler_type: 'mlp' \(recipe in the weights"):
        load(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("container", ["model.pt", "model.safetensors", "dcp"])
def test_it_is_read_where_every_tensor_was_converted(dtype, container, own, tmp_path):
    model, path = own(**UNUSUAL), tmp_path / container
    if container == "dcp":
        state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
        with warnings.catch_warnings(action="ignore"):
            torch.distributed.checkpoint.save({"model": state}, checkpoint_id=path)
    else:
        bare(model, path, lambda state: {name: tensor.to(dtype) for name, tensor in state.items()})
    assert load(path, strict=True).record() == model.record()


def test_weights_from_before(own, tmp_path):
    path = bare(own(), tmp_path / "model.pt", without_record)
    found = resolve(path)
    assert found.record is None and found.keys.layout == "panovlm-1" and found.assumed


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (torch.zeros(4096, dtype=torch.uint8), "cannot be unpacked"),
        (zlib.compress(bytes(9999))[:12], "cut off"),
        (torch.zeros(4096, dtype=torch.bfloat16), "cannot be unpacked"),
        (torch.full((4096,), 0.5), "cannot be unpacked|is cut off"),
        (torch.full((4096,), torch.nan), "cannot be unpacked|is cut off"),
        (torch.full((4096,), torch.inf), "cannot be unpacked|is cut off"),
        (torch.zeros(4096, dtype=torch.int8), "is int8"),
        (torch.zeros(2, 9, dtype=torch.uint8), r"is uint8 \[2, 9\]"),
        (torch.zeros(MAX_RECORD + 1, dtype=torch.uint8), "at most 1048576"),
        (zlib.compress(b"[" * 100_000), "no JSON"),
        (zlib.compress(b"{}"), "no recipe"),
        (zlib.compress(bytes(64 << 20)), "unpacks to"),
        (zlib.compress(b"{}") + b"more", "other bytes"),
        (zlib.compress(b'{"format":"panovlm-recipe","recipe":{},"new":1}'), "another version"),
        (
            zlib.compress(b'{"format":"panovlm-recipe","recipe":' + b"[" * 40 + b"]" * 40 + b"}"),
            "nested deeper",
        ),
    ],
)
def test_a_damaged_one_is_an_error_that_names_the_file(data, told, own, tmp_path):
    tensor = data if isinstance(data, torch.Tensor) else torch.tensor(list(data)).to(torch.uint8)
    path = bare(own(), tmp_path / "model.pt", lambda state: {**state, RECORD: tensor})
    with pytest.raises(CheckpointError, match=told) as error:
        load(path)
    assert str(path) in str(error.value) and RECORD in str(error.value)


def test_random_damage_ends_in_a_record_or_an_error(own):
    whole, random = own().record().to_bytes(), Random(3)
    text = zlib.decompressobj().decompress(whole)
    ended = {"read": 0, "refused": 0}
    for case in range(3000):
        data = bytearray(whole if case % 2 else text)
        for _ in range(random.randint(1, 4)):
            at = random.randrange(len(data))
            choice = random.randrange(3)
            if choice == 0:
                data[at] = random.randrange(256)
            elif choice == 1:
                del data[at : at + random.randrange(1, 40)]
            else:
                data[at:at] = random.randbytes(3)
        try:
            RecipeRecord.from_bytes(bytes(data) if case % 2 else zlib.compress(data), "here")
            ended["read"] += 1
        except PanoVLMError as error:
            assert str(error).startswith("here ")
            ended["refused"] += 1
    assert ended["refused"] > 2000 and ended["read"] > 20


def test_it_is_read_without_torch(own, tmp_path):
    path = bare(own(**UNUSUAL), tmp_path / "model.safetensors")
    assert read_header(path).records.keys() == {RECORD}
    code = (
        "import sys; from panovlm.checkpoint.resolve import resolve; "
        f"r = resolve({str(path)!r}); assert not r.assumed and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
