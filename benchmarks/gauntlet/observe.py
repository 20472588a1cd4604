"""What a model makes of one panorama and one question: the measure of whether it is the right one.

The whole way is taken, from the panorama's pixels and the question's letters, so that other image
processing, another prompt or another tokenizer is another result. Everything is computed in
float32, whatever type the weights are stored in, so that one tolerance serves all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from panovlm.models.model import PanoramaVLM
from panovlm.panorama.pipeline import ViewPipeline

QUESTION = "what is left of the red ball ?"
NEW_TOKENS = 6
TOLERANCE = 1e-4
"""Largest difference, of the largest value. Changes of settings make a hundred times more."""


class Observation(NamedTuple):
    """Vision tokens ``[T, Dm]``, logits ``[T + L, vocabulary]`` and greedily generated tokens."""

    vision: Tensor
    logits: Tensor
    answer: list[int]

    def differs(self, other: Observation) -> str:
        """Say in what another observation differs, or return an empty text."""
        for what, mine, theirs in (
            ("vision tokens", self.vision, other.vision),
            ("logits", self.logits, other.logits),
        ):
            if mine.shape != theirs.shape:
                return f"{what} {list(theirs.shape)} instead of {list(mine.shape)}"
            off = float((mine - theirs).abs().max() / mine.abs().max())
            if not off <= TOLERANCE:
                return f"{what} off by {off:.2g} of their largest value"
        if self.answer != other.answer:
            return "another answer"
        return ""


def panorama() -> np.ndarray:
    """Return a smooth picture of 64×128 pixels in which no two places look alike."""
    y, x = np.mgrid[0:64, 0:128] / 64.0
    turns = (3 * np.pi * x, 5 * np.pi * y + x, 4 * np.pi * (x * y + y))
    return np.stack([127.5 + 127 * np.sin(turn) for turn in turns], axis=-1).astype(np.uint8)


@torch.no_grad()
def observe(model: PanoramaVLM, tokenizer: PreTrainedTokenizerBase | None = None) -> Observation:
    """Measure a model.

    Args:
        model: it is changed to float32.
        tokenizer: for models that have none.
    """
    if model.tokenizer is None and tokenizer is not None:
        model.attach_tokenizer(tokenizer)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    model.eval()
    pixels = torch.from_numpy(ViewPipeline(model.recipe.image_processing)(panorama()))[None]
    prompt = torch.tensor([model.chat().prompt(QUESTION)])
    vision = model.vision_tokens(pixels)
    logits = model(vision_tokens=vision, input_ids=prompt).logits
    lengths = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    answer = model.generate(vision_tokens=vision, input_ids=prompt, do_sample=False, **lengths)
    return Observation(vision[0], logits[0], answer[0].tolist())
