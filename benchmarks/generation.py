"""Sixteen questions about one panorama: what they share computed once, or for each of them.

    python benchmarks/generation.py [--runs 3] [--json FILE] [--update docs/performance.md]

A small untrained model reads nine views of 256 pixels, 1408 vision tokens, as SigLIP 2 does at
that size. ``together`` is one call of ``generate`` about one panorama; ``in a batch`` gives every
question its own copy of the views, ``one by one`` its own call. All must give the same tokens
before anything is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median

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
    times = take_turns(work, given.runs)
    first = median(times["together"])
    tokens = model.vision_tokens(views).shape[1]
    rows = [
        {"candidate": name, "ms": found, "ratio": median(found) / first}
        for name, found in times.items()
    ]
    lines = [
        f"{len(ids)} questions, {tokens} vision tokens, {NEW} new tokens each; the same tokens "
        "come out.",
        "",
        "| asked | ms | times as long |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row['candidate']} | {spread(row['ms'], 0)} | {row['ratio']:.1f} |" for row in rows
    ]
    publish(given, "generation.py", lines, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
