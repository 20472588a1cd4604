"""Four questions per panorama in a training step: packed in one sequence, compiled, or one by one.

    python benchmarks/training_step.py [--runs 5] [--json step.json] [--update docs/performance.md]

A small model learns from nine views of 64 pixels: forwards and with gradients of all that stage
finetune trains, tower frozen. One by one, the panorama's views are computed for every question.
Compiled: with environment.compile, whose compiler takes its time before anything is timed.
Loss and gradients must be equal before anything is timed.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from statistics import median
from typing import TypeAlias

import torch
from machine import spread
from small_model import LANGUAGE, TOWER, small_model
from table import options, publish, take_turns
from torch import Tensor

from panovlm.data.packing import pack
from panovlm.models.compilation import compile_layers
from panovlm.models.model import PanoramaVLM

Gradients: TypeAlias = dict[str, Tensor]
Step: TypeAlias = Callable[[], tuple[float, Gradients]]
TURNS = (
    ("what is left of the red ball ?", "the red house"),
    ("what is left of the house", "ball"),
    ("is what left", "what is left of the ball ?"),
    ("is the ball red ?", "the ball is red"),
)
EXACT = 1e-5
"""Of the loss; gradients, relative to the largest of them, may differ by ten times that."""


def small() -> PanoramaVLM:
    """Return the model; its tower is frozen."""
    tower = {**TOWER, "image_size": 64}
    model = small_model(vision_config=tower, language_config={**LANGUAGE, "num_hidden_layers": 4})
    model.vision_backbone.requires_grad_(False)
    return model


def steps(model: PanoramaVLM, views: Tensor) -> dict[str, Step]:
    """Return both ways; each takes the gradients of one step and returns them with its loss."""
    chat = model.chat()
    examples = [chat.training_example([turn], None) for turn in TURNS]
    packed = pack(examples, chat)
    counted = [sum(label != -100 for label in labels[1:]) for _, labels in examples]

    def gradients() -> Gradients:
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    def together() -> tuple[float, Gradients]:
        model.zero_grad()
        rows = (torch.tensor([part]) for part in packed)
        ids, labels, segments = rows
        loss = model(views, ids, labels=labels, segments=segments).loss
        loss.backward()
        return float(loss.detach()), gradients()

    def single() -> tuple[float, Gradients]:
        model.zero_grad()
        total = 0.0
        for (ids, labels), count in zip(examples, counted, strict=True):
            loss = model(views, torch.tensor([ids]), labels=torch.tensor([labels])).loss
            (loss * count / sum(counted)).backward()
            total += float(loss.detach()) * count / sum(counted)
        return total, gradients()

    return {"packed": together, "one by one": single}


def difference(work: dict[str, Step]) -> tuple[float, float]:
    """Return by how much losses and gradients differ at most, relative to the largest."""
    (loss, first), *others = (step() for step in work.values())
    largest = max(float(gradient.abs().max()) for gradient in first.values())
    losses, gradients = 0.0, 0.0
    for other, found in others:
        if first.keys() != found.keys():
            sys.exit("not the same parameters have gradients")
        losses = max(losses, abs(loss - other) / loss)
        apart = max(float((first[name] - found[name]).abs().max()) for name in first)
        gradients = max(gradients, apart / largest)
    return losses, gradients


def main() -> int:
    given = options(__doc__.splitlines()[0], runs=5).parse_args()
    torch.set_num_threads(1)
    model = small()
    views = torch.randn(1, 9, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    work = steps(model, views)
    compiled = copy.deepcopy(model)
    compile_layers(compiled)
    work["packed, compiled"] = steps(compiled, views)["packed"]
    loss, gradients = difference(work)
    if loss > EXACT or gradients > 10 * EXACT:
        sys.exit(f"loss differs by {loss:.1e}, gradients by {gradients:.1e}")
    times = take_turns(work, given.runs)
    first = median(times["packed"])
    rows = [
        {
            "candidate": name,
            "ms": found,
            "questions per second": len(TURNS) / median(found) * 1e3,
            "ratio": median(found) / first,
        }
        for name, found in times.items()
    ]
    lines = [
        f"{len(TURNS)} questions, {model.vision_tokens(views).shape[1]} vision tokens; losses "
        f"differ by {loss:.0e}, gradients by {gradients:.0e} of the largest.",
        "",
        "| questions | ms per panorama | questions per second | times as long |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['candidate']} | {spread(row['ms'], 0)} | {row['questions per second']:.1f} "
        f"| {row['ratio']:.2f} |"
        for row in rows
    ]
    publish(given, "training_step.py", lines, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
