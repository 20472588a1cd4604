"""Samples as tensors: views of the panorama, token ids and labels of the conversations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from panovlm.data.augment import Tint, jitter
from panovlm.data.blocks import blocks_of
from panovlm.data.cache import KnownViews, load_panorama, load_views
from panovlm.data.features import KeptFeatures
from panovlm.data.loader import Draw
from panovlm.data.packing import pack
from panovlm.data.samples import Sample, group_rows
from panovlm.data.turns import turned_conversation
from panovlm.errors import ConfigError, DataError
from panovlm.models.language.chat import IGNORED, ChatFormat
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.uncut import Uncut, uncut


class Item(TypedDict):
    """One sample: its views, what they are cut from, or what the tower makes of them.

    The texts are absent in a dataset without chat format.
    """

    source: str
    """Where the sample stands in its table."""
    pixel_values: NotRequired[Tensor]
    """float32 [V, 3, h, w]"""
    uncut: NotRequired[Uncut]
    """The panorama, for views that are cut later."""
    tint: NotRequired[Tint]
    """What these are multiplied by then; absent: nothing."""
    features: NotRequired[Tensor]
    """[V, S, Dv]"""
    view_size: NotRequired[tuple[int, int]]
    """Height and width of the views that the features are of."""
    input_ids: NotRequired[list[int]]
    """[L]"""
    labels: NotRequired[list[int]]
    """[L], -100 where no loss is taken."""
    segments: NotRequired[list[int]]
    """[L], which conversation a token belongs to; 0: to all of them. Absent with only one."""


class PanoramaDataset(Dataset[Item]):
    """Samples of one stage.

    An item follows from the seed and its :class:`Draw` alone, whichever process makes it.

    Args:
        samples: Rows of the tables.
        pipeline: Cuts and normalises the views.
        chat: Turns conversations into ids and labels; None: views only, for a stage that does not
            read text.
        max_length: Most ids of a sample; what is longer is cut. None keeps all.
        questions_per_sample: Rows about one panorama that share its views, each a conversation of
            its own; which rows meet is drawn anew in every epoch.
        seed: Seed of the groups and of the jitter.
        augment: Change brightness, contrast and saturation by chance.
        cache: Rendered views to use instead of rendering the images; they cannot be turned.
        yaw_turns: Turn panoramas by a chance multiple of this part of a circle, and the texts with
            them; 1: do not.
        cut: Cut the views; else leave that to :func:`~panovlm.data.on_device.with_views`.

    Attributes:
        rows: The samples.
        features: What the tower makes of the views, to give instead of these; None: give pixels.
    """

    features: KeptFeatures | None = None

    def __init__(
        self,
        samples: Sequence[Sample],
        pipeline: ViewPipeline,
        chat: ChatFormat | None,
        *,
        max_length: int | None = None,
        questions_per_sample: int = 1,
        seed: int = 0,
        augment: bool = False,
        cache: KnownViews | None = None,
        yaw_turns: int = 1,
        cut: bool = True,
    ) -> None:
        if cache is not None and yaw_turns > 1:
            raise ConfigError("rendered views cannot be turned; use yaw_turns without a cache")
        self.rows = samples
        self._pipeline = pipeline
        self._chat = chat
        self._max_length = max_length
        self._questions = questions_per_sample
        self._seed = seed
        self._augment = augment
        self._cache = cache
        self._yaw_turns = yaw_turns
        self._cut = cut
        self._epoch = 0
        self._groups = group_rows(samples, questions_per_sample, seed, 0)

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def weights(self) -> list[float] | None:
        """How often each item is taken per epoch, on average; None where each is taken once."""
        weights = [group[0].weight for group in self._groups]  # the same in every epoch
        return None if all(weight == 1 for weight in weights) else weights

    @property
    def blocks(self) -> list[int]:
        """The block that each item is read from, see :mod:`~panovlm.data.blocks`."""
        return blocks_of(group[0].image for group in self._groups)  # the same in every epoch

    def __getitem__(self, draw: Draw) -> Item:
        """Return one item.

        Raises:
            DataError: The image cannot be read, or ``max_length`` leaves nothing of the answers.
        """
        group, turn = self._group(draw), self._turn(draw)
        item: Item = {"source": ", ".join(sample.source for sample in group)}
        if self.features is not None:
            item["features"], item["view_size"] = self.features.of(group[0])
        elif self._cut:
            views = self._views(group[0], draw, turn)
            item["pixel_values"] = torch.from_numpy(self._pipeline.normalise(views))
        else:
            item["uncut"] = self._uncut(group[0], turn)
            if self._augment:
                item["tint"] = self._tint(draw)
        if self._chat is None:
            return item
        packed = pack([self._text(sample, self._chat, turn) for sample in group], self._chat)
        item["input_ids"], item["labels"] = packed.ids, packed.labels
        if len(group) > 1:
            item["segments"] = packed.segments
        return item

    def _group(self, draw: Draw) -> tuple[Sample, ...]:
        if self._questions > 1 and draw.epoch != self._epoch:
            self._groups = group_rows(self.rows, self._questions, self._seed, draw.epoch)
            self._epoch = draw.epoch
        return self._groups[draw.number]

    def _turn(self, draw: Draw) -> int:
        """Return how often the panorama is turned."""
        if self._yaw_turns == 1:
            return 0
        # The last number keeps this apart from the jitter's chance.
        return int(np.random.default_rng((self._seed, *draw, 1)).integers(self._yaw_turns))

    def _views(self, sample: Sample, draw: Draw, turn: int) -> NDArray[np.uint8]:
        if self._cache is not None:
            views = self._cache.views(sample)
        else:
            views = load_views(sample, self._pipeline, (turn, self._yaw_turns))
        return jitter(views, self._tint(draw)) if self._augment else views

    def _uncut(self, sample: Sample, turn: int) -> Uncut:
        use = partial(uncut, pipeline=self._pipeline)
        return load_panorama(sample, self._pipeline, (turn, self._yaw_turns), use)

    def _tint(self, draw: Draw) -> Tint:
        return Tint.drawn(np.random.default_rng((self._seed, *draw)))

    def _text(self, sample: Sample, chat: ChatFormat, turn: int) -> tuple[list[int], list[int]]:
        said = sample.turns
        if turn:
            said = turned_conversation(said, turn, self._yaw_turns)
        ids, labels = chat.training_example(said, self._max_length)
        if all(label == IGNORED for label in labels):
            raise DataError(
                f"{sample.source}: max_text_length {self._max_length} cuts the whole answer off, "
                "so that there is nothing to learn; raise max_text_length of the stage or model, "
                "shorten the question, or drop the row"
            )
        return ids, labels
