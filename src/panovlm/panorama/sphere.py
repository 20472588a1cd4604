"""The views of a setting on the sphere: what each place of each view shows, and who sees what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from panovlm.config.schema import ImageProcessing
from panovlm.panorama.cuts import Box, Cut, Letterbox, Panorama, Perspective, Region
from panovlm.panorama.lens import Doubles, Framed, Lens, Pinhole, Places, Rectangle, cell_centres
from panovlm.panorama.processor import VisionProcessor, read_processor
from panovlm.panorama.views import View, shots_of

PANORAMA = (3_600_000, 7_200_000)
"""(height, width) of the panorama that views cut in whole pixels are measured on: so fine that the
rounding does not count. Views of a real panorama lie within one of its pixels of these."""
VIEW = 1024
"""Height in pixels of a view whose size is not known."""
CHECKED = 64
"""Rows and columns of directions by which views are compared."""


@dataclass(frozen=True)
class SphereViews:
    """Views with their exact geometry.

    Attributes:
        views: What each view shows, nominally.
        lenses: What each place of each view shows, exactly.
    """

    views: tuple[View, ...]
    lenses: tuple[Lens, ...]

    @classmethod
    def of(
        cls,
        settings: ImageProcessing,
        *,
        size: tuple[int, int] | None = None,
        panorama: tuple[int, int] = PANORAMA,
    ) -> SphereViews:
        """Return the views of a setting.

        Args:
            settings: How a panorama becomes views.
            size: (height, width) of a view in pixels where ``image_size`` is unset.
            panorama: (height, width) of the panorama in pixels.

        Raises:
            ConfigError: The strategy cannot work with these settings.
        """
        nominal = (VIEW, 2 * VIEW) if settings.crop_strategy == "erp" else (VIEW, VIEW)
        known = settings.image_size or size or nominal
        shots = shots_of(settings.model_copy(update={"image_size": known}))
        processor = None
        if settings.use_vision_processor and settings.vision_processor is not None:
            processor = read_processor(settings.vision_processor)
        lenses = tuple(_lens(shot.cut, panorama, processor) for shot in shots)
        return cls(tuple(shot.view for shot in shots), lenses)

    def tiles(self) -> SphereViews:
        """Return the views without a leading one of the whole panorama that others follow."""
        if len(self.views) > 1 and self.views[0].is_global:
            return SphereViews(self.views[1:], self.lenses[1:])
        return self

    @cached_property
    def centres(self) -> Doubles:
        """Unit directions [V, 3] of the middle of every view."""
        middle = np.array(0.5)
        return np.stack([lens.rays(middle, middle) for lens in self.lenses])

    def rays(self, rows: int, columns: int, read: tuple[float, float] = (1.0, 1.0)) -> Doubles:
        """Return the unit directions [V, rows, columns, 3] of the cells' centres.

        Args:
            rows: Rows of cells.
            columns: Columns of cells.
            read: Parts of a view's height and width, from its upper left corner, that the cells
                cover: towers leave out pixels behind the last whole patch.
        """
        across, down = cell_centres(rows, columns)
        return np.stack([lens.rays(across * read[1], down * read[0]) for lens in self.lenses])

    def places(self, directions: Doubles) -> list[Places]:
        """Return where directions [..., 3] lie in every view."""
        return [lens.places(directions) for lens in self.lenses]

    @cached_property
    def overlaps(self) -> NDArray[np.bool_]:
        """Whether two views show a common area, [V, V]; each overlaps itself.

        A view is looked at in 64 x 64 places; views that only touch do not overlap.
        """
        rays = self.rays(CHECKED, CHECKED)
        rays = np.where(np.isnan(rays), 0.0, rays)  # what shows nothing lies in no view
        found = np.stack([place.inside.any(axis=(1, 2)) for place in self.places(rays)], axis=1)
        return found | found.T | np.eye(len(self.views), dtype=bool)


def symmetry(views: Sequence[View]) -> int:
    """Return into how many equal turns the circle divides so that a turn maps views to views.

    A turn by 360 degrees over that number takes every view to the place of another one.
    """
    places = [(view.pitch, view.hfov, view.vfov, view.yaw) for view in views]
    for count in range(len(views), 1, -1):
        turned = [(*shape, yaw + 360 / count) for *shape, yaw in places]
        if _keys(turned) == _keys(places):
            return count
    return 1


def _keys(places: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Return views in an order of their own, with yaws that can be compared."""
    rounded = [
        (*(round(part, 6) for part in shape), round(yaw % 360, 6) % 360) for *shape, yaw in places
    ]
    at_pole = [(*key[:-1], 0.0) if abs(key[0]) == 90 else key for key in rounded]
    return sorted(at_pole)


def _lens(cut: Cut, panorama: tuple[int, int], processor: VisionProcessor | None) -> Lens:
    """Return the geometry of one cut, after the tower's processor if there is one."""
    if isinstance(cut, Perspective):
        margin = cut.margin
        lens, size = Pinhole(cut.camera, cut.size, margin), (cut.size[0] - 2 * margin, cut.size[1])
    elif isinstance(cut, Region):
        box = cut.box(panorama[1], panorama[0])
        lens, size = Rectangle(box, panorama), (box.bottom - box.top, box.right - box.left)
    elif isinstance(cut, Panorama):
        return Rectangle(Box(0, 0, panorama[1], panorama[0]), panorama)
    else:
        lens, size = _letterboxed(cut, panorama), cut.size
    if processor is None:
        return lens
    window = processor.window(size)
    return lens if window == (0, 0, 1, 1) else Framed(lens, *window)


def _letterboxed(cut: Letterbox, panorama: tuple[int, int]) -> Lens:
    """Return the geometry of the whole panorama with bars around it."""
    top, left, height, width = cut.picture(panorama)
    whole = Rectangle(Box(0, 0, panorama[1], panorama[0]), panorama)
    return Framed(
        whole,
        top=-top / height,
        left=-left / width,
        bottom=(cut.size[0] - top) / height,
        right=(cut.size[1] - left) / width,
    )
