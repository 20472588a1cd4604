"""Views that are cut where the model is, with the same bits as those of the pipeline.

Perspective views are read, averaged and resized from the same coordinates in the same fixed-point
arithmetic: sums of whole numbers, which every device rounds alike. What the 256 pixel values become
is looked up in the same table.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from panovlm.errors import ConfigError
from panovlm.panorama.cuts import Perspective
from panovlm.panorama.geometry import Camera
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.projection import maps_of
from panovlm.panorama.taps import Pass, passes_between, through
from panovlm.panorama.uncut import Uncut, kept_size, perspectives, target_size, uncut

BITS = 5
"""Of the fraction of cv2's fixed-point coordinates."""
STEPS = 1 << BITS
AT_ONCE = 2**22
"""Points that are read in one go, in as many panoramas; each takes some 50 bytes meanwhile."""
NOISE = 3
"""Height of the panorama that is cut both ways before any other, in heights of a view."""


class DeviceViews:
    """Cuts views on whatever device the panoramas lie.

    Args:
        pipeline: Whose views they shall be.

    Raises:
        ConfigError: None of the views can be cut on a device.
    """

    def __init__(self, pipeline: ViewPipeline) -> None:
        cuts = perspectives(pipeline)
        self._pipeline = pipeline
        self._first = cuts[0]
        self._cameras = tuple(cut.camera for cut in cuts)
        self._values: dict[torch.device, Tensor] = {}

    def cut(self, batch: Sequence[Uncut]) -> Tensor:
        """Return the views [B, V, h, w, 3], 0 to 255, of a batch's panoramas in its order.

        Raises:
            ConfigError: The views of a picture of noise, which are cut before any other, are not
                the pipeline's to the last bit, with the libraries that are installed.
        """
        device = batch[0].panoramas.device
        if device not in self._values:
            self._values[device] = torch.from_numpy(self._pipeline.values[0].T.copy()).to(device)
            self._prove(device)
        views: dict[int, Tensor] = {}
        for group in batch:
            made, given = iter(self._perspective(group).unbind(1)), iter(group.others.unbind(1))
            parts = [
                next(made if isinstance(cut, Perspective) else given) for cut in self._pipeline.cuts
            ]
            views |= zip(group.rows, torch.stack(parts, 1), strict=True)
        return torch.stack([views[row] for row in sorted(views)])

    def normalise(self, views: Tensor) -> Tensor:
        """Return what the tower reads, float32 [..., 3, h, w], of pixels [..., h, w, 3] of it."""
        planes = [
            values.index_select(0, plane.flatten().int()).view(plane.shape)
            for values, plane in zip(self._values[views.device], views.unbind(-1), strict=True)
        ]
        return torch.stack(planes, -3)

    def _perspective(self, group: Uncut) -> Tensor:
        """Return the perspective views [N, V, h, w, 3]."""
        cut, (_, height, width, _) = self._first, group.panoramas.shape
        device = group.panoramas.device
        points = _points(self._cameras, cut.size, group.supersample, (height, width), device)
        together = max(AT_ONCE // len(points.places), 1)
        return torch.cat(
            [
                self._finished(_read(panoramas, points), group.supersample)
                for panoramas in group.panoramas.split(together)
            ]
        )

    def _finished(self, seen: Tensor, supersample: int) -> Tensor:
        """Average, trim and resize what was read, [N, points, 3]."""
        cut, processor = self._first, self._pipeline.processor
        shape = (len(seen), len(self._cameras), cut.size[0], supersample, cut.size[1], supersample)
        if supersample > 1:
            area = supersample**2
            total = seen.view(*shape, 3).sum((3, 5), dtype=torch.int32)
            seen = ((total + area // 2) // area).to(torch.uint8)
        seen = seen.view(*shape[:3], cut.size[1], 3)[:, :, cut.margin : cut.size[0] - cut.margin]
        kept, target = kept_size(cut), target_size(cut, self._pipeline)
        if kept != target:
            resample = Image.Resampling.LANCZOS if processor is None else processor.resample
            seen = through(seen, _passes(kept, target, resample, seen.device))
        if processor is None or processor.crop is None:
            return seen
        source, place = processor.places(target)
        cropped = seen.new_zeros((*seen.shape[:2], *processor.crop, 3))
        cropped[:, :, *place] = seen[:, :, *source]
        return cropped

    def _prove(self, device: torch.device) -> None:
        """Compare the views of a picture of noise with the pipeline's."""
        height = NOISE * self._first.size[0]
        shape = (height, 2 * height, 3)
        noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        found = self.normalise(self.cut([uncut(noise, self._pipeline).on(device)]))
        _points.cache_clear()  # no panorama has this size
        if not np.array_equal(found[0].cpu().numpy(), self._pipeline(noise)):
            del self._values[device]
            raise ConfigError(
                f"views that are cut on {device} are not those of the loader, with the libraries "
                "installed here: use views_on loader"
            )


class _Points(NamedTuple):
    """Where views are read in a panorama with one more pixel on every side."""

    places: Tensor
    """int32 [points], of the upper left one of four pixels, in all pixels."""
    right: Tensor
    """uint8 [points, 1], steps from it to the next pixel."""
    down: Tensor
    """uint8 [points, 1], steps from it to the pixel below."""


@lru_cache(maxsize=8)  # as many as the loaders keep of their own
def _points(
    cameras: tuple[Camera, ...],
    size: tuple[int, int],
    supersample: int,
    erp_size: tuple[int, int],
    device: torch.device,
) -> _Points:
    maps = maps_of(cameras, size, "corner", supersample, erp_size, in_place=True)
    column, row = (maps.first[..., axis].astype(np.int32).ravel() + 1 for axis in (0, 1))
    if maps.poles:  # its rows are counted from the one above the first
        row -= 1
    fraction = maps.second.ravel()
    steps = [part.astype(np.uint8)[:, None] for part in (fraction % STEPS, fraction // STEPS)]
    places = row * (erp_size[1] + 2) + column
    return _Points(*(torch.from_numpy(part).to(device) for part in (places, *steps)))


@lru_cache(maxsize=8)
def _passes(
    given: tuple[int, int],
    wanted: tuple[int, int],
    resample: Image.Resampling,
    device: torch.device,
) -> tuple[Pass, ...]:
    return tuple(
        Pass(each.axis, each.places.to(device), each.weights.to(device))
        for each in passes_between(given, wanted, resample)
    )


def _read(panoramas: Tensor, points: _Points) -> Tensor:
    """Interpolate panoramas [N, H, W, 3] at points: uint8 [N, points, 3]."""
    half, below = panoramas.shape[2] // 2, panoramas.shape[2] + 2
    first, last = (panoramas[:, at].roll(half, 2) for at in (slice(1), slice(-1, None)))
    around = torch.cat([first, panoramas, last], 1)
    around = torch.cat([around[:, :, -1:], around, around[:, :, :1]], 2).flatten(1, 2)

    def beside(shift: int) -> Tensor:
        return around[:, shift:].index_select(1, points.places)

    right, down = points.right.to(torch.int16), points.down.to(torch.int32)
    upper = beside(0) * (STEPS - right) + beside(1) * right
    lower = beside(below) * (STEPS - right) + beside(below + 1) * right
    total = upper * (STEPS - down) + lower * down
    return ((total + (1 << (2 * BITS - 1))) >> (2 * BITS)).to(torch.uint8)
