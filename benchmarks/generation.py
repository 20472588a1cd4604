"""Questions about panoramas: what they share computed once, and a batch that is always full.

    python benchmarks/generation.py [--runs 3] [--json FILE] [--update docs/performance.md]

A small untrained model reads nine views of 256 pixels, 1408 vision tokens, as SigLIP 2 does at
that size. Sixteen questions about one panorama: ``together`` is one call of ``generate``; ``in a
batch`` gives every question its own copy of the views, ``one by one`` its own call. All must give
the same tokens before anything is timed.

Thirty-two questions about four panoramas, answers of very different lengths: ``as they end`` is
a stream in which the next question takes the place of one that is answered, ``in batches of 8``
waits for the longest answer of each batch. The answers must be equal, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from machine import spread
from small_model import small_model
from table import options, publish, take_turns
from torch import Tensor

from panovlm.models.model import PanoramaVLM

COLOURS = ("red", "green", "blue", "yellow")
PLACES = ("behind you", "in front of you", "to your left and near the door", "above the table")
QUESTIONS = tuple(f"is the {colour} ball {place} ?" for colour in COLOURS for place in PLACES)
NEW = 12
PANORAMAS = 4
AT_ONCE = 8
LONGEST = 200
LAST_WORD = "red"
"""Ends the answers of the stream."""
TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 256,
    "patch_size": 16,
}
LANGUAGE = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": False,
}


def model_and_questions() -> tuple[PanoramaVLM, Tensor, Tensor, Tensor]:
    """Return a model whose answers differ, one panorama's views, and prompts with their mask."""
    model = small_model(
        vision_config=TOWER, language_config=LANGUAGE, resampler_type="mlp", resampler_config={}
    )
    with torch.no_grad():
        for name, parameter in model.language_model.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
            if "q_norm" in name or "k_norm" in name:
                parameter.mul_(4)  # so that attention picks tokens out instead of averaging all
    views = torch.randn(1, 9, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    return model, views, *model.chat().prompts(QUESTIONS)


def ways(
    model: PanoramaVLM, views: Tensor, ids: Tensor, mask: Tensor
) -> dict[str, Callable[[], list[list[int]]]]:
    """Return the ways to ask, each of which returns the new tokens of every question."""
    given = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}

    def together() -> list[list[int]]:
        return model.generate(views, ids, mask, **given).tolist()

    def batch() -> list[list[int]]:
        copies = views.expand(len(ids), -1, -1, -1, -1)
        return model.generate(copies, ids, mask, **given).tolist()

    def single() -> list[list[int]]:
        return [
            model.generate(views, row[own.bool()][None], **given)[0].tolist()
            for row, own in zip(ids, mask, strict=True)
        ]

    return {"together": together, "in a batch": batch, "one by one": single}


def streams(model: PanoramaVLM) -> dict[str, Callable[[], list[str]]]:
    """Return the ways to answer a stream of questions, each of which returns the answers."""
    random = np.random.default_rng(0)
    size = (PANORAMAS, 256, 512, 3)
    panoramas = list(random.integers(0, 256, size, dtype=np.uint8))
    asked = QUESTIONS[:AT_ONCE]
    requests = [(panorama, question) for panorama in panoramas for question in asked]
    ends = model.chat().tokenizer.convert_tokens_to_ids([LAST_WORD])
    given = {"do_sample": False, "max_new_tokens": LONGEST, "eos_token_id": ends}

    def as_they_end() -> list[str]:
        found = model.answer_each(requests, batch_size=AT_ONCE, **given)
        answers = {id(request): answer for request, answer in found}
        return [str(answers[id(request)]) for request in requests]

    def batches() -> list[str]:
        return [
            answer for panorama in panoramas for answer in model.answers(panorama, asked, **given)
        ]

    return {"as they end": as_they_end, f"in batches of {AT_ONCE}": batches}


def compared(times: dict[str, list[float]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the lines of a table, and its rows; the first way is what others are compared with."""
    first, *_ = map(median, times.values())
    rows = [
        {"candidate": name, "ms": found, "ratio": median(found) / first}
        for name, found in times.items()
    ]
    lines = [
        f"| {row['candidate']} | {spread(row['ms'], 0)} | {row['ratio']:.1f} |" for row in rows
    ]
    return ["| asked | ms | times as long |", "|---|---|---|", *lines], rows


def main() -> int:
    given = options(__doc__.splitlines()[0], runs=3).parse_args()
    torch.set_num_threads(1)
    model, views, ids, mask = model_and_questions()
    work = ways(model, views, ids, mask)
    expected, *others = (way() for way in work.values())
    if any(other != expected for other in others):
        sys.exit("the ways to ask do not give the same tokens")
    if len(set(map(tuple, expected))) < 2:
        sys.exit("all answers are equal, so that nothing is shown by comparing them")
    flow = streams(model)
    answers, others = (way() for way in flow.values())
    if others != answers:
        sys.exit("a stream and batches do not give the same answers")
    lengths = sorted(len(answer.split()) for answer in answers)
    if lengths[0] * 4 > lengths[-1]:
        sys.exit("all answers are about equally long, so that nothing is shown by streaming them")
    tokens = model.vision_tokens(views).shape[1]
    one, rows = compared(take_turns(work, given.runs))
    many, more = compared(take_turns(flow, given.runs))
    lines = [
        f"{len(ids)} questions, {tokens} vision tokens, {NEW} new tokens each; the same tokens "
        "come out.",
        "",
        *one,
        "",
        f"{len(answers)} questions about {PANORAMAS} panoramas, answers of {lengths[0]} to "
        f"{lengths[-1]} words, {median(lengths):.0f} in the median; the same answers come out.",
        "",
        *many,
    ]
    publish(given, "generation.py", lines, [*rows, *more])
    return 0


if __name__ == "__main__":
    sys.exit(main())
