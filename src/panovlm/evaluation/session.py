"""One evaluation from a checkpoint to its result files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from panovlm.checkpoint.documents.metadata import library_versions
from panovlm.checkpoint.report.describe import rows as config_rows
from panovlm.config.image_input import PLAIN, ImageInput
from panovlm.config.legacy import translate
from panovlm.config.load import load_mapping
from panovlm.config.problems import ValidationError
from panovlm.config.schema import Generation
from panovlm.data.cache import first_rows
from panovlm.data.kept_views import KeptViews, OnDisk
from panovlm.data.samples import read_tables
from panovlm.errors import ConfigError, DataError
from panovlm.evaluation.answers import Answer
from panovlm.evaluation.ledger import Ledger, digest, digest_of_questions
from panovlm.evaluation.metrics import METRICS, Metric, Scores, score_answers
from panovlm.evaluation.outputs import OutputPaths, output_paths, write_metrics, write_predictions
from panovlm.evaluation.report import ConfigField, ReportData, gallery, write_report
from panovlm.evaluation.run import evaluate, pictures_of, questions_of
from panovlm.models.model import PanoramaVLM
from panovlm.panorama.device import DeviceViews
from panovlm.panorama.picture import Image
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.uncut import read_uncut

SHOWN = 60


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found and where it was written."""

    answers: list[Answer]
    scores: Scores
    paths: OutputPaths


class TestTables(NamedTuple):
    """What an evaluation asks about."""

    tables: list[str]
    data_dir: str
    """Base of relative image paths; empty: the table's folder."""
    image_input: ImageInput = PLAIN
    """How pictures show the sphere of which their row says nothing."""


def trained_input(model: PanoramaVLM) -> ImageInput:
    """Return how the pictures show the sphere that a checkpoint was trained on, if it says so.

    Raises:
        DataError: what it says cannot be.
    """
    resolution = model.resolution
    assert resolution is not None
    if resolution.metadata is not None:
        said = resolution.metadata.training.data.get("input")
    elif resolution.location.config is not None:
        said = (_run_config(resolution.location.config).get("data") or {}).get("input")
    else:
        said = None
    try:
        return ImageInput.model_validate(said or {})
    except ValidationError as error:
        raise DataError(f"{resolution.path}: its data.input cannot be: {error}") from error


def default_tables(model: PanoramaVLM) -> TestTables:
    """Return the test tables that a checkpoint's run names.

    The metadata of the checkpoint is asked first, then the run's ``config.yaml``.

    Raises:
        DataError: neither names one.
    """
    resolution = model.resolution
    assert resolution is not None
    if resolution.metadata is not None:
        data: Mapping[str, Any] = resolution.metadata.training.data
        base = str(data.get("data_dir", ""))
    elif resolution.location.config is not None:
        mapping = _run_config(resolution.location.config)
        data = mapping.get("data") or {}
        base = str((mapping.get("paths") or {}).get("data_dir") or "")
    else:
        data, base = {}, ""
    for key in ("csv_test", "csv_val"):
        named = data.get(key)
        if named:
            tables = [named] if isinstance(named, str) else list(named)
            return TestTables(tables, base, trained_input(model))
    raise DataError(
        f"nothing says what {resolution.path} shall be evaluated on; name a table with --csv-input."
    )


def _run_config(file: Path) -> Mapping[str, Any]:
    """Return a run's ``config.yaml`` under today's names."""
    return translate(load_mapping(file)[0]).mapping


def run_evaluation(
    model: PanoramaVLM,
    *,
    tables: Sequence[str],
    data_dir: str,
    image_input: ImageInput = PLAIN,
    generation: Generation,
    folder: Path,
    prefix: str,
    batch_size: int = 8,
    max_samples: int | None = None,
    fresh: bool = False,
    progress: bool = True,
    cache_views: OnDisk | None = None,
    views_on: Literal["loader", "device"] = "loader",
    metrics: Mapping[str, Metric] = METRICS,
) -> Evaluation:
    """Ask a loaded model every question of some tables, score the answers, write the results.

    Answers are written as they come; an evaluation that was interrupted goes on where it stopped.

    Args:
        model: loaded by ``from_checkpoint``.
        tables: tables of questions.
        data_dir: base of relative image paths; empty: the table's folder.
        image_input: how pictures show the sphere of which their row says nothing.
        generation: how answers are generated.
        folder: where results go.
        prefix: beginning of their names.
        batch_size: questions per batch.
        max_samples: ask only the first so many.
        fresh: throw away answers of an interrupted evaluation.
        progress: show a bar.
        cache_views: where views are kept; absent: nowhere.
        views_on: what cuts the perspective views, to the same bits: the thread that loads, or the
            model's device.
        metrics: what to compute.

    Raises:
        ConfigError: the model has no tokenizer, or the views cannot be kept, or not be cut on the
            device.
        DataError: a table cannot be read, not one question could be asked, the results cannot be
            written, or an unfinished evaluation belongs to another model.
    """
    resolution = model.resolution
    assert resolution is not None
    samples = read_tables(tables, data_dir=data_dir, check_images=False, image_input=image_input)[
        :max_samples
    ]
    questions, pictures = questions_of(samples), pictures_of(samples)
    identity = {
        "checkpoint": _file_identity(resolution.path),
        "recipe": digest(model.config.typed_recipe().model_dump(mode="json")),
        "rows": digest_of_questions(questions),
        "generation": digest(generation.model_dump(mode="json")),
    }
    started = datetime.now()
    pipeline = ViewPipeline(model.recipe.image_processing)
    load, device_views = pipeline.load, None
    if views_on == "device":
        if cache_views is not None:
            raise ConfigError(
                "views that are kept on disk are cut as they are loaded, so that views_on device "
                "has nothing to cut: use one of the two."
            )
        load, device_views = partial(read_uncut, pipeline=pipeline), DeviceViews(pipeline)
    elif cache_views is not None:
        kept = KeptViews(cache_views.folder, pipeline)
        kept.require_room(len(first_rows(samples)), cache_views.limit)
        load = kept.load
    chat = model.chat()
    made = _make_folder(folder)
    unfinished = folder / f".{prefix}_unfinished.jsonl"
    with Ledger(unfinished, identity, fresh=fresh) as ledger:
        answers = evaluate(
            model,
            questions,
            load,
            chat,
            generation,
            batch_size=batch_size,
            ledger=ledger,
            pictures=pictures,
            progress=progress,
            device_views=device_views,
        )
    if all(answer.is_error for answer in answers):
        unfinished.unlink()
        for empty in made:
            empty.rmdir()
        raise DataError(
            f"none of the {len(answers)} questions of {', '.join(tables)} could be asked; the "
            f"first one: {answers[0].reason}. Correct the table, or name the base of its image "
            "paths with --data-dir."
        )
    scores = score_answers(answers, metrics)
    paths = output_paths(folder, prefix, started)
    write_predictions(paths.predictions, answers)
    write_metrics(paths.metrics, scores.as_json(), answers)
    about = {
        "checkpoint": str(resolution.path),
        "tables": ", ".join(str(table) for table in tables),
        "device": str(model.device),
        "duration": f"{(datetime.now() - started).total_seconds():.0f} s",
    }
    write_report(paths.report, _report(model, answers, scores, prefix, about, pictures))
    unfinished.unlink()
    return Evaluation(answers, scores, paths)


def _make_folder(folder: Path) -> list[Path]:
    """Make the folder of the results before anything is computed.

    Returns:
        The folders that were not there before, innermost first.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the results cannot be written to {folder}: {error.strerror}; choose another folder "
            "with --output-dir."
        ) from error
    return missing


def _report(
    model: PanoramaVLM,
    answers: Sequence[Answer],
    scores: Scores,
    title: str,
    about: Mapping[str, str],
    pictures: Mapping[str, Image],
) -> ReportData:
    """Put together what the HTML report shows."""
    resolution = model.resolution
    assert resolution is not None
    return ReportData(
        title=title,
        created=datetime.now(),
        scores=scores,
        failures=[answer.reason for answer in answers if answer.reason is not None],
        scenes=gallery(answers, model.recipe.image_processing, pictures=pictures),
        about=about,
        config=[
            ConfigField(row.field, _short(row.value), row.source, row.assumed)
            for row in config_rows(resolution)
        ],
        versions=library_versions(),
    )


def _file_identity(path: Path) -> str:
    """Identify a checkpoint without reading all of it: sizes, times and first megabyte."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    with files[0].open("rb") as file:
        head = file.read(1 << 20)
    return digest([[[s.st_size, s.st_mtime_ns] for s in stats], head.hex()])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
