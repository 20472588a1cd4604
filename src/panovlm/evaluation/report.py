"""The evaluation report: one HTML file that needs nothing else, neither network nor other files.

Pictures are inside it, and a content policy forbids the page to load anything. It opens with the
verdict and the coverage of the scores, shows panoramas with the views that the model saw, and
ends with the configuration, where every field says where its value came from.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from panovlm.atomic import write_bytes
from panovlm.config.schema import ImageProcessing
from panovlm.errors import DataError
from panovlm.evaluation.answers import Answer
from panovlm.evaluation.metrics import NotComputed, Result, Score, Scores, is_correct
from panovlm.panorama.image import read_panorama
from panovlm.panorama.picture import Image as Panorama
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.views import View

PANORAMA_WIDTH = 1024
VIEW_WIDTH = 192
"""Most pixels across of the pictures in a report."""

METRIC_NOTES: Mapping[str, tuple[str, str, float]] = {
    "accuracy": ("Exact match", "case, outer white space and a final full stop aside", 1),
    "bleu4": ("BLEU-4", "sacrebleu, 13a tokens, exponential smoothing", 1),
    "meteor": ("METEOR 1.5", "reference program, English", 1),
    "rougeL": ("ROUGE-L", "rouge-score, stemmed, mean F-measure", 1),
    "spice": ("SPICE", "scene-graph overlap", 1),
    "cider": ("CIDEr", "CIDEr-D by pycocoevalcap, white-space words, 0 to 10", 10),
}
"""Label, implementation and largest value of every metric."""


GROUP_NAMES: Mapping[str, str] = {
    "kind": "Kind of question",
    "seam": "About something on the ±180° seam",
}
"""Headings of the groups that the accuracy is broken down by."""

LABEL_NAMES: Mapping[str, Mapping[str, str]] = {"seam": {"0": "no", "1": "yes"}}
"""Labels of a group that need other words for a reader."""


@dataclass(frozen=True)
class ConfigField:
    """One resolved setting.

    Attributes:
        name: Dotted name.
        value: The value, as text.
        source: Where it came from.
        assumed: Nothing said what it is: neither metadata nor weights nor the user.
    """

    name: str
    value: str
    source: str
    assumed: bool = False


@dataclass(frozen=True)
class SeenView:
    """One view as the model saw it, and where it looks."""

    picture: Image.Image
    caption: str


@dataclass(frozen=True)
class Scene:
    """One panorama of the gallery with what was asked about it.

    Attributes:
        name: Its path, or another label.
        panorama: The picture; None if it could not be read.
        views: What the model saw, in its order.
        answers: The answers about it.
    """

    name: str
    panorama: Image.Image | None
    views: Sequence[SeenView]
    answers: Sequence[Answer]


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        title: Heading, usually the experiment's name.
        created: When the evaluation ended.
        scores: Scores with their coverage.
        failures: Reasons of the failed samples, one per sample.
        scenes: The gallery.
        about: Facts to show under the verdict, e.g. checkpoint, data, device, duration.
        config: The resolved configuration.
        versions: Libraries and their versions.
    """

    title: str
    created: datetime
    scores: Scores
    failures: Sequence[str] = ()
    scenes: Sequence[Scene] = ()
    about: Mapping[str, str] = field(default_factory=dict[str, str])
    config: Sequence[ConfigField] = ()
    versions: Mapping[str, str] = field(default_factory=dict[str, str])


def gallery(
    answers: Sequence[Answer],
    settings: ImageProcessing,
    *,
    pictures: Mapping[str, Panorama] = MappingProxyType({}),
    panoramas: int = 12,
    questions: int = 8,
) -> list[Scene]:
    """Choose panoramas for a report and draw them with the views that the model saw.

    The panoramas are spread evenly over the evaluation, in its order.

    Args:
        answers: All answers of the evaluation.
        settings: How the model's views were cut.
        pictures: Images by the names that questions have for them; others are paths.
        panoramas: Most panoramas to show, at least 1.
        questions: Most questions to show of each.

    Raises:
        ConfigError: The settings cannot be worked with.
    """
    by_image: dict[str, list[Answer]] = {}
    for answer in answers:
        by_image.setdefault(answer.question.image, []).append(answer)
    names = list(by_image)
    count = min(panoramas, len(names))
    chosen = [names[index * len(names) // count] for index in range(count)]
    pipeline = ViewPipeline(settings)
    return [
        _scene(name, pictures.get(name, Path(name)), by_image[name][:questions], pipeline)
        for name in chosen
    ]


def _scene(name: str, image: Panorama, answers: Sequence[Answer], pipeline: ViewPipeline) -> Scene:
    try:
        erp = read_panorama(image, pipeline.reduction)
        pictures = pipeline.render(erp)
    except DataError:
        # The picture fails here as it did in the evaluation, where the reason was recorded.
        return Scene(name, None, (), answers)
    views = [
        SeenView(Image.fromarray(picture), _caption(view))
        for picture, view in zip(pictures, pipeline.views, strict=True)
    ]
    return Scene(name, Image.fromarray(erp), views, answers)


def _caption(view: View) -> str:
    """Say where a view looks: yaw to the right of the panorama's centre, pitch upwards."""
    if view.is_global:
        return "whole panorama"
    yaw, pitch = round(view.yaw), round(view.pitch)
    return (f"yaw {yaw:+d}°" if yaw else "yaw 0°") + (f", pitch {pitch:+d}°" if pitch else "")


@dataclass(frozen=True)
class Verdict:
    """The sentence on top of a report: a number, what it is, and whether all samples count."""

    number: str
    sentence: str
    coverage: str
    complete: bool


def verdict(scores: Scores) -> Verdict:
    """Sum up an evaluation.

    The number is the accuracy. Where no answer matches exactly, and nothing says that the questions
    have one right answer, it is the first of ROUGE-L and CIDEr that was computed.
    """
    complete = scores.total > 0 and scores.scored == scores.total
    lost = [
        f"{count} {what}"
        for count, what in (
            (scores.failed, "failed"),
            (scores.without_reference, "without reference"),
        )
        if count
    ]
    coverage = (
        f"all {scores.total} samples scored"
        if complete
        else ", ".join([f"{scores.scored} of {scores.total} samples scored", *lost])
    )
    accuracy = scores.metrics.get("accuracy")
    exact = accuracy.result if accuracy else NotComputed("not asked for")
    if isinstance(exact, Score) and (judges_answers(scores) or not _caption_score(scores)):
        sentence = "of the answers are exactly right"
        if exact.interval:
            low, high = (100 * end for end in exact.interval)
            sentence += f" (95 % interval {low:.1f} to {high:.1f} %)"
        return Verdict(f"{100 * exact.value:.1f} %", sentence, coverage, complete)
    for name in ("rougeL", "cider"):
        found = scores.metrics.get(name)
        if found and isinstance(found.result, Score):
            sentence = f"{METRIC_NOTES[name][0]}; no answer matches its reference exactly"
            return Verdict(f"{found.result.value:.3f}", sentence, coverage, complete)
    reason = exact.reason if isinstance(exact, NotComputed) else "no score was computed"
    return Verdict("No score", reason, coverage, complete)


def judges_answers(scores: Scores) -> bool:
    """Whether right and wrong mean something here.

    They do where at least one answer matches exactly, or where the table gives the kinds of its
    questions, and not all are captions.
    """
    found = scores.metrics.get("accuracy")
    matches = found is not None and isinstance(found.result, Score) and found.result.value > 0
    return matches or bool(scores.groups.get("kind"))


def write_report(path: Path, data: ReportData) -> None:
    """Write a report; the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, render_report(data).encode("utf-8"))


def render_report(data: ReportData) -> str:
    """Return the HTML text of a report. Every text in it is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files("panovlm.evaluation").joinpath("report.html.jinja").read_text("utf-8")
    shown = [answer for scene in data.scenes for answer in scene.answers]
    judged = judges_answers(data.scores)
    return environment.from_string(template).render(
        data=data,
        percent=_percent,
        jpeg=_jpeg_uri,
        is_missing=_is_missing,
        verdict=verdict(data.scores),
        notes=METRIC_NOTES,
        group_names=GROUP_NAMES,
        label_names=LABEL_NAMES,
        state=partial(_state, judged=judged),
        counts=Counter(_state(answer, judged=judged) for answer in shown),
        shown=len(shown),
        failures=Counter(data.failures).most_common(),
        assumed=[found for found in data.config if found.assumed],
        panorama_width=PANORAMA_WIDTH,
        view_width=VIEW_WIDTH,
    )


def _state(answer: Answer, *, judged: bool) -> str:
    """Return what the gallery calls an answer: failed, right, wrong or unscored."""
    if answer.is_error:
        return "failed"
    correct = is_correct(answer) if judged else None
    return "unscored" if correct is None else "right" if correct else "wrong"


def _caption_score(scores: Scores) -> bool:
    """Whether a measure of partial agreement found any."""
    found = (scores.metrics.get(name) for name in ("rougeL", "cider"))
    return any(one and isinstance(one.result, Score) and one.result.value > 0 for one in found)


def _is_missing(result: Result) -> bool:
    """Whether there is no score."""
    return isinstance(result, NotComputed)


def _percent(value: float, whole: float = 1) -> str:
    """Return a share as a CSS length."""
    return f"{100 * value / whole:.1f}%"


def _jpeg_uri(picture: Image.Image, width: int) -> Markup:
    """Encode a picture, scaled down to at most ``width`` pixels across, as a data URI."""
    small = picture.convert("RGB")
    small.thumbnail((width, 16 * width), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return Markup("data:image/jpeg;base64,") + base64.b64encode(buffer.getvalue()).decode("ascii")
