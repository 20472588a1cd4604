from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from panovlm.config.schema import Generation, ImageProcessing
from panovlm.data.samples import Sample, read_tables
from panovlm.errors import DataError
from panovlm.evaluation.answers import Answer, Question
from panovlm.evaluation.ledger import Ledger
from panovlm.evaluation.run import evaluate, generation_arguments, pictures_of, questions_of
from panovlm.models.language.chat import ChatFormat
from panovlm.models.language.tokenizer import prepare_tokenizer, word_tokenizer
from panovlm.panorama.image import read_panorama
from panovlm.panorama.pipeline import ViewPipeline

_COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
_SETTINGS = ImageProcessing(crop_strategy="cubemap", image_size=(16, 16), normalize=False)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    tokenizer = word_tokenizer(["what is it very long question here first last red green blue"])
    prepare_tokenizer(tokenizer)
    return ChatFormat(tokenizer, model_name="tiny", system_message="", training_placeholder=True)


class ColourReader(nn.Module):
    """Answers with the strongest colour of the views and the last word of the question.

    It has no mock in it: the answer is computed from the pixels and ids that come in.
    """

    def __init__(self, chat: ChatFormat) -> None:
        super().__init__()
        self.chat = chat
        self.dropout = nn.Dropout()
        self.calls: list[dict[str, Any]] = []
        self.fail_at: int | None = None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def generate(
        self,
        *,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        about: Tensor,
        **kwargs: Any,
    ) -> Tensor:
        if len(self.calls) == self.fail_at:
            raise RuntimeError("out of memory")
        self.calls.append({"ids": input_ids, "mask": attention_mask, **kwargs})
        assert not self.training
        assert not torch.is_grad_enabled()
        panoramas, views, channels = pixel_values.shape[:3]
        assert (views, channels) == (4, 3)
        assert set(about.tolist()) == set(range(panoramas))
        self.calls[-1]["panoramas"] = panoramas
        rows = []
        seen = pixel_values[about]
        for pixels, ids, mask in zip(seen, input_ids, attention_mask, strict=True):
            colour = list(_COLOURS)[int(pixels.mean((0, 2, 3)).argmax())]
            words = self.chat.decode_answer(ids[mask.bool()].tolist()).split()
            # The prompt ends with the question and the header of the answer.
            question = [word for word in words if word in ("first", "last")][-1]
            rows.append(self.chat.tokenizer(f"{colour} {question}")["input_ids"][:2])
        return torch.tensor(rows)


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.png" for name in _COLOURS}
    for name, path in paths.items():
        Image.new("RGB", (200, 100), _COLOURS[name]).save(path)
    return paths


def _question(number: int, image: Path, text: str = "what is it first") -> Question:
    return Question(str(number), str(image), text)


def _run(
    chat: ChatFormat, questions: Sequence[Question], ledger: Path, **changes: Any
) -> tuple[ColourReader, list[Answer]]:
    model = changes.pop("model", None) or ColourReader(chat)
    pipeline = changes.pop("pipeline", None) or ViewPipeline(_SETTINGS)
    settings = {"batch_size": 2, "progress": False, **changes}
    with Ledger(ledger, {}) as file:
        return model, evaluate(
            model,
            questions,
            lambda path: pipeline(read_panorama(path)),
            chat,
            Generation(),
            ledger=file,
            **settings,
        )


def test_every_question_is_answered_from_its_own_panorama(
    chat: ChatFormat, images: dict[str, Path], tmp_path: Path
) -> None:
    names = ["blue", "red", "green", "green", "red"]
    texts = ["what is it first", "very long question here what is it last"]
    questions = [_question(n, images[name], texts[n % 2]) for n, name in enumerate(names)]
    model, answers = _run(chat, questions, tmp_path / "ledger.jsonl")
    expected = ["blue first", "red last", "green first", "green last", "red first"]
    assert [answer.prediction for answer in answers] == expected
    assert [answer.question for answer in answers] == questions
    assert [len(call["ids"]) for call in model.calls] == [2, 2, 1]


def test_prompts_are_padded_on_the_left(
    chat: ChatFormat, images: dict[str, Path], tmp_path: Path
) -> None:
    questions = [
        _question(0, images["red"], "what is it first"),
        _question(1, images["red"], "very long question here what is it last"),
    ]
    model, _ = _run(chat, questions, tmp_path / "ledger.jsonl")
    (call,) = model.calls
    short, long = (chat.prompt(question.text) for question in questions)
    gap = len(long) - len(short)
    assert gap > 0
    assert call["ids"].tolist() == [[chat.tokenizer.pad_token_id] * gap + short, long]
    assert call["mask"].tolist() == [[0] * gap + [1] * len(short), [1] * len(long)]


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_neighbours_share_the_views_of_their_panorama(
    batch_size: int, chat: ChatFormat, images: dict[str, Path], tmp_path: Path
) -> None:
    rendered: list[tuple[int, ...]] = []
    views = ViewPipeline(_SETTINGS)

    def pipeline(erp: NDArray[np.uint8]) -> NDArray[np.float32]:
        rendered.append(tuple(erp[0, 0]))
        return views(erp)

    names = ["red", "red", "red", "blue", "blue", "green"]
    questions = [_question(n, images[name]) for n, name in enumerate(names)]
    _, answers = _run(
        chat, questions, tmp_path / "l.jsonl", pipeline=pipeline, batch_size=batch_size
    )
    assert rendered == [_COLOURS["red"], _COLOURS["blue"], _COLOURS["green"]]
    assert [answer.prediction for answer in answers] == [f"{name} first" for name in names]


def test_questions_about_one_panorama_are_asked_together(
    chat: ChatFormat, images: dict[str, Path], tmp_path: Path
) -> None:
    names = ["red", "blue", "red", "green", "blue", "red"]
    questions = [_question(n, images[name]) for n, name in enumerate(names)]
    model, answers = _run(chat, questions, tmp_path / "l.jsonl", batch_size=3)
    assert [call["panoramas"] for call in model.calls] == [1, 2]
    assert [answer.prediction for answer in answers] == [f"{name} first" for name in names]
    assert [answer.question for answer in answers] == questions


def test_an_unreadable_panorama_fails_its_own_questions_only(
    chat: ChatFormat, images: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff no picture")
    paths = [broken, images["red"], tmp_path / "none.png", broken, images["blue"]]
    questions = [_question(n, path) for n, path in enumerate(paths)]
    ledger = tmp_path / "ledger.jsonl"
    _, answers = _run(chat, questions, ledger)
    assert [answer.is_error for answer in answers] == [True, False, True, True, False]
    assert "broken.jpg" in (answers[0].reason or "")
    assert "no such file" in (answers[2].reason or "")
    # Once the pictures are there, only the failed questions are asked again.
    for path in (broken, tmp_path / "none.png"):
        Image.new("RGB", (200, 100), _COLOURS["green"]).save(path, "PNG")
    model, answers = _run(chat, questions, ledger)
    words = ["green", "red", "green", "green", "blue"]
    assert [answer.prediction for answer in answers] == [f"{word} first" for word in words]
    assert sum(len(call["ids"]) for call in model.calls) == 3


def test_a_failing_model_stops_the_evaluation_and_the_rest_is_asked_later(
    chat: ChatFormat, images: dict[str, Path], tmp_path: Path
) -> None:
    questions = [_question(n, images[name]) for n, name in enumerate([*_COLOURS, *_COLOURS])]
    ledger = tmp_path / "ledger.jsonl"
    weak = ColourReader(chat)
    weak.fail_at = 2
    with pytest.raises(RuntimeError, match="out of memory"):
        _run(chat, questions, ledger, model=weak)
    model, answers = _run(chat, questions, ledger)
    assert [len(call["ids"]) for call in model.calls] == [2]
    assert [answer.prediction for answer in answers] == [f"{name} first" for name in _COLOURS] * 2
    model, again = _run(chat, questions, ledger)
    assert model.calls == []
    assert again == answers


def test_errors_of_the_pipeline_that_concern_no_picture_are_not_swallowed(
    chat: ChatFormat, images: dict[str, Path], tmp_path: Path
) -> None:
    def pipeline(erp: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _run(chat, [_question(0, images["red"])], tmp_path / "l.jsonl", pipeline=pipeline)


def test_generation_arguments_hold_only_what_has_an_effect() -> None:
    assert generation_arguments(Generation()) == {
        "max_new_tokens": 128,
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
    }
    full = generation_arguments(Generation(do_sample=True, num_beams=2, min_new_tokens=3, top_k=7))
    assert full["temperature"] == 0.6
    assert (full["top_p"], full["top_k"], full["min_new_tokens"]) == (0.95, 7, 3)
    assert full["length_penalty"] == 1.0


def test_rows_become_questions(tmp_path: Path) -> None:
    table = tmp_path / "test.csv"
    table.write_text("url,instruction,response,kind,seam\na.png,What?,red,colour,yes\n")
    plain = tmp_path / "plain.csv"
    plain.write_text("url,query,annotation\nb.png,the sea,\n")
    found = questions_of(read_tables([table, plain], check_images=False))
    groups = {"kind": "colour", "seam": "yes"}
    assert found[0] == Question(
        "0", str(tmp_path / "a.png"), "What?", reference="red", groups=groups
    )
    assert (found[1].sample_id, found[1].query, found[1].reference) == ("1", "the sea", None)
    assert '"the sea"' in found[1].text


def test_conversations_are_refused(tmp_path: Path) -> None:
    sample = Sample(tmp_path / "a.png", (("a", "b"), ("c", "d")), "t.csv:2, t.csv:3")
    with pytest.raises(DataError, match=r"t\.csv:2.*2 turns"):
        questions_of([sample])


def test_pictures_are_read_as_their_rows_declare(chat: ChatFormat, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 360, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(
        "url,instruction,response,image_layout\n"
        "a.png,what is it first,x,cubemap_row\na.png,what is it first,x,\n"
    )
    samples = read_tables([tmp_path / "t.csv"])
    seen: list[NDArray[np.uint8]] = []
    cut = ViewPipeline(_SETTINGS)

    def pipeline(erp: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(erp)
        return cut(erp)

    given = {"pipeline": pipeline, "pictures": pictures_of(samples)}
    _, answers = _run(chat, questions_of(samples), tmp_path / "ledger.jsonl", **given)
    assert not any(answer.is_error for answer in answers)
    assert answers[0].question.image == f"{tmp_path}/a.png (layout=cubemap_row)"
    assert [erp.shape for erp in seen] == [(120, 240, 3), (60, 360, 3)]
    assert np.array_equal(seen[0], read_panorama(samples[0].image))
