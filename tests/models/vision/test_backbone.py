"""The vision backbone against transformers' own towers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from panovlm.errors import CheckpointError, ConfigError
from panovlm.models.vision.backbone import VisionBackbone
from panovlm.models.vision.grid import ViewGrid
from panovlm.models.vision.pretrained import load_tower, tower_config, tower_processor

VIT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZE = {"image_size": 8, "patch_size": 4}
TEXT = {
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
DINO = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(**VIT, **SIZE)


def clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(**VIT, **SIZE)


def naflex() -> Siglip2VisionConfig:
    return Siglip2VisionConfig(**VIT, patch_size=4, num_patches=4)


WHOLE = {
    "siglip": lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=siglip().to_dict())),
    "siglip vision": lambda: SiglipVisionModel(siglip()),
    "clip": lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=clip().to_dict())),
    "clip vision": lambda: CLIPVisionModel(clip()),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**DINO)),
    "dinov3": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(**VIT, **SIZE, num_register_tokens=2, pos_embed_rescale=None)
    ),
    "naflex": lambda: Siglip2Model(
        Siglip2Config(text_config=TEXT, vision_config=naflex().to_dict())
    ),
}


def pixels(size: tuple[int, int] = (8, 8), count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))


def vision_half(model: PreTrainedModel) -> nn.Module:
    return dict(model.named_children()).get("vision_model", model)


def backbone(config, *, use_norm: bool = False) -> VisionBackbone:
    torch.manual_seed(0)
    return VisionBackbone(config, use_norm=use_norm).eval()


@pytest.fixture
def saved(tmp_path: Path):
    """Saves a whole tiny model with its processor; returns (folder, model)."""

    def save(kind: str) -> tuple[str, PreTrainedModel]:
        torch.manual_seed(5)
        model = WHOLE[kind]().eval()
        model.save_pretrained(tmp_path)
        return str(tmp_path), model

    return save


# ---------------------------------------------------------------------- building


@pytest.mark.parametrize("kind", WHOLE)
def test_tokens_are_transformers_last_hidden_state(kind):
    torch.manual_seed(3)
    model = WHOLE[kind]().eval()
    ours = backbone(model.config)
    ours.encoder.load_state_dict(vision_half(model).state_dict())
    x = pixels()
    if kind == "naflex":
        images = [image.permute(1, 2, 0).numpy() for image in x]
        inputs = Siglip2ImageProcessorPil(
            patch_size=4, max_num_patches=4, do_rescale=False, do_normalize=False, do_resize=False
        )(images, return_tensors="pt", input_data_format="channels_last")
        expected = vision_half(model)(**inputs).last_hidden_state
    elif kind.startswith(("siglip", "clip")):
        expected = vision_half(model)(pixel_values=x).last_hidden_state
    else:
        expected = model(x).last_hidden_state
    torch.testing.assert_close(ours(x), expected)


def test_siglip_tokens_are_after_the_last_layer_norm():
    ours = backbone(siglip())
    tokens = ours(pixels())
    normed = (tokens - tokens.mean(-1, keepdim=True)) / tokens.std(-1, correction=0, keepdim=True)
    torch.testing.assert_close(tokens, normed, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("config", "tokens", "has_class_token"),
    [
        (siglip(), 4, False),
        (clip(), 5, True),
        (Dinov2Config(**DINO), 5, True),
        (naflex(), 4, False),
    ],
    ids=["siglip", "clip", "dinov2", "naflex"],
)
def test_properties(config, tokens, has_class_token):
    ours = backbone(config)
    assert ours(pixels()).shape == (3, tokens, 16)
    assert ours.hidden_size == 16
    assert ours.image_size == (8, 8)
    assert ours.has_class_token is has_class_token
    assert len(ours.blocks()) == 3


def test_blocks_are_in_order():
    ours = backbone(siglip())
    last = ours.blocks()[-1]
    assert last is ours.encoder.get_submodule("encoder.layers.2")


@pytest.mark.parametrize("kind", ["siglip", "clip", "naflex"])
def test_two_tower_configuration_builds_the_vision_tower_only(kind):
    whole = WHOLE[kind]()
    ours = backbone(whole.config)
    assert set(ours.state_dict()) == {f"encoder.{name}" for name in vision_half(whole).state_dict()}
    assert not any("text" in name or name.startswith("vision_model") for name in ours.state_dict())


def test_pooling_head_of_siglip_is_kept():
    assert "encoder.head.probe" in backbone(siglip()).state_dict()


def test_norm_by_hand():
    plain, normed = backbone(clip()), backbone(clip(), use_norm=True)
    assert plain.norm is None
    assert normed.norm is not None
    nn.init.normal_(normed.norm.weight)
    nn.init.normal_(normed.norm.bias)
    x = plain(pixels())
    expected = (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, correction=0, keepdim=True) + 1e-5
    ) ** 0.5
    expected = expected * normed.norm.weight + normed.norm.bias
    torch.testing.assert_close(normed(pixels()), expected)
    assert {"norm.weight", "norm.bias"} <= set(normed.state_dict())


def test_half_precision_tower_under_a_full_precision_norm():
    ours = backbone(clip(), use_norm=True)
    ours.encoder.to(torch.bfloat16)
    assert ours(pixels()).dtype is torch.float32


@pytest.mark.parametrize(
    ("fields", "width"),
    [
        ({"projection_dim": 7, "embed_dim": 5}, 5),
        ({"embed_dim": 5, "hidden_dim": 4, "vision_hidden_size": 3}, 3),
        ({"projection_dim": 7}, 7),
    ],
)
def test_width_is_the_first_known_field(fields, width):
    config = PreTrainedConfig(**fields)
    assert VisionBackbone(config, use_norm=False, encoder=nn.Identity()).hidden_size == width


def test_unknown_width():
    with pytest.raises(ConfigError, match="gives no width"):
        VisionBackbone(PreTrainedConfig(), use_norm=True, encoder=nn.Identity())


def test_given_configuration_is_left_alone():
    config = siglip()
    before = config.to_dict()
    backbone(config)
    assert config.to_dict() == before


def test_ready_made_tower_is_used():
    tower = SiglipVisionModel(siglip())
    assert VisionBackbone(siglip(), use_norm=True, encoder=tower).encoder is tower


def test_configuration_that_cannot_be_built():
    config = SiglipVisionConfig(**{**VIT, "num_attention_heads": 3}, **SIZE)
    with pytest.raises(ConfigError, match=r"no vision tower.*'siglip_vision_model'.*divisible"):
        VisionBackbone(config, use_norm=False)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"hidden_act": "gellu"}, "KeyError: 'gellu'"), ({"patch_size": 0}, "ZeroDivisionError")],
)
def test_values_that_the_family_does_not_have(changes, told):
    config = siglip()
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ConfigError, match=rf"{told}.* a value in models\.vision_config"):
        VisionBackbone(config, use_norm=False)


# ---------------------------------------------------------------------- sizes of pictures


def test_dinov2_interpolates_its_positions():
    ours = backbone(Dinov2Config(**DINO))
    assert ours(pixels((12, 16))).shape == (3, 1 + 3 * 4, 16)


def test_naflex_reads_any_whole_patches():
    ours = backbone(naflex())
    x = pixels((4, 12))
    tokens = ours(x)
    assert tokens.shape == (3, 3, 16)
    patches = [
        x[:, :, 0:4, 4 * i : 4 * i + 4].permute(0, 2, 3, 1).reshape(3, 1, 48) for i in range(3)
    ]
    expected = ours.encoder(
        pixel_values=torch.cat(patches, 1),
        pixel_attention_mask=torch.ones(3, 3, dtype=torch.int32),
        spatial_shapes=torch.tensor([[1, 3]] * 3),
    ).last_hidden_state
    torch.testing.assert_close(tokens, expected)


def test_naflex_refuses_parts_of_patches():
    with pytest.raises(ConfigError, match=r"any height and width.*10×22.*such as \[8, 20\]"):
        backbone(naflex())(pixels((10, 22)))


def test_naflex_reads_a_whole_panorama_in_its_own_proportions():
    """Twice as wide as high, as transformers' own processor would hand it over."""
    ours = backbone(naflex())
    x = pixels((8, 16))
    images = [image.permute(1, 2, 0).numpy() for image in x]
    inputs = Siglip2ImageProcessorPil(
        patch_size=4, max_num_patches=8, do_rescale=False, do_normalize=False, do_resize=False
    )(images, return_tensors="pt", input_data_format="channels_last")
    assert inputs["spatial_shapes"].tolist() == [[2, 4]] * 3
    torch.testing.assert_close(ours(x), ours.encoder(**inputs).last_hidden_state)
    assert ours.view_grid((8, 16), 8) == ViewGrid(2, 4)


def test_siglip_ignores_pixels_beyond_the_last_patch():
    ours = backbone(SiglipVisionConfig(**VIT, image_size=10, patch_size=4))
    x = pixels((10, 10))
    torch.testing.assert_close(ours(x), ours(x[..., :8, :8]))


@pytest.mark.parametrize(
    ("config", "size"),
    [(siglip(), (12, 8)), (siglip(), (16, 1)), (clip(), (9, 8))],
    ids=["siglip", "siglip flat", "clip"],
)
def test_other_sizes_are_refused(config, size):
    with pytest.raises(ConfigError, match=rf"8×8.*{size[0]}×{size[1]}.*image_size: \[8, 8\]"):
        backbone(config)(pixels(size))


# ---------------------------------------------------------------------- building without weights


@pytest.mark.parametrize(
    ("config", "buffers"),
    [
        (siglip(), {"embeddings.position_ids"}),
        (clip(), {"embeddings.position_ids"}),
        (Dinov2Config(**DINO), set()),
        (naflex(), set()),
    ],
    ids=["siglip", "clip", "dinov2", "naflex"],
)
def test_empty_build_then_weights(config, buffers):
    real = backbone(config, use_norm=True)
    with init_empty_weights(include_buffers=False):
        empty = VisionBackbone(config, use_norm=True).eval()
    assert all(p.is_meta for p in empty.parameters())
    assert {name for name, _ in empty.encoder.named_buffers()} == buffers
    assert not any(b.is_meta for b in empty.buffers())
    empty.load_state_dict(real.state_dict(), assign=True, strict=True)
    torch.testing.assert_close(empty(pixels()), real(pixels()))
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in VisionBackbone(config, use_norm=True).state_dict().items()}
    assert shapes == {name: value.shape for name, value in real.state_dict().items()}


# ---------------------------------------------------------------------- pretrained towers


@pytest.mark.parametrize("kind", WHOLE)
def test_pretrained_weights_are_loaded_whole(kind, saved):
    folder, model = saved(kind)
    tower = load_tower(folder)
    expected = vision_half(model).state_dict()
    assert set(tower.state_dict()) == set(expected)
    for name, value in tower.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    ours = VisionBackbone(tower_config(folder), use_norm=False, encoder=tower).eval()
    again = backbone(model.config)
    again.encoder.load_state_dict(expected)
    torch.testing.assert_close(ours(pixels()), again(pixels()))


def test_stored_half_precision_is_loaded_as_asked(tmp_path):
    SiglipVisionModel(siglip()).half().save_pretrained(tmp_path)
    assert {p.dtype for p in load_tower(str(tmp_path)).parameters()} == {torch.float32}
    half = load_tower(str(tmp_path), dtype=torch.float16)
    assert {p.dtype for p in half.parameters()} == {torch.float16}


def rewrite(folder: str, change) -> None:
    file = Path(folder) / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(("kind", "prefix"), [("siglip", "vision_model."), ("dinov2", "")])
def test_weights_that_do_not_fit_are_refused(kind, prefix, saved):
    norm = {"siglip": "post_layernorm.weight", "dinov2": "layernorm.weight"}[kind]
    folder, _ = saved(kind)
    rewrite(folder, lambda t: t.pop(prefix + norm))
    with pytest.raises(CheckpointError, match=rf"1 missing \({norm}\)"):
        load_tower(folder)
    rewrite(folder, lambda t: t.update({prefix + norm: torch.ones(17)}))
    with pytest.raises(CheckpointError, match=f"1 of another shape .*{norm}"):
        load_tower(folder)
    more = {prefix + norm: torch.ones(16), prefix + "encoder.surplus": torch.ones(1)}
    rewrite(folder, lambda t: t.update(more))
    with pytest.raises(CheckpointError, match=r"1 unexpected .*encoder\.surplus"):
        load_tower(folder)


@pytest.mark.parametrize("kind", ["siglip vision", "clip vision", "dinov2"])
def test_folders_of_transformers_4(kind, saved):
    """There the vision-only models had a prefix, and the attention of DINOv2 other names."""
    folder, model = saved(kind)
    older = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if kind == "dinov2":
                new = name.replace("attention.o_proj", "attention.output.dense")
                for now, then in older.items():
                    new = new.replace(f"attention.{now}", f"attention.{then}")
            else:
                new = f"vision_model.{name}"
            tensors[new] = tensors.pop(name)

    rewrite(folder, rename)
    tower = load_tower(folder)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(tower.state_dict()[name], value, rtol=0, atol=0)


def test_stored_position_ids_of_older_files_are_no_fault(saved):
    folder, _ = saved("clip")
    ids = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    rewrite(folder, lambda t: t.update(ids))
    assert load_tower(folder).state_dict()


def test_damaged_weights(saved):
    folder, _ = saved("siglip vision")
    file = Path(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        load_tower(folder)


def test_folder_without_weights(saved):
    folder, _ = saved("siglip vision")
    (Path(folder) / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="weights of vision tower"):
        load_tower(folder)


@pytest.mark.parametrize("read", [load_tower, tower_config, tower_processor])
def test_hub_name_without_network(read, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError) as error:
        read("nobody/no-such-tower")
    message = str(error.value)
    assert "'nobody/no-such-tower'" in message
    assert "models.vision_name" in message


@pytest.mark.parametrize("read", [load_tower, tower_config, tower_processor])
def test_folder_that_does_not_exist(read, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read(str(tmp_path / "tower"))


def test_configuration_of_unknown_type(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "telescope"}))
    with pytest.raises(ConfigError, match=r"cannot be used.*telescope"):
        tower_config(str(tmp_path))


@pytest.mark.parametrize("kind", ["siglip", "clip", "dinov2"])
def test_tower_config_is_that_of_the_tower(kind, saved):
    folder, model = saved(kind)
    config = tower_config(folder)
    assert config.model_type in {"siglip_vision_model", "clip_vision_model", "dinov2"}
    assert config.to_dict()["hidden_size"] == 16
    assert backbone(config).hidden_size == 16
    assert model.config.model_type in {"siglip", "clip", "dinov2"}


def test_processor_is_a_plain_dictionary(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert tower_processor(str(tmp_path)) is None
    joint = {"processor_class": "SiglipProcessor", "image_processor": {"do_resize": False}}
    (tmp_path / "processor_config.json").write_text(json.dumps(joint))
    assert tower_processor(str(tmp_path)) == {"do_resize": False}
    SiglipImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    found = tower_processor(str(tmp_path))
    assert type(found) is dict
    assert found["size"] == {"height": 8, "width": 8}
    assert found["image_mean"] == [0.5, 0.5, 0.5]


def test_processor_that_is_no_json(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json is no valid JSON"):
        tower_processor(str(tmp_path))


# ---------------------------------------------------------------------- where tokens lie


@pytest.mark.parametrize(
    ("config", "size", "expected"),
    [
        (siglip(), (8, 8), ViewGrid(2, 2)),
        (clip(), (8, 8), ViewGrid(2, 2, extra=1)),
        (naflex(), (4, 16), ViewGrid(1, 4)),
        (Dinov2Config(**DINO), (8, 12), ViewGrid(2, 3, extra=1)),
        (
            Dinov2WithRegistersConfig(**DINO, num_register_tokens=4),
            (12, 8),
            ViewGrid(3, 2, extra=5),
        ),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_the_grid_of_a_view(config, size, expected):
    tower = backbone(config)
    with torch.no_grad():
        count = tower(pixels(size)).shape[1]
    assert tower.view_grid(size, count) == expected and expected.count == count


def test_a_grid_that_nobody_knows():
    tower = backbone(siglip())
    with pytest.raises(ConfigError, match="made 3 tokens of a view of 8×8 pixels"):
        tower.view_grid((8, 8), 3)
    tower._fields["patch_size"] = None
    with pytest.raises(ConfigError, match="gives no patch_size"):
        tower.view_grid((8, 8), 4)
