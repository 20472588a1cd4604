"""The evaluation loop: panoramas and questions in, answers in the ledger out.

A panorama that cannot be read fails its own questions and no others. Anything else that goes
wrong stops the evaluation; the ledger keeps what was answered until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from panovlm.config.schema import Generation
from panovlm.data.samples import Sample
from panovlm.errors import DataError
from panovlm.evaluation.answers import Answer, Question, groups_of
from panovlm.evaluation.ledger import Ledger
from panovlm.models.language.chat import ChatFormat
from panovlm.panorama.device import DeviceViews
from panovlm.panorama.picture import Image
from panovlm.panorama.uncut import Uncut, together

Views = NDArray[np.float32] | Uncut
"""Normalised views [V, 3, h, w], or the panorama that the model's device cuts them from."""
Load = Callable[[Image], Views]


class Answering(Protocol):
    """A model that answers questions about panoramas."""

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        ...

    def eval(self) -> Any:
        """Switch dropout off."""
        ...

    def generate(
        self,
        *,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        about: Tensor,
        **kwargs: Any,
    ) -> Tensor:
        """Continue prompts [B, L], padded on the left: ids [B, n].

        ``about`` [B] says which of the panoramas [P, V, 3, h, w] each is about.
        """
        ...


def questions_of(samples: Iterable[Sample]) -> list[Question]:
    """Turn the rows of tables into questions, numbered from 0.

    A row's columns ``kind`` and ``seam`` group the accuracy; an empty answer is no reference.

    Args:
        samples: Rows as read from tables, not joined into conversations.

    Raises:
        DataError: A sample is a conversation of several turns.
    """
    questions: list[Question] = []
    for number, sample in enumerate(samples):
        if len(sample.turns) != 1:
            raise DataError(
                f"{sample.source}: {len(sample.turns)} turns; an evaluation asks one question per "
                "row: give every question a row of its own"
            )
        text, reference = sample.turns[0]
        questions.append(
            Question(
                sample_id=str(number),
                image=str(sample.image),
                text=text,
                query=sample.columns.get("query", ""),
                reference=reference or None,
                groups=groups_of(sample.columns),
            )
        )
    return questions


def pictures_of(samples: Iterable[Sample]) -> dict[str, Image]:
    """Return the images of the rows under the names that their questions have for them."""
    return {str(sample.image): sample.image for sample in samples}


def generation_arguments(settings: Generation) -> dict[str, Any]:
    """Translate generation settings into arguments of ``generate``; only those with an effect."""
    arguments: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "do_sample": settings.do_sample,
        "num_beams": settings.num_beams,
        "repetition_penalty": settings.repetition_penalty,
    }
    if settings.min_new_tokens:
        arguments["min_new_tokens"] = settings.min_new_tokens
    if settings.do_sample:
        names = ("temperature", "top_p", "top_k")
        arguments |= {name: getattr(settings, name) for name in names}
    if settings.num_beams > 1:
        arguments["length_penalty"] = settings.length_penalty
    return arguments


def evaluate(
    model: Answering,
    questions: Sequence[Question],
    load: Load,
    chat: ChatFormat,
    generation: Generation,
    *,
    batch_size: int,
    ledger: Ledger,
    pictures: Mapping[str, Image] = MappingProxyType({}),
    progress: bool = True,
    device_views: DeviceViews | None = None,
) -> list[Answer]:
    """Ask every question that the ledger has no answer to.

    The next batch's panoramas are read and rendered while the model works on this one;
    questions about one panorama are asked one after the other, and those of a batch share it.

    Args:
        model: In whatever mode; it is switched to evaluation.
        questions: All questions of the evaluation.
        load: Reads a panorama's picture as views [V, 3, h, w]; with ``device_views``, as what they
            are cut from.
        chat: Makes prompts and reads answers.
        generation: How answers are generated.
        batch_size: Questions per call of the model, at least 1.
        ledger: Receives every batch of answers before the next one is generated.
        pictures: Images by the names that questions have for them; others are paths.
        progress: Show a bar on the terminal.
        device_views: Cuts the views on the model's device.

    Returns:
        One answer per question, in the order of the questions.
    """
    model.eval()
    pending = _by_panorama(ledger.pending(questions))
    batches = [pending[i : i + batch_size] for i in range(0, len(pending), batch_size)]
    arguments = generation_arguments(generation)
    with _bar(progress) as bar:
        done = len(questions) - len(pending)
        task = bar.add_task("Evaluating", total=len(questions), completed=done)
        for batch in _prepared(batches, load, pictures):
            ledger.append([*batch.failed, *_ask(model, batch, chat, arguments, device_views)])
            bar.advance(task, len(batch.failed) + len(batch.questions))
    answers = {answer.question.sample_id: answer for answer in ledger.answers()}
    return [answers[question.sample_id] for question in questions]


def _by_panorama(questions: Iterable[Question]) -> list[Question]:
    """Put questions about one panorama next to each other, in the order of the panoramas."""
    by_image: dict[str, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    return [question for together in by_image.values() for question in together]


@dataclass(frozen=True)
class _Batch:
    """Questions, the views of the panoramas they are about, and what cannot be asked."""

    questions: list[Question]
    views: dict[str, Views]
    failed: list[Answer]


def _prepared(
    batches: Sequence[Sequence[Question]], load: Load, pictures: Mapping[str, Image]
) -> Iterator[_Batch]:
    """Render batch after batch, one ahead of the reader, in a thread of its own."""
    rendered: dict[str, Views | DataError] = {}

    def prepare(batch: Sequence[Question]) -> _Batch:
        nonlocal rendered
        images = dict.fromkeys(question.image for question in batch)
        # Only this batch's views are kept; the ones it shares with the last batch are reused.
        rendered = {
            name: rendered[name]
            if name in rendered
            else _render(pictures.get(name, Path(name)), load)
            for name in images
        }
        made = _Batch([], {}, [])
        for question in batch:
            views = rendered[question.image]
            if isinstance(views, DataError):
                made.failed.append(Answer.failed(question, str(views)))
            else:
                made.questions.append(question)
                made.views[question.image] = views
        return made

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="render") as pool:
        ahead = [pool.submit(prepare, batch) for batch in batches[:1]]
        for following in range(1, len(batches) + 1):
            ready = ahead.pop().result()
            if following < len(batches):
                ahead.append(pool.submit(prepare, batches[following]))
            yield ready


def _render(image: Image, load: Load) -> Views | DataError:
    """Render a panorama's views; return the error if this picture cannot be used."""
    try:
        return load(image)
    except DataError as error:
        return error


def _ask(
    model: Answering,
    batch: _Batch,
    chat: ChatFormat,
    arguments: dict[str, Any],
    device_views: DeviceViews | None,
) -> list[Answer]:
    """Generate the answers of one batch."""
    if not batch.questions:
        return []
    ids, mask = chat.prompts([question.text for question in batch.questions])
    places = {image: place for place, image in enumerate(batch.views)}
    about = torch.tensor([places[question.image] for question in batch.questions])
    with torch.inference_mode():
        made = model.generate(
            pixel_values=_pixels(list(batch.views.values()), model.device, device_views),
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            about=about.to(model.device),
            **arguments,
        )
    return [
        Answer.generated(question, chat.decode_answer(row))
        for question, row in zip(batch.questions, made.tolist(), strict=True)
    ]


def _pixels(
    views: Sequence[Views], device: torch.device, device_views: DeviceViews | None
) -> Tensor:
    """Return the normalised views [P, V, 3, h, w] of a batch's panoramas on the device."""
    if device_views is None:
        cut = np.stack([each for each in views if not isinstance(each, Uncut)])
        return torch.from_numpy(cut).to(device)
    groups = together([each for each in views if isinstance(each, Uncut)])
    return device_views.normalise(device_views.cut([group.on(device) for group in groups]))


def _bar(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not show,
    )
