"""Rotary positions on the closed loop, against the formula and by their properties."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tests.models.language.test_lora import build
from torch.testing import assert_close

from panovlm.config.schema import LoRASettings, Recipe
from panovlm.errors import ConfigError
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.language.rotary import BITS, VisionRope
from panovlm.models.model import PanoramaVLM
from panovlm.models.vision.loop import LoopPlaces

GEMMA = {"layer_types": ["sliding_attention", "full_attention"], "pad_token_id": 0}
FAMILIES = {
    "qwen2": {},
    "qwen3": {},
    "llama": {},
    "gemma3_text": GEMMA,
    "phi3": {"pad_token_id": 0},
}
TEXT = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "eos_token_id": None,
}
TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 16,
    "patch_size": 4,
    "vision_use_head": False,
}
FIRST = 3
"""Position at which the vision tokens begin."""


def ring(rows: int, columns: int, turned: float = 0.0) -> LoopPlaces:
    yaws = 2 * math.pi * (np.arange(columns) / columns + turned)
    row = np.stack((np.sin(yaws), np.zeros(columns), np.cos(yaws)), axis=1)
    return LoopPlaces.of(0, (columns,) * rows, np.tile(row, (rows, 1)), float(columns))


def embedded(places: LoopPlaces, kind: str = "qwen3", **changes: object) -> tuple:
    """Cosines and sines of some text, the vision tokens, and text again; and the frequencies."""
    model = build(kind, **changes)
    rope = VisionRope(model)
    rope.know(places)
    count = places.count
    base = torch.arange(count + FIRST + 2)[None]
    numbers = torch.zeros_like(base)
    numbers[0, FIRST : FIRST + count] = torch.arange(1, count + 1)
    ids = rope.positions(base, numbers, count)
    rotary = model.model.rotary_emb
    frequencies = rotary.inv_freq.double()
    plain = build(kind, **changes).model.rotary_emb
    x = torch.zeros(1)
    return rotary(x, ids), plain(x, base), frequencies


def test_the_formula() -> None:
    places = ring(3, 8)
    (cos, sin), (plain_cos, plain_sin), frequencies = embedded(places, head_dim=16)
    for number in range(places.count):
        row, column = divmod(number, 8)
        for channel, frequency in enumerate(frequencies.tolist()):
            whole = round(frequency * 8 / (2 * math.pi))
            angle = frequency * (FIRST + 8 * row) + 2 * math.pi * whole * column / 8
            for half in (channel, channel + len(frequencies)):
                at = (0, FIRST + number, half)
                assert cos[at].item() == pytest.approx(math.cos(angle), abs=1e-4)
                assert sin[at].item() == pytest.approx(math.sin(angle), abs=1e-4)
    for text in (slice(0, FIRST), slice(FIRST + places.count, None)):
        assert torch.equal(cos[:, text], plain_cos[:, text])
        assert torch.equal(sin[:, text], plain_sin[:, text])


def test_only_the_difference_of_yaw_counts_within_a_row() -> None:
    """Turning all tokens alike changes nothing between them; in a line it does at the ends."""

    def scores(turned: float) -> torch.Tensor:
        (cos, sin), _, _ = embedded(ring(2, 8, turned), head_dim=16)
        cos, sin = (part[0, FIRST : FIRST + 16].double() for part in (cos, sin))
        generator = torch.Generator().manual_seed(0)
        query, key = torch.randn(2, 16, generator=generator, dtype=torch.float64)

        def rotated(vector: torch.Tensor) -> torch.Tensor:
            half = torch.cat((-vector[8:], vector[:8]))
            return vector * cos + half * sin

        return rotated(query) @ rotated(key).T

    still = scores(0.0)
    assert_close(scores(0.37), still, atol=1e-4, rtol=0)
    # A ring: all neighbours are alike, also those over the seam.
    neighbours = [still[column, (column + 1) % 8] for column in range(8)]
    assert_close(torch.stack(neighbours), still[0, 1].expand(8), atol=1e-4, rtol=0)
    assert abs(still[0, 1] - still[0, 4]) > 1e-2


def recipe(**models: object) -> Recipe:
    image = {"crop_strategy": "anyres_e2p", "image_size": 16}
    settings = {
        "resampler_type": "identity",
        "latent_dimension": 16,
        "vision_rope": "closed_yaw",
        **models,
    }
    return Recipe.model_validate({"models": settings, "image_processing": image})


def whole_model(kind: str = "qwen3", **models: object) -> PanoramaVLM:
    torch.manual_seed(0)
    text = {"model_type": kind, **TEXT, **FAMILIES[kind]}
    config = PanoramaVLMConfig(
        recipe(**models), vision_config=TOWER, text_config=text, vision_token_id=29
    )
    model = PanoramaVLM(config).eval()
    for parameter in model.language_model.parameters():  # attention that looks at places
        parameter.data.mul_(3)
    return model


PIXELS = torch.randn(1, 9, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("stitching", ["concat", "sphere"])
def test_turning_by_a_step_permutes_the_places(stitching: str) -> None:
    """The views of a turned panorama are the same ones, each a step further: so are the places."""
    model = whole_model(stitching_mode=stitching)
    places = model.projector.places(9, 16)
    start = np.arange(len(places.turn)) - places.back  # where a token's row begins

    def sorted_places(turn: float) -> np.ndarray:
        around = (places.turn + turn + 1e-9) % 1
        return np.stack((start, around))[:, np.lexsort((around, start))]

    assert np.allclose(sorted_places(0.0), sorted_places(1 / 8), atol=1e-6)
    assert not np.allclose(sorted_places(0.0), sorted_places(1 / 50), atol=1e-6)
    assert places.front == 16
    assert places.columns == 16  # four patches show 90°


def test_places_of_dropped_columns_are_the_true_ones() -> None:
    """Views of 90° every 45°: columns are about 22.5° wide, and those at the seam come again."""
    places = whole_model().projector.places(9, 16)
    row = places.turn[: len(places.turn) // 4] * 360
    assert len(row) == 4 + 7 * 2
    assert np.all((np.diff(row) % 360 > 15) & (np.diff(row) % 360 < 30))
    assert row[-2:] == pytest.approx(row[:2] % 360, abs=12)  # the loop closes


@pytest.mark.parametrize("kind", FAMILIES)
def test_generation_with_a_cache_is_that_without(kind: str) -> None:
    model = whole_model(kind)
    prompts = torch.tensor([[5, 29, 7, 8, 9], [0, 0, 5, 29, 7]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    pixels = torch.cat((PIXELS, PIXELS.flip(1)))
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    made = model.generate(pixels, prompts, mask, **options)
    beams = model.generate(pixels, prompts, mask, num_beams=2, **options)
    assert beams.shape == made.shape
    for row in range(2):
        ids = prompts[row : row + 1, mask[row].bool()]
        with torch.no_grad():
            for new in made[row]:
                logits = model(pixels[row : row + 1], ids).logits[0, -1]
                assert int(logits.argmax()) == int(new)
                ids = torch.cat((ids, new.view(1, 1)), dim=1)


def test_it_makes_a_difference_that_is_no_adapters_business() -> None:
    model, line = whole_model(), whole_model(vision_rope="sequence")
    ids = torch.tensor([[5, 29, 7, 8]])
    assert line.vision_rope is None
    assert model.state_dict().keys() == line.state_dict().keys()
    line.load_state_dict(model.state_dict())
    with torch.no_grad():
        bent = model(PIXELS, ids).logits[:, -1]
        assert (bent - line(PIXELS, ids).logits[:, -1]).abs().max() > 1e-3
        assert torch.equal(model(input_ids=ids[:, 2:]).logits, line(input_ids=ids[:, 2:]).logits)
        # Below adapters, in copies, and after merging it is the same.
        model.add_adapters(LoRASettings(rank=2, target_modules=("q_proj",)))
        assert_close(copy.deepcopy(model).eval()(PIXELS, ids).logits[:, -1], bent)
        model.merge_adapters()
        assert_close(model.eval()(PIXELS, ids).logits[:, -1], bent)


def test_packed_conversations_are_as_alone() -> None:
    model = whole_model()
    packed = torch.tensor([[5, 29, 7, 8, 9, 10, 11]])
    segments = torch.tensor([[0, 0, 1, 1, 2, 2, 2]])
    with torch.no_grad():
        together = model(PIXELS, packed, segments=segments).logits[0]
        first = model(PIXELS, packed[:, :4]).logits[0]
        second = model(PIXELS, packed[:, [0, 1, 4, 5, 6]]).logits[0]
    assert_close(together[-5:-3], first[-2:], atol=1e-4, rtol=1e-4)
    assert_close(together[-3:], second[-3:], atol=1e-4, rtol=1e-4)


def test_tokens_of_unknown_places_are_refused() -> None:
    model = whole_model()
    with pytest.raises(ConfigError, match="where 7 vision tokens lie is not known"):
        model(vision_tokens=torch.zeros(1, 7, 16), input_ids=torch.tensor([[29]]))


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ({"stitching_mode": "resample"}, "means of several places"),
        ({"vision_token_fallback_position": "suffix"}, "set it to prefix"),
        ({"global_view": "first_view"}, "set global_view to apart"),
    ],
)
def test_what_does_not_go_together(models: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        whole_model(**models)


def test_tokens_without_places_are_refused() -> None:
    queries = {"num_query_tokens": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = whole_model(resampler_type="qformer", resampler_config=queries)
    with pytest.raises(ConfigError, match=r"show no certain directions.*closed_yaw"):
        model.vision_tokens(PIXELS)


def test_models_with_other_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="no rotary positions"):
        VisionRope(build("opt", word_embed_proj_dim=16, pad_token_id=0))
    with pytest.raises(ConfigError, match="laid out in another way"):
        VisionRope(build("cohere"))  # pairs of neighbouring channels


def test_numbers_fit_beside_positions() -> None:
    rope = VisionRope(build("llama"))
    rope.know(ring(1, 4))
    base = torch.tensor([[2**31]])
    coded = rope.positions(base, torch.tensor([[4]]), 4)
    assert int(coded >> BITS) == 4
