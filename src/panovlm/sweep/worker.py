"""One cell in a process of its own: ``python -m panovlm.sweep.worker FOLDER``.

The folder holds the cell's ``settings.json``; ``outcome.json`` is written into it. Training and
evaluation go the way of ``panovlm train`` and ``panovlm eval``: what is evaluated is loaded from
the checkpoint, with proof and probe.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from panovlm.atomic import write_json
from panovlm.cli.quiet import quiet, quiet_trainer
from panovlm.config.load import dump_yaml
from panovlm.config.schema import Settings
from panovlm.config.validation import validate
from panovlm.data.synthetic import write_scenes
from panovlm.errors import DataError, PanoVLMError
from panovlm.evaluation.answers import Answer
from panovlm.evaluation.ledger import digest_of_questions
from panovlm.evaluation.metrics import Score, Scores, accuracy, is_correct, normalise
from panovlm.sweep.store import Outcome, Result

SETTINGS = "settings.json"
OUTCOME = "outcome.json"


def main(folder: Path) -> None:
    """Train and evaluate the cell of a folder, and write down how it ended.

    Where several processes train, each of them runs this, and the first one alone goes on.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    quiet()
    settings = validate(Settings, json.loads((folder / SETTINGS).read_bytes()))
    try:
        outcome = Outcome(status="finished", result=run_cell(settings))
    except (PanoVLMError, OSError) as error:
        outcome = Outcome(status="failed", message=str(error))
    from panovlm.training.run import leads

    if leads():
        write_json(folder / OUTCOME, outcome.model_dump(mode="json"))


def run_cell(settings: Settings) -> Result:
    """Train an experiment, and evaluate its last checkpoint on its test tables.

    Raises:
        PanoVLMError: it cannot be trained, or not be evaluated.
    """
    from panovlm.evaluation.session import default_tables, run_evaluation
    from panovlm.models.model import PanoramaVLM
    from panovlm.training.dry_run import plan
    from panovlm.training.run import leads, train

    quiet_trainer()
    if settings.data.synthetic is not None:
        write_scenes(settings.data.synthetic)  # not a part of the time that training takes
    text = dump_yaml(settings.model_dump(mode="json")).encode()
    begun, cpu_before = time.monotonic(), _cpu_seconds()
    run_folder = train(settings, config_text=text)
    if not leads():
        raise SystemExit
    trained, cpu_after = time.monotonic(), _cpu_seconds()
    accelerated = settings.environment.accelerator != "cpu"
    model = PanoramaVLM.from_checkpoint(run_folder, device="auto" if accelerated else "cpu")
    asked = default_tables(model)
    found = run_evaluation(
        model,
        tables=asked.tables,
        data_dir=asked.data_dir,
        image_input=asked.image_input,
        generation=model.recipe.generation,
        folder=Path(settings.paths.eval_dir),
        prefix="cell",
        batch_size=settings.training.eval_batch_size,
        progress=False,
        views_on=settings.training.views_on,
        metrics={"accuracy": accuracy},
    )
    evaluated = time.monotonic()
    planned = plan(settings, ())
    return Result(
        **_judged(found.answers, found.scores),
        views=planned.views,
        vision_tokens=planned.vision_tokens,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        train_seconds=trained - begun,
        train_cpu_seconds=cpu_after - cpu_before,
        eval_seconds=evaluated - trained,
    )


def _judged(answers: Sequence[Answer], scores: Scores) -> dict[str, Any]:
    """Return what was right, question by question and in all.

    Raises:
        DataError: a question could not be asked, or there is none with a right answer.
    """
    failed = next((answer for answer in answers if answer.is_error), None)
    if failed is not None:
        raise DataError(f"question {failed.question.sample_id} could not be asked: {failed.reason}")
    judged = [(answer, right) for answer in answers if (right := is_correct(answer)) is not None]
    share = scores.metrics["accuracy"].result
    if not judged or not isinstance(share, Score) or share.interval is None:
        raise DataError("the test tables hold no question that has one right answer.")
    questions = [answer.question for answer, _ in judged]
    numbers = {image: n for n, image in enumerate(dict.fromkeys(q.image for q in questions))}
    expected = Counter(normalise(question.reference or "") for question in questions)
    return {
        "accuracy": share.value,
        "interval": share.interval,
        "groups": scores.as_json()["accuracy_by"],
        "correct": "".join(str(int(right)) for _, right in judged),
        "panoramas": tuple(numbers[question.image] for question in questions),
        "questions": digest_of_questions(questions),
        "most_frequent": expected.most_common(1)[0][1] / len(questions),
    }


def _cpu_seconds() -> float:
    """Return the processor time of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _end_with_parent() -> None:
    """Leave when the sweep does, however it ended: its end of the pipe is closed then."""
    # Not through sys.stdin, whose lock would be missed when the interpreter shuts down.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
