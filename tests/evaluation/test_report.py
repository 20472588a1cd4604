from __future__ import annotations

import base64
import io
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from panovlm.config.schema import ImageProcessing
from panovlm.evaluation.answers import Answer, Question
from panovlm.evaluation.metrics import NotComputed, Scores, accuracy, rouge_l, score_answers
from panovlm.evaluation.report import (
    PANORAMA_WIDTH,
    VIEW_WIDTH,
    ConfigField,
    ReportData,
    Scene,
    SeenView,
    gallery,
    render_report,
    verdict,
    write_report,
)

_VOID = {"meta", "link", "img", "br"}
_EVIL = "</script><script>alert('x')</script><img src=http://example.org/x.png>"


class _Page(HTMLParser):
    """Collects a page's elements and text, and checks that its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += f"{data} "

    def of_class(self, tag: str, name: str) -> list[dict[str, str | None]]:
        return [
            found
            for kind, found in self.elements
            if kind == tag and name in (found.get("class") or "").split()
        ]


def _question(number: int, reference: str | None, kind: str = "colour") -> Question:
    return Question(str(number), "a.png", f"Q{number}?", reference=reference, groups={"kind": kind})


_ANSWERS = [
    Answer.generated(_question(0, "red"), "Red."),
    Answer.generated(_question(1, "blue"), "green"),
    Answer.failed(_question(2, "two", "count"), "a.png cannot be read"),
    Answer.generated(_question(3, None), "yellow"),
]


def _no_java(predictions: object, references: object) -> NotComputed:
    return NotComputed("no Java found")


def _scores(answers: list[Answer]) -> Scores:
    return score_answers(answers, {"accuracy": accuracy, "rougeL": rouge_l, "meteor": _no_java})


def _report(**changes: object) -> ReportData:
    wide = Image.new("RGB", (3000, 1500), (200, 30, 30))
    values = {
        "title": "Tiny",
        "created": datetime(2026, 3, 4, 5, 6),
        "scores": _scores(_ANSWERS),
        "failures": ["a.png cannot be read"],
        "scenes": [Scene("a.png", wide, [SeenView(wide, "yaw +45°")], _ANSWERS)],
        "about": {"Checkpoint": "last.ckpt"},
        "config": [
            ConfigField("models.overlap_ratio", "0.5", "metadata"),
            ConfigField("models.norm_first", "true", "default", assumed=True),
        ],
        "versions": {"torch": "2.13"},
    }
    return ReportData(**{**values, **changes})  # pyright: ignore


def test_page_loads_nothing_from_outside() -> None:
    text = render_report(_report())
    page = _Page(text)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert "url(" not in text
    assert "@import" not in text
    policy = [found for tag, found in page.elements if found.get("http-equiv")]
    assert "default-src 'none'" in (policy[0]["content"] or "")


def test_every_text_is_escaped() -> None:
    question = Question(_EVIL, _EVIL, _EVIL, reference=_EVIL, groups={"kind": _EVIL, _EVIL: "x"})
    answers = [Answer.generated(question, _EVIL), Answer.failed(question, _EVIL)]
    picture = Image.new("RGB", (200, 100))
    evil = _report(
        title=_EVIL,
        scores=_scores(answers),
        failures=[_EVIL],
        scenes=[Scene(_EVIL, picture, [SeenView(picture, _EVIL)], answers)],
        about={_EVIL: _EVIL},
        config=[ConfigField(_EVIL, _EVIL, _EVIL)],
        versions={_EVIL: _EVIL},
    )
    page = _Page(render_report(evil))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1
    assert tags.count("img") == 2
    assert page.text.count("alert('x')") >= 14


def test_verdict_scores_and_coverage_are_shown() -> None:
    text = _Page(render_report(_report())).text
    assert "50.0 %" in text
    assert "2 of 4 samples scored, 1 failed, 1 without reference" in text
    assert "2 of 4 scored" in text
    assert "not computed: no Java found" in text
    assert "1 sample failed and is in no score." in text
    assert "a.png cannot be read" in text
    assert "last.ckpt" in text
    assert "torch 2.13" in text


def test_answers_are_marked_and_counted_for_the_filters() -> None:
    page = _Page(render_report(_report()))
    for state in ("right", "wrong", "failed", "unscored"):
        assert len(page.of_class("div", state)) == 1
    buttons = [found for tag, found in page.elements if tag == "button"]
    assert [found["data-show"] for found in buttons] == ["all", "right", "wrong", "failed"]
    assert "All 4 Right 1 Wrong 1 Failed 1" in page.text
    alone = _Page(render_report(_report(scenes=[Scene("a.png", None, (), _ANSWERS[:1])])))
    disabled = [found["data-show"] for tag, found in alone.elements if "disabled" in found]
    assert disabled == ["wrong", "failed"]


def test_pictures_are_small_jpegs_inside_the_page() -> None:
    page = _Page(render_report(_report()))
    sizes = []
    for found in (found for tag, found in page.elements if tag == "img"):
        kind, data = (found["src"] or "").split(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            sizes.append(picture.size)
            red, green, blue = picture.convert("RGB").getpixel((5, 5))  # pyright: ignore
            assert abs(red - 200) + abs(green - 30) + abs(blue - 30) < 12
    assert sizes == [(PANORAMA_WIDTH, PANORAMA_WIDTH // 2), (VIEW_WIDTH, VIEW_WIDTH // 2)]


def test_assumed_settings_stand_out() -> None:
    page = _Page(render_report(_report()))
    assert len(page.of_class("tr", "assumed")) == 1
    assert "1 of 2 settings are assumed." in page.text
    sure = _Page(render_report(_report(config=[ConfigField("a", "1", "metadata")])))
    assert not sure.of_class("tr", "assumed")
    assert "assumed" not in sure.text


def test_an_empty_evaluation_has_a_page_too() -> None:
    page = _Page(render_report(ReportData("Nothing", datetime(2026, 1, 1), score_answers([], {}))))
    assert "No score" in page.text
    assert "0 of 0 samples scored" in page.text


def _captions(count: int) -> list[Answer]:
    """Descriptions of a table that does not say that they are some."""
    questions = (
        Question(str(n), "a.png", "Q?", reference=f"a red ball {n} here") for n in range(count)
    )
    return [Answer.generated(question, "the red ball") for question in questions]


def test_verdict() -> None:
    found = verdict(_scores(_ANSWERS[:2]))
    assert (found.number, found.complete) == ("50.0 %", True)
    assert found.sentence == "of the answers are exactly right (95 % interval 9.5 to 90.5 %)"
    assert found.coverage == "all 2 samples scored"
    found = verdict(_scores(_captions(3)))
    assert found.number == "0.500"
    assert found.sentence == "ROUGE-L; no answer matches its reference exactly"
    found = verdict(_scores([Answer.generated(_question(0, "red"), "blue")]))
    assert found.number == "0.0 %"
    found = verdict(_scores([_ANSWERS[2]]))
    assert (found.number, found.sentence) == ("No score", "every sample failed")
    assert found.coverage == "0 of 1 samples scored, 1 failed"
    assert not found.complete


def test_captions_are_not_called_wrong() -> None:
    answers = _captions(2)
    page = _Page(
        render_report(_report(scores=_scores(answers), scenes=[Scene("a", None, (), answers)]))
    )
    assert len(page.of_class("div", "unscored")) == 2
    assert not page.of_class("div", "wrong")


def test_answers_are_judged_by_the_kind_of_their_question() -> None:
    closed = Question("0", "a", "Q?", reference="red ball", groups={"kind": "what", "seam": "1"})
    caption = Question("1", "a", "Q?", reference="a red ball", groups={"kind": "caption"})
    answers = [Answer.generated(question, "ball") for question in (closed, caption)]
    scores = _scores(answers)
    assert verdict(scores).number == "0.0 %"  # though ROUGE-L is not zero
    page = _Page(render_report(_report(scores=scores, scenes=[Scene("a", None, (), answers)])))
    assert len(page.of_class("div", "wrong")) == 1
    assert len(page.of_class("div", "unscored")) == 1
    assert "±180° seam yes 0.0 %" in page.text


def test_gallery_spreads_over_the_evaluation_and_shows_the_views(tmp_path: Path) -> None:
    answers = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        if number != 4:
            Image.new("RGB", (200, 100), (40 * number, 0, 0)).save(path)
        for turn in range(3):
            question = Question(f"{number}-{turn}", str(path), "What?")
            answers.append(Answer.generated(question, "red"))
    settings = ImageProcessing(crop_strategy="cubemap", image_size=(32, 32))
    scenes = gallery(answers, settings, panoramas=3, questions=2)
    assert [Path(scene.name).stem for scene in scenes] == ["0", "2", "4"]
    assert [len(scene.answers) for scene in scenes] == [2, 2, 2]
    assert scenes[1].panorama is not None
    assert [view.caption for view in scenes[1].views] == [
        "yaw 0°",
        "yaw +90°",
        "yaw +180°",
        "yaw -90°",
    ]
    assert {view.picture.getpixel((16, 16)) for view in scenes[1].views} == {(80, 0, 0)}
    assert (scenes[2].panorama, scenes[2].views) == (None, ())
    assert len(gallery(answers, settings)) == 6
    assert gallery([], settings) == []


def test_report_is_written_as_utf8(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, _report(title="Größe 한국어"))
    assert "Größe 한국어" in _Page(path.read_text("utf-8")).text


@pytest.mark.parametrize("views", [1, 3])
def test_views_keep_their_order(views: int) -> None:
    picture = Image.new("RGB", (64, 64))
    shown = [SeenView(picture, f"caption {n}") for n in range(views)]
    text = _Page(render_report(_report(scenes=[Scene("a", picture, shown, [])]))).text
    places = [text.index(f"caption {n}") for n in range(views)]
    assert places == sorted(places)
