"""The story that ``panovlm demo`` tells, step by step."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console
from rich.table import Table

from panovlm.checkpoint.find.locate import CONFIG, SIDECAR, TOKENIZER, locate
from panovlm.checkpoint.loading.load import build_empty
from panovlm.checkpoint.repair.metadata import add_metadata
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import strip_metadata
from panovlm.config.load import load_settings
from panovlm.config.schema import RESAMPLER_CONFIGS, Settings
from panovlm.data.samples import read_tables
from panovlm.data.synthetic import write_scenes
from panovlm.errors import PanoVLMError
from panovlm.evaluation.session import Evaluation, run_evaluation
from panovlm.models.model import PanoramaVLM
from panovlm.training.run import train
from panovlm.training.rundir import BEST


@dataclass(frozen=True)
class Step:
    """One evaluation of the story."""

    name: str
    known: str
    result: Evaluation


def tell(folder: Path, overrides: Sequence[str]) -> int:
    """Tell the story in ``folder``.

    Args:
        folder: everything is written below it; earlier results there are kept.
        overrides: settings laid over the embedded experiment.

    Returns:
        0 if all three evaluations gave the same predictions, else 1.

    Raises:
        PanoVLMError: a step failed.
    """
    console = Console()
    begun = time.monotonic()
    with as_file(files("panovlm.demo") / "tiny.yaml") as config:
        settings = load_settings(config, [*_places(folder), *overrides])
        _heading(console, "1", "write ray-cast scenes, train three stages on them")
        if settings.data.synthetic is not None:
            with console.status("writing scenes"):
                write_scenes(settings.data.synthetic)
        written = time.monotonic()
        run_folder = train(settings, config_file=config, console=console)
    trained = time.monotonic() - written
    steps: list[Step] = []
    _heading(console, "2", "evaluate from the checkpoint directory alone")
    steps.append(_evaluate("with metadata", run_folder, settings, folder, console))
    _heading(console, "3", "lose every description, evaluate from the shapes of the weights")
    bare = _lose_metadata(run_folder, folder / "without-metadata")
    steps.append(_evaluate("without metadata", bare, settings, folder, console))
    _heading(console, "4", "what defaults alone would have built")
    _defaults_fail(bare, console)
    _heading(console, "5", "repair with add-metadata, evaluate again")
    repair = add_metadata(bare)
    console.print(f"written: {repair.path}", highlight=False)
    steps.append(_evaluate("after repair", bare, settings, folder, console))
    return _summary(console, steps, settings, trained, time.monotonic() - begun)


def _places(folder: Path) -> list[str]:
    """Return the overrides that put everything below one folder."""
    scenes = folder / "scenes"
    alike, train = json.dumps(str(scenes / "alike.csv")), json.dumps(str(scenes / "train.csv"))
    stages = "training.stage_configs"
    return [
        f"{stages}.vision.data.csv_train={alike}",
        f"{stages}.resampler.data.csv_train=[{alike}, {train}]",
        f"data.synthetic.root={scenes}",
        f"data.csv_train={scenes / 'train.csv'}",
        f"data.csv_val={scenes / 'val.csv'}",
        f"data.csv_test={scenes / 'test.csv'}",
        f"paths.runs_dir={folder / 'runs'}",
        f"paths.eval_dir={folder / 'results'}",
    ]


def _evaluate(
    name: str, checkpoint: Path, settings: Settings, folder: Path, console: Console
) -> Step:
    """Evaluate a checkpoint directory on the unseen scenes."""
    model = PanoramaVLM.from_checkpoint(checkpoint)
    resolution = model.resolution
    assert resolution is not None
    kinds = [source.kind for source in resolution.sources.values()]
    known = (
        f"{kinds.count('metadata')} metadata, {kinds.count('weights')} weights, "
        f"{len(resolution.assumed)} assumed"
    )
    console.print(f"settings known from: {known}", highlight=False)
    result = run_evaluation(
        model,
        tables=settings.data.csv_test,
        data_dir="",
        generation=settings.generation,
        folder=folder / "results" / name.replace(" ", "-"),
        prefix="demo",
        batch_size=settings.training.eval_batch_size,
        fresh=True,
        progress=console.is_terminal,
    )
    console.print(f"accuracy: {result.scores.metrics['accuracy'].text}", highlight=False)
    return Step(name, known, result)


def _lose_metadata(run_folder: Path, target: Path) -> Path:
    """Copy a checkpoint without anything that describes it; only the tokenizer's files stay."""
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    strip_metadata(locate(run_folder).checkpoint, target / BEST)
    shutil.copytree(run_folder / TOKENIZER, target / TOKENIZER)
    assert not (target / SIDECAR).exists() and not (target / CONFIG).exists()
    return target


def _defaults_fail(bare: Path, console: Console) -> None:
    """Build the model from the preset instead of the weights, and show what comes of it."""
    resolution = resolve(bare)
    preset = RESAMPLER_CONFIGS[resolution.config.models.resampler_type]
    models = resolution.config.models.model_copy(update={"resampler_config": preset})
    model = build_empty(resolution.config.model_copy(update={"models": models.model_dump()}))
    stored = resolution.shapes
    for name, tensor in model.state_dict().items():
        if name in stored and tuple(tensor.shape) != stored[name]:
            console.print(
                f"size mismatch for {name}: {list(stored[name])} in the checkpoint, "
                f"{list(tensor.shape)} in the model that the defaults describe",
                style="red",
                highlight=False,
            )
            return
    raise PanoVLMError("the demonstration's resampler has the preset's sizes; change one of them.")


def _summary(
    console: Console, steps: Sequence[Step], settings: Settings, trained: float, total: float
) -> int:
    """Print the table at the end."""
    first = steps[0].result.paths.predictions.read_bytes()
    table = Table(title="three evaluations of one model", title_justify="left")
    for heading in ("evaluation", "settings known from", "accuracy", "predictions"):
        table.add_column(heading)
    identical = True
    for step in steps:
        same = step.result.paths.predictions.read_bytes() == first
        identical = identical and same
        accuracy = step.result.scores.metrics["accuracy"].text
        table.add_row(step.name, step.known, accuracy, "identical" if same else "DIFFERENT")
    console.print(table)
    answer, share = _most_frequent_answer(settings)
    for group, labels in steps[0].result.scores.groups.items():
        for label, measurement in labels.items():
            console.print(f"  {group} {label}: {measurement.text}", highlight=False)
    console.print(
        f"  always answering {answer!r}, the most frequent answer: {share:.3f}", highlight=False
    )
    console.print(
        f"\ntraining {trained:.0f} s, everything {total:.0f} s. Look at "
        f"{steps[0].result.paths.report}",
        highlight=False,
    )
    return 0 if identical else 1


def _most_frequent_answer(settings: Settings) -> tuple[str, float]:
    """Return the most frequent answer of the unseen scenes and its share: what chance is."""
    answers = Counter(
        sample.turns[-1][1] for sample in read_tables(settings.data.csv_test, check_images=False)
    )
    answer, count = answers.most_common(1)[0]
    return answer, count / answers.total()


def _heading(console: Console, number: str, text: str) -> None:
    console.rule(f"[bold]{number}. {text}", align="left")
