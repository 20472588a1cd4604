"""``panovlm eval``: generate answers with a checkpoint and score them."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from panovlm.checkpoint.find.locate import locate
from panovlm.checkpoint.report.describe import remarks
from panovlm.cli.options import (
    add_attention_option,
    add_device_options,
    add_input_option,
    add_loading_options,
    add_probe_option,
    device,
    dtype,
    image_input,
    overrides,
    positive,
)
from panovlm.cli.quiet import quiet
from panovlm.errors import ConfigError

if TYPE_CHECKING:
    from panovlm.config.schema import Settings
    from panovlm.data.kept_views import OnDisk
    from panovlm.evaluation.metrics import Scores
    from panovlm.evaluation.session import TestTables
    from panovlm.models.model import PanoramaVLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--checkpoint-dir", type=Path, help="run folder of one stage")
    parser.add_argument("--checkpoint", "--ckpt", type=Path, help="file; wins over the folder")
    parser.add_argument("-c", "--config", type=Path, help="experiment file: tables and generation")
    parser.add_argument(
        "--csv-input", action="append", default=[], help="table of questions (repeatable)"
    )
    parser.add_argument("--data-dir", default="", help="base of relative image paths")
    add_input_option(parser)
    parser.add_argument("--output-dir", type=Path, help="where the results go")
    parser.add_argument(
        "--view-cache",
        type=Path,
        help="folder in which views are kept for the next evaluation (with --config: "
        "paths.cache_dir where training.cache_views is disk)",
    )
    parser.add_argument(
        "--views-on",
        choices=["loader", "device"],
        help="what cuts perspective views (default loader; with --config: training.views_on)",
    )
    parser.add_argument("--max-samples", type=positive, help="ask only the first so many questions")
    parser.add_argument("--batch-size", type=positive, help="questions per batch (default 8)")
    parser.add_argument("--max-new-tokens", type=positive, help="longest answer, in tokens")
    parser.add_argument(
        "--fresh", action="store_true", help="throw away the answers of an unfinished evaluation"
    )
    parser.add_argument(
        "--metrics-only",
        action="store_true",
        help="score the predictions that --csv-input holds, without a model",
    )
    parser.add_argument("--log-samples", action="store_true", help="print answers as well")
    parser.add_argument("--log-interval", type=positive, default=1, help="print every nth answer")
    parser.add_argument("--log-max-samples", type=positive, default=50, help="how many to print")
    add_loading_options(parser)
    add_device_options(parser)
    add_probe_option(parser)
    add_attention_option(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate, and print the scores."""
    from panovlm.data.tables import is_text
    from panovlm.evaluation.outputs import has_predictions

    tables = [Path(table) for table in options.csv_input]
    if options.metrics_only or (
        len(tables) == 1
        and tables[0].is_file()
        and is_text(tables[0])
        and has_predictions(tables[0])
    ):
        return _score_only(options, tables)
    path = options.checkpoint or options.checkpoint_dir
    if path is None:
        raise ConfigError("eval needs --checkpoint-dir DIR or --checkpoint FILE.")
    return _evaluate(options, path)


def _evaluate(options: argparse.Namespace, path: Path) -> int:
    """Load the model, ask, score."""
    settings = _settings(options)
    locate(path)  # a wrong name is told at once, before torch is imported
    quiet()
    from panovlm.evaluation.session import run_evaluation
    from panovlm.models.attention import use_attention
    from panovlm.models.model import PanoramaVLM

    model = PanoramaVLM.from_checkpoint(
        path,
        device=device(options.device),
        dtype=dtype(options.dtype),
        prefer=options.prefer,
        strict=options.strict,
        overrides=overrides(options.set),
        weights=options.weights,
        probe=options.probe,
    )
    use_attention(model, options.attn_implementation)
    resolution = model.resolution
    assert resolution is not None
    print(f"checkpoint: {resolution.path} ({resolution.location.why})")
    for line in remarks(resolution):
        print(line)
    asked = _tables(options, settings, model)
    generation = settings.generation if settings else model.recipe.generation
    if options.max_new_tokens is not None:
        generation = generation.model_copy(update={"max_new_tokens": options.max_new_tokens})
    result = run_evaluation(
        model,
        tables=asked.tables,
        data_dir=asked.data_dir,
        image_input=asked.image_input,
        generation=generation,
        folder=_folder(options, settings, model),
        prefix=_prefix(settings, model),
        batch_size=_batch_size(options, settings),
        max_samples=options.max_samples,
        fresh=options.fresh,
        cache_views=view_cache(options, settings),
        views_on=views_on(options, settings),
    )
    if options.log_samples:
        for answer in result.answers[:: options.log_interval][: options.log_max_samples]:
            said = answer.prediction if answer.reason is None else f"FAILED: {answer.reason}"
            print(f"[{answer.question.sample_id}] {answer.question.query} -> {said}")
    _print_scores(result.scores)
    for file in (result.paths.predictions, result.paths.metrics, result.paths.report):
        print(file)
    return 0


def _score_only(options: argparse.Namespace, tables: list[Path]) -> int:
    """Score predictions that were made before."""
    from panovlm.evaluation.metrics import score_answers
    from panovlm.evaluation.outputs import output_paths, read_predictions, write_metrics

    if len(tables) != 1:
        raise ConfigError("--metrics-only needs exactly one --csv-input with predictions.")
    answers = read_predictions(tables[0])
    scores = score_answers(answers)
    _print_scores(scores)
    folder = options.output_dir or tables[0].parent
    paths = output_paths(folder, tables[0].stem, datetime.now())
    write_metrics(paths.metrics, scores.as_json(), answers)
    print(paths.metrics)
    return 0


def _settings(options: argparse.Namespace) -> Settings | None:
    from panovlm.config.load import load_settings

    return load_settings(options.config) if options.config is not None else None


def _tables(
    options: argparse.Namespace, settings: Settings | None, model: PanoramaVLM
) -> TestTables:
    """Return the tables that the command line, the experiment file or the checkpoint's run names.

    Raises:
        ConfigError: nobody says how the pictures of these tables show the sphere, and those of
            training did it in a way of their own.
    """
    from panovlm.config.image_input import PLAIN
    from panovlm.evaluation.session import TestTables, default_tables, trained_input

    said = image_input(options)
    if settings is not None and said is None:
        said = settings.data.input
    if options.csv_input:
        trained = trained_input(model)
        if said is None and not trained.is_plain:
            raise ConfigError(
                f"the checkpoint was trained on pictures with {trained}; say of those of "
                "--csv-input what they are: --input layout=erp for whole panoramas, or --input "
                + " --input ".join(str(trained).split())
            )
        return TestTables(options.csv_input, options.data_dir, said or PLAIN)
    if settings is not None and (settings.data.csv_test or settings.data.csv_val):
        named = list(settings.data.csv_test or settings.data.csv_val)
        return TestTables(named, settings.paths.data_dir, said or PLAIN)
    found = default_tables(model)
    return found if said is None else found._replace(image_input=said)


def _folder(options: argparse.Namespace, settings: Settings | None, model: Any) -> Path:
    from panovlm.config.schema import Paths

    if options.output_dir is not None:
        return options.output_dir
    base = settings.paths.eval_dir if settings else Paths().eval_dir
    return Path(base) / _prefix(settings, model)


def view_cache(options: argparse.Namespace, settings: Settings | None) -> OnDisk | None:
    """Return where views are kept, if they are to be."""
    from panovlm.config.schema import Training
    from panovlm.data.kept_views import OnDisk, on_disk

    if options.view_cache is None:
        return on_disk(settings) if settings else None
    default: float = Training.model_fields["cache_limit"].default
    return OnDisk(options.view_cache, settings.training.cache_limit if settings else default)


def views_on(options: argparse.Namespace, settings: Settings | None) -> Literal["loader", "device"]:
    """Return what cuts the views."""
    if options.views_on is not None:
        return options.views_on
    return settings.training.views_on if settings else "loader"


def _prefix(settings: Settings | None, model: Any) -> str:
    """Return the beginning of the result files' names."""
    if settings is not None and settings.training.prefix:
        return settings.training.prefix
    metadata = model.resolution.metadata
    return (metadata.experiment_name if metadata else "") or "model"


def _batch_size(options: argparse.Namespace, settings: Settings | None) -> int:
    if options.batch_size is not None:
        return options.batch_size
    return settings.training.eval_batch_size if settings else 8


def _print_scores(scores: Scores) -> None:
    """Print every score with what it rests on."""
    print(
        f"{scores.scored} of {scores.total} samples scored, {scores.failed} failed, "
        f"{scores.empty} empty answers"
    )
    for name, measurement in scores.metrics.items():
        print(f"  {name:<10} {measurement.text}")
    for group, labels in scores.groups.items():
        for label, measurement in labels.items():
            print(f"  accuracy where {group} is {label}: {measurement.text}")
