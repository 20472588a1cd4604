"""A stream of questions about panoramas against the same questions one by one."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from panovlm.config.image_input import ImageInput
from panovlm.config.schema import Settings
from panovlm.errors import ConfigError, DataError
from panovlm.models.assemble import new_model
from panovlm.models.model import PanoramaVLM
from panovlm.panorama.picture import Picture

WORDS = "what is left of the red ball ? a house green door behind you near table blue"
QUESTIONS = ["what is left of the red ball ?", "a house", "the green door near you ?", "blue"]
GREEDY = {"do_sample": False, "max_new_tokens": 12}


def build(**models: object) -> PanoramaVLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4}
    settings = Settings.model_validate(
        {
            "models": {
                "vision_config": {
                    "model_type": "siglip_vision_model",
                    "num_hidden_layers": 1,
                    "image_size": 16,
                    "patch_size": 8,
                    **sizes,
                },
                "language_config": {
                    "model_type": "qwen3",
                    "num_hidden_layers": 2,
                    "num_key_value_heads": 2,
                    "head_dim": 8,
                    "tie_word_embeddings": False,
                    **sizes,
                },
                "resampler_type": "mlp",
                "latent_dimension": 16,
                **models,
            },
            "training": {"stage_configs": {s: {} for s in ("vision", "resampler", "finetune")}},
        }
    )
    model = new_model(settings, [WORDS]).eval()
    with torch.no_grad():
        for name, parameter in model.language_model.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
            if "q_norm" in name or "k_norm" in name:
                parameter.mul_(4)  # so that attention picks tokens out instead of averaging all
        head = model.get_output_embeddings().weight
        head.copy_(torch.randn_like(head))
    return model


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (64, 128, 3), dtype=np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{number}.png" for number in range(3)]
    for number, file in enumerate(made):
        Image.fromarray(picture(number)).save(file)
    return made


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Panoramas that a model looks at, by call."""
    counts: list[int] = []
    features = PanoramaVLM.vision_features

    def counting(self, pixels):
        counts.append(len(pixels))
        return features(self, pixels)

    monkeypatch.setattr(PanoramaVLM, "vision_features", counting)
    return counts


@pytest.mark.parametrize("rope", ["sequence", "closed_yaw"])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_answers_are_those_of_questions_one_by_one(files, rope: str, batch_size: int):
    model = build(vision_rope=rope)
    requests = [(files[number % 3], QUESTIONS[number % 4]) for number in range(12)]
    expected = [
        (request, model.answer(picture(number % 3), request[1], **GREEDY))
        for number, request in enumerate(requests)
    ]
    assert len({len(answer.split()) for _, answer in expected}) > 2
    found = list(model.answer_each(iter(requests), batch_size=batch_size, **GREEDY))
    assert sorted(found) == sorted(expected)
    if batch_size == 1:
        assert found == expected


def test_answers_come_as_they_end_with_their_requests():
    model = build()
    given = {"do_sample": False, "max_new_tokens": 40}
    asked = {question: len(model.answer(picture(0), question, **given)) for question in QUESTIONS}
    short, *_, long = sorted(QUESTIONS, key=lambda question: asked[question])
    assert asked[long] > 3 * asked[short]
    requests = [(picture(0), long), (picture(0), short), (picture(0), short)]
    answered = [request for request, _ in model.answer_each(requests, batch_size=2, **given)]
    assert [id(request) for request in answered] == [id(requests[place]) for place in (1, 2, 0)]


def test_no_more_is_taken_from_the_stream_than_there_is_room():
    model, taken = build(), []

    def stream() -> Iterator[tuple[np.ndarray, str]]:
        for number in range(6):
            taken.append(number)
            yield picture(0), QUESTIONS[number % 4]

    answers = model.answer_each(stream(), batch_size=2, **{**GREEDY, "min_new_tokens": 12})
    assert not taken
    next(answers)
    assert taken == [0, 1]
    answers.close()


@pytest.mark.parametrize("kind", ["files", "pictures", "arrays"])
def test_a_panorama_is_looked_at_once_while_it_is_asked_about(files, looks, kind: str):
    model = build()
    panoramas = {
        "files": [files[0], str(files[0])] * 3,
        "pictures": [Picture(files[0]), files[0]] * 3,
        "arrays": [picture(0).copy() for _ in range(6)],
    }[kind]
    assert len(list(model.answer_each([(one, "blue") for one in panoramas], batch_size=2))) == 6
    assert looks == [1]


def test_panoramas_that_alternate_are_looked_at_once(files, looks):
    model = build()
    requests = [(files[number % 2], QUESTIONS[number % 4]) for number in range(8)]
    list(model.answer_each(requests, batch_size=4, **{**GREEDY, "min_new_tokens": 12}))
    # Both for the first four, which all end together; then the second one is known as the last.
    assert looks == [1, 1, 1]


def test_an_array_that_is_written_over_is_another_panorama(looks):
    model, frame = build(), picture(0)

    def stream() -> Iterator[tuple[np.ndarray, str]]:
        for number in (0, 1, 0):
            frame[:] = picture(number)
            yield frame, QUESTIONS[0]

    expected = [model.answer(picture(number), QUESTIONS[0], **GREEDY) for number in (0, 1, 0)]
    assert expected[0] != expected[1]
    looks.clear()
    found = model.answer_each(stream(), batch_size=1, **GREEDY)
    assert [answer for _, answer in found] == expected
    assert looks == [1, 1, 1]


def test_a_picture_declared_otherwise_is_another_panorama(files, looks):
    model = build()
    part = ImageInput.model_validate({"hfov": 180, "vfov": 90})
    requests = [(Picture(files[0]), "blue"), (Picture(files[0], part), "blue")]
    list(model.answer_each(requests, **GREEDY))
    assert looks == [1, 1]


def test_a_panorama_that_cannot_be_read_fails_its_own_questions(files, tmp_path):
    model = build()
    files[1].write_bytes(files[1].read_bytes()[:2000])
    requests = [
        (tmp_path / "nowhere.png", "blue"),
        (files[0], "a house"),
        (files[1], "a house"),
        (np.zeros((64, 128), np.uint8), "a house"),
        (files[2], "a house"),
    ]
    answers = list(model.answer_each(requests, batch_size=2, **GREEDY))
    found = {str(request[0]): answer for request, answer in answers}
    assert len(answers) == len(found) == 5
    for number in (0, 2):
        expected = model.answer(picture(number), "a house", **GREEDY)
        assert found.pop(str(files[number])) == expected
    assert all(isinstance(fault, DataError) for fault in found.values())
    faults = sorted(str(fault) for fault in found.values())
    told = ["a panorama must be uint8", "cannot read the panorama", "cannot read the panorama"]
    assert [fault[: len(start)] for fault, start in zip(faults, told, strict=True)] == told
    assert str(files[1]) in "".join(faults) and "nowhere.png: no such file" in "".join(faults)


def test_a_stream_of_nothing_but_faults_comes_to_its_end(tmp_path):
    requests = [(tmp_path / f"{number}.png", "blue") for number in range(5)]
    found = list(build().answer_each(requests, batch_size=2))
    assert [request for request, _ in found] == requests
    assert all("no such file" in str(error) for _, error in found)
    assert list(build().answer_each([])) == []


def test_what_was_computed_of_a_panorama_is_kept_no_longer_than_needed(monkeypatch):
    model, made = build(), []
    tokens = model.vision_tokens

    def noting(views: torch.Tensor) -> torch.Tensor:
        made.append(weakref.ref(found := tokens(views)))
        return found

    monkeypatch.setattr(model, "vision_tokens", noting)
    kept = []
    for _ in model.answer_each([(picture(n), "blue") for n in range(6)], batch_size=2, **GREEDY):
        kept.append(sum(one() is not None for one in made))
    assert len(made) == 6 and max(kept) <= 2


def test_batches_of_nothing_are_refused():
    with pytest.raises(ConfigError, match="batch_size is 0; it must be at least 1"):
        list(build().answer_each([], batch_size=0))


@pytest.mark.parametrize("request_", ["room.jpg", ("room.jpg",), ("room.jpg", 3), ["a", "b", "c"]])
def test_what_is_no_pair_is_refused(request_: object):
    with pytest.raises(ConfigError, match=r"pair of a panorama and a question in text, got ['(\[]"):
        list(build().answer_each([request_]))


def test_gradients_are_as_before_between_answers():
    model = build()
    for _ in model.answer_each([(picture(0), "blue")], **GREEDY):
        assert torch.is_grad_enabled()
