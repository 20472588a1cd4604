"""A stream of questions about panoramas, answered side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panovlm.config.problems import shown
from panovlm.errors import ConfigError, DataError
from panovlm.models.language.continuous import Beginning, ContinuousBatch
from panovlm.panorama.picture import Source, as_picture
from panovlm.panorama.pipeline import ViewPipeline

if TYPE_CHECKING:
    from panovlm.models.answering import AnsweringNetwork

Panorama = NDArray[np.uint8] | Source
Request = TypeVar("Request", bound=tuple[Panorama, str])


@torch.no_grad()
def answer_each(
    model: AnsweringNetwork, requests: Iterable[Request], *, batch_size: int, **kwargs: Any
) -> Iterator[tuple[Request, str | DataError]]:
    """Answer a stream of questions, each as soon as its answer ends.

    Up to ``batch_size`` answers are in the making at once; one that ends makes room for the next
    request. Every answer is that of ``model.answer``, within the rounding of sums that are added up
    in another order.

    Args:
        model: what is asked.
        requests: pairs of a panorama, as equirectangular image ``[H, W, 3]``, uint8, or as a file,
            and a question. They are taken from the stream as there is room. What was computed of a
            panorama serves all questions that come while one about it is being answered, and those
            that come next.
        batch_size: answers in the making, at least 1.
        **kwargs: as for :meth:`transformers.GenerationMixin.generate`, where each answer is made
            one token after the other.

    Yields:
        Requests as they were given with their answers, in the order in which these end; in place of
        the answer an error, where the panorama cannot be read.

    Raises:
        ConfigError: a request is no such pair, the model has no tokenizer, or the batch, one of the
            arguments or the language model does not allow it.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
    chat, looks, waiting = model.chat(), _Looks(model), iter(requests)
    marks = {
        "pad_token_id": chat.tokenizer.pad_token_id,
        "eos_token_id": chat.tokenizer.eos_token_id,
    }
    batch = ContinuousBatch[tuple[Request, _Look]](model.language_model, {**marks, **kwargs})
    while True:
        entering = list(islice(waiting, batch_size - len(batch)))
        if not entering and not len(batch):
            return
        for request in entering:
            panorama, question = _pair(request)
            try:
                look = looks.at(panorama)
            except DataError as error:
                yield request, error
                continue
            ids = torch.tensor([chat.prompt(question)], device=model.device)
            inputs = model.fuse(
                None, ids, None, None, vision_tokens=look.tokens, padding_side="left"
            )
            look.beginning = batch.add((request, look), inputs, look.beginning)
        batch.step()
        for (request, _), made in batch.finished():
            yield request, chat.decode_answer(made)


def _pair(request: object) -> tuple[Any, str]:
    """Return panorama and question of a request; a path alone would be taken for its letters."""
    match request:
        case (panorama, str(question)):
            return panorama, question
        case _:
            raise ConfigError(
                f"a request is a pair of a panorama and a question in text, got {shown(request)}."
            )


class _Look:
    """What the model has seen of a panorama."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens  # [1, T, Dm]
        self.beginning: Beginning | None = None  # the first question, once it was read


class _Looks:
    """Panoramas that questions are being answered about, and the last one."""

    def __init__(self, model: AnsweringNetwork) -> None:
        self._model = model
        self._pipeline = ViewPipeline(model.recipe.image_processing)
        self._known: WeakValueDictionary[Hashable, _Look] = WeakValueDictionary()
        self._last: _Look | None = None

    def at(self, panorama: Panorama) -> _Look:
        """Look at a panorama, unless it is known.

        Raises:
            DataError: it cannot be read or cut.
        """
        key = _key(panorama)
        look = self._known.get(key)
        if look is None:
            array = isinstance(panorama, np.ndarray)
            views = self._pipeline(panorama) if array else self._pipeline.load(panorama)
            pixels = torch.from_numpy(views)[None].to(self._model.device)
            look = self._known[key] = _Look(self._model.vision_tokens(pixels))
        self._last = look
        return look


def _key(panorama: Panorama) -> Hashable:
    """Return by what a panorama is known again: its place, or its pixels, which may change."""
    if not isinstance(panorama, np.ndarray):
        return as_picture(panorama)
    pixels = hashlib.blake2b(np.ascontiguousarray(panorama).data).digest()
    return panorama.shape, panorama.dtype.str, pixels
