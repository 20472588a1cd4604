"""What a crop strategy consists of: views, and how their pictures are cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from panovlm.config.schema import ImageProcessing
from panovlm.panorama.cuts import Cut


@dataclass(frozen=True)
class View:
    """What one view shows; all angles in degrees.

    Attributes:
        yaw: Longitude of its centre; 0 is the centre column of the panorama, positive east.
        pitch: Latitude of its centre, positive upwards.
        hfov: Width of the part of the panorama it shows.
        vfov: Height of the part of the panorama it shows.
        is_global: Whether it shows the whole panorama.
    """

    yaw: float
    pitch: float
    hfov: float
    vfov: float
    is_global: bool = False


class Shot(NamedTuple):
    """A view and how its picture is cut out of a panorama."""

    view: View
    cut: Cut


Strategy = Callable[[ImageProcessing, tuple[int, int]], tuple[Shot, ...]]
"""From the settings and the (height, width) of one view to the shots in order."""

WHOLE = View(yaw=0.0, pitch=0.0, hfov=360.0, vfov=180.0, is_global=True)


def turn_count(settings: ImageProcessing) -> int:
    """Return how many views it takes to go once around the horizon."""
    return math.ceil(360 / (settings.fov_deg * (1 - settings.overlap_ratio)))
