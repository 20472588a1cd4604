"""What a loader does about views that a device cuts (:mod:`panovlm.panorama.device`).

It decodes a panorama, makes it as small as the views allow, and makes those views that are not
perspective: of the whole panorama, or slices of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panovlm.errors import ConfigError
from panovlm.panorama.cuts import Perspective
from panovlm.panorama.image import read_panorama
from panovlm.panorama.picture import Source
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.projection import read_at
from panovlm.panorama.taps import FILTERS


class Uncut(NamedTuple):
    """Panoramas of one size whose perspective views are still to be cut."""

    rows: Sequence[int]
    """The place of each in its batch."""
    panoramas: Tensor
    """uint8 [N, H, W, 3], as small as the views allow."""
    supersample: int
    """Points per side of a view's pixel."""
    others: Tensor
    """uint8 [N, n, h, w, 3], the views that are not perspective."""

    def on(self, device: torch.device) -> Uncut:
        """Return the same on a device."""
        panoramas, others = (
            part.to(device, non_blocking=True) for part in (self.panoramas, self.others)
        )
        return self._replace(panoramas=panoramas, others=others)


def perspectives(pipeline: ViewPipeline) -> list[Perspective]:
    """Return the cuts that are made on the device; all of them have one size.

    Raises:
        ConfigError: There are none that can be made there.
    """
    found = [cut for cut in pipeline.cuts if isinstance(cut, Perspective)]
    settings = pipeline.settings
    told = f"views_on is device, but with crop_strategy {settings.crop_strategy} "
    if not found:
        raise ConfigError(f"{told}no view is perspective: use views_on loader")
    (first,) = {(cut.size, cut.kept_rows, cut.antialias): cut for cut in found}.values()
    if pipeline.processor is not None:
        if pipeline.processor.resample not in FILTERS:
            raise ConfigError(
                f"{told}the tower's processor resizes views by its filter "
                f"{pipeline.processor.resample.name}, which is not made on a device: use "
                "views_on loader"
            )
    elif settings.rendering != "exact" and kept_size(first) != pipeline.size:
        raise ConfigError(
            f"{told}and rendering {settings.rendering} views of {kept_size(first)} pixels are "
            f"stretched to {pipeline.size}, which OpenCV does not do in whole numbers: use "
            "views_on loader, or rendering exact"
        )
    return found


def uncut(erp: NDArray[np.uint8], pipeline: ViewPipeline) -> Uncut:
    """Do a loader's part: make a panorama [H, W, 3] small, and the views that are not perspective.

    Raises:
        DataError: The panorama cannot be cut.
        ConfigError: The tower's processor gives the views different sizes.
    """
    cuts = perspectives(pipeline)
    erp = pipeline.reduced(erp)
    given = [cut.take(erp) for cut in pipeline.cuts if not isinstance(cut, Perspective)]
    size = view_size(cuts[0], pipeline)
    others = pipeline.stack(given) if given else np.empty((0, *size, 3), np.uint8)
    pipeline.require_one_size([size, others.shape[1:3]])
    cameras = tuple(cut.camera for cut in cuts)
    read, supersample = read_at(
        np.ascontiguousarray(erp), cameras, cuts[0].size, antialias=cuts[0].antialias
    )
    return Uncut((0,), torch.from_numpy(read)[None], supersample, torch.from_numpy(others)[None])


def read_uncut(source: Source, pipeline: ViewPipeline) -> Uncut:
    """Read a file, decoded no finer than needed, and do a loader's part; see :func:`uncut`.

    Raises:
        DataError: It cannot be read or cut.
    """
    return uncut(read_panorama(source, pipeline.reduction), pipeline)


def together(panoramas: Sequence[Uncut]) -> list[Uncut]:
    """Put panoramas of one size together; each has the row of its place in the sequence."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, one in enumerate(panoramas):
        groups.setdefault((one.panoramas.shape, one.supersample), []).append(row)
    return [
        Uncut(
            rows,
            torch.cat([panoramas[row].panoramas for row in rows]),
            panoramas[rows[0]].supersample,
            torch.cat([panoramas[row].others for row in rows]),
        )
        for rows in groups.values()
    ]


def kept_size(cut: Perspective) -> tuple[int, int]:
    """Return (height, width) of a cut picture."""
    return cut.size[0] - 2 * cut.margin, cut.size[1]


def target_size(cut: Perspective, pipeline: ViewPipeline) -> tuple[int, int]:
    """Return the (height, width) to which a cut picture is resized."""
    if pipeline.processor is not None:
        return pipeline.processor.target(kept_size(cut))
    return pipeline.size


def view_size(cut: Perspective, pipeline: ViewPipeline) -> tuple[int, int]:
    """Return the (height, width) of its view."""
    crop = pipeline.processor.crop if pipeline.processor is not None else None
    return crop or target_size(cut, pipeline)
