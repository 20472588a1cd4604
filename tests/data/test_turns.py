"""A turned panorama with its rewritten texts is the scene with everything in it turned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from panovlm.config.schema import ImageProcessing, Settings
from panovlm.data.dataset import PanoramaDataset
from panovlm.data.directions import fault, turned
from panovlm.data.loader import Draw
from panovlm.data.samples import Sample
from panovlm.data.synthetic.questions import draw_questions
from panovlm.data.synthetic.render import render
from panovlm.data.synthetic.scene import DIRECTIONS, Scene, draw_scene
from panovlm.data.turns import all_turned, require_turnable, rolled
from panovlm.errors import ConfigError, DataError
from panovlm.models.language.chat import ChatFormat
from panovlm.models.language.tokenizer import prepare_tokenizer, word_tokenizer
from panovlm.panorama.image import panorama_size, read_panorama
from panovlm.panorama.pipeline import ViewPipeline


def shifted(scene: Scene, degrees: float) -> Scene:
    """The scene with all yaws that much larger."""
    solids = tuple(
        replace(s, yaw=(s.yaw + degrees + 180) % 360 - 180, spin=s.spin + degrees)
        for s in scene.solids
    )
    return Scene(replace(scene.room, yaw=scene.room.yaw + degrees), solids)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), number=st.integers(1, 7))
def test_pixels_are_those_of_the_shifted_scene(seed: int, number: int) -> None:
    scene = draw_scene(Random(seed))
    made = rolled(render(scene, 256), number, 8).astype(int)
    true = render(shifted(scene, 45 * number), 256).astype(int)
    difference = np.abs(made - true).max(2)
    # Rounding decides on which side of an edge a ray falls.
    assert (difference > 3).mean() < 0.002
    wrong = np.abs(rolled(render(scene, 256), number - 1, 8).astype(int) - true).max(2)
    assert (wrong > 3).mean() > 0.05


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), turns=st.sampled_from([2, 4, 8]), number=st.integers(1, 7))
def test_texts_are_those_of_the_shifted_scene(seed: int, turns: int, number: int) -> None:
    scene = draw_scene(Random(seed))
    said = draw_questions(scene, 99, Random(seed))
    true = draw_questions(shifted(scene, 360 / turns * number), 99, Random(seed))
    made = [[turned(text, number, turns) for text in (q.text, q.answer)] for q in said]
    assert made == [[q.text, q.answer] for q in true]


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("In front of you stands a table.", "To your right stands a table."),
        ("A door is straight ahead.", "A door is to your right."),
        ("On your left there is a sofa.", "In front of you there is a sofa."),
        ("on your right-hand side, a lamp", "behind you, a lamp"),
        ("ahead and on your left side.", "ahead and on your right side."),
        ("in front and to your left", "ahead and to your right"),
        ("A cat to the right of you?", "A cat behind you?"),
        ("from behind\nyou", "from to your left"),
        (
            "Two sofas, one to your left and one behind you",
            "Two sofas, one in front of you and one to your left",
        ),
        ("A red sofa in a bright room.", "A red sofa in a bright room."),
    ],
)
def test_a_quarter_turn(text: str, after: str) -> None:
    assert turned(text, 1, 4) == after


@given(st.sampled_from(DIRECTIONS), st.integers(0, 20), st.integers(0, 20))
def test_turns_add_up(phrase: str, first: int, second: int) -> None:
    assert turned(turned(phrase, first, 8), second, 8) == turned(phrase, first + second, 8)
    assert turned(phrase, 8, 8) == phrase


@pytest.mark.parametrize(
    "text",
    [
        "the left wall",
        "left",
        "Behind the sofa",
        "slightly to your left",
        "on your left wall",
        "to your left hand",
        "right behind you",
        "to your immediate right",
        "30 degrees to your left",
        "at yaw 30",
        "a door in the north-east",
        "at three o'clock",
        "in the centre of the image",
        "the edge of this wide panorama",
        "across from you",
        "a box at [12, 30, 40, 50]",
        "45° up",
        "왼쪽에 문이 있다",
        "une porte à gauche",
        "diagonally in front of you",
    ],
)
def test_what_is_not_certain_is_refused(text: str) -> None:
    assert fault(text, 4)
    with pytest.raises(DataError):
        turned(text, 1, 4)


def test_what_depends_on_the_turns() -> None:
    assert "multiples of 45" in fault("in front of you", 3)
    assert fault("a red room", 3) == ""
    assert "together" in fault("in front of you and to your left", 8)
    assert turned("in front of you and to your left", 1, 4) == "to your right and in front of you"


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    image = tmp_path / "a.png"
    Image.fromarray(render(draw_scene(Random(3)), 128)).save(image)
    turns = (("What is in front of you?", "a cube"), ("Where is it?", "behind and to your left"))
    return [Sample(image, turns, "t.csv:2"), Sample(image, (("Why?", "No"),), "t.csv:3")]


PIPELINE = ViewPipeline(ImageProcessing(crop_strategy="e2p", image_size=(16, 16)))


@pytest.mark.parametrize("together", [1, 2])
def test_items_are_turned_as_a_whole(samples: list[Sample], together: int) -> None:
    said = [text for row in samples for turns in all_turned(row, 4) for t in turns for text in t]
    tokenizer = word_tokenizer(said)
    prepare_tokenizer(tokenizer)
    chat = ChatFormat(tokenizer, model_name="tiny", system_message="", training_placeholder=True)
    erp = read_panorama(samples[0].image)
    pictures = [torch.from_numpy(PIPELINE(np.roll(erp, 32 * n, axis=1))) for n in range(4)]
    texts = [chat.training_text(turns) for turns in all_turned(samples[0], 4)]
    dataset = PanoramaDataset(samples, PIPELINE, chat, yaw_turns=4, questions_per_sample=together)
    seen: set[int] = set()
    for epoch in range(30):
        item = dataset[Draw(epoch, 0)]
        [number] = [n for n in range(4) if torch.equal(item["pixel_values"], pictures[n])]
        ids = tokenizer(texts[number], add_special_tokens=False)["input_ids"]
        own = item.get("input_ids", [])
        assert any(own[at : at + 8] == ids[-8:] for at in range(len(own)))
        if together == 1:
            assert own == ids
        again = PanoramaDataset(samples, PIPELINE, chat, yaw_turns=4, questions_per_sample=together)
        assert torch.equal(again[Draw(epoch, 0)]["pixel_values"], item["pixel_values"])
        seen.add(number)
    assert seen == {0, 1, 2, 3}


def test_rows_that_would_be_falsified_are_named(samples: list[Sample], tmp_path: Path) -> None:
    require_turnable(samples, 4, reads_text=True)
    bad = replace(samples[1], turns=(("Why?", "The left wall."),))
    with pytest.raises(DataError, match=r"falsify 1 of 2 rows:\n  t\.csv:3: 'left' may name"):
        require_turnable([samples[0], bad], 4, reads_text=True)
    require_turnable([samples[0], bad], 4, reads_text=False)
    Image.new("RGB", (120, 100)).save(tmp_path / "b.png")
    narrow = replace(samples[1], image=tmp_path / "b.png")
    with pytest.raises(DataError, match=r"t\.csv:3: .*b\.png: .*120 x 100 pixels"):
        require_turnable([samples[0], narrow], 4, reads_text=False)


def test_size_is_that_of_the_picture_as_it_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 200)).save(tmp_path / "a.jpg", exif=exif)
    assert panorama_size(tmp_path / "a.jpg") == (200, 100)
    assert read_panorama(tmp_path / "a.jpg").shape[:2] == (100, 200)


def test_kept_views_are_not_turned() -> None:
    training = {"stages": ["finetune"], "stage_configs": {"finetune": {}}}
    with pytest.raises(ValueError, match=r"cache_views keeps .* but yaw_turns turns every"):
        Settings.model_validate({"training": {**training, "yaw_turns": 4, "cache_views": True}})
    with pytest.raises(ConfigError, match="cannot be turned"):
        PanoramaDataset([], PIPELINE, None, cache=object(), yaw_turns=2)  # type: ignore[arg-type]
