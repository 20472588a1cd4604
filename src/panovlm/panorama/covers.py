"""Views that can show the whole sphere: rows with poles, a cube, an icosahedron, the panorama.

None of them belongs to the original system. Their views come from the lowest row to the highest,
each row eastward from yaw 0 (the cube keeps the order of its side faces, then up, then down).
"""

from __future__ import annotations

import math

from panovlm.config.schema import ImageProcessing
from panovlm.errors import ConfigError
from panovlm.panorama.cuts import Panorama, Perspective
from panovlm.panorama.geometry import Camera, wrap_degrees
from panovlm.panorama.shots import WHOLE, Shot, View, turn_count

CORNER_LATITUDE = math.degrees(math.atan(0.5))
"""Latitude of the upper ring of an icosahedron's corners, one of which is the north pole."""
FACE_LATITUDES = (
    math.degrees(math.atan((3 - math.sqrt(5)) / 4)),
    math.degrees(math.atan((3 + math.sqrt(5)) / 4)),
)
"""Latitudes of the two upper rings of its faces' centres."""


def e2p_sphere(settings: ImageProcessing, size: tuple[int, int]) -> tuple[Shot, ...]:
    """Rows of perspective views about the horizon, all with the same even yaw steps; the poles.

    Rows are as far apart as ``fov_deg`` and ``overlap_ratio`` say. With ``poles`` a view straight
    down comes first and one straight up last.
    """
    fov = settings.fov_deg
    gap, count = fov * (1 - settings.overlap_ratio), turn_count(settings)
    pitches = [(row - (settings.pitch_rows - 1) / 2) * gap for row in range(settings.pitch_rows)]
    if pitches[-1] >= 90:
        raise ConfigError(
            f"image_processing.pitch_rows is {settings.pitch_rows}, but rows of {fov:g} degrees "
            f"with overlap_ratio {settings.overlap_ratio:g} are {gap:g} degrees apart, so that the "
            f"highest would lie at pitch {pitches[-1]:g}: use fewer rows, and poles to look "
            "straight up and down"
        )
    rows = [(wrap_degrees(i * 360 / count), pitch) for pitch in pitches for i in range(count)]
    if settings.poles:
        rows = [(0.0, -90.0), *rows, (0.0, 90.0)]
    return _looking(rows, fov, size)


def cubemap6(_settings: ImageProcessing, size: tuple[int, int]) -> tuple[Shot, ...]:
    """All six faces of a cube: front, right, back, left, up, down; every direction once."""
    sides = [(yaw, 0.0) for yaw in (0.0, 90.0, 180.0, -90.0)]
    return _looking([*sides, (0.0, 90.0), (0.0, -90.0)], 90.0, size)


def icosahedral(settings: ImageProcessing, size: tuple[int, int]) -> tuple[Shot, ...]:
    """Views at the 12 corners or the 20 faces of an icosahedron, nearly even over the sphere.

    Both leave nothing out from a field of view of about 75 degrees on.
    """
    ring = [72.0 * index for index in range(5)]
    if settings.icosahedral_views == 12:
        upper = [(yaw, CORNER_LATITUDE) for yaw in ring]
        north = [*((yaw, pitch) for yaw, pitch in upper), (0.0, 90.0)]
    else:
        north = [(yaw + 36.0, pitch) for pitch in FACE_LATITUDES for yaw in ring]
    # The southern half is the northern one, turned by half a step.
    south = [(0.0 if pitch == 90 else yaw + 36.0, -pitch) for yaw, pitch in north]
    ordered = sorted(((yaw % 360, pitch) for yaw, pitch in (*north, *south)), key=_by_row)
    return _looking(ordered, settings.fov_deg, size)


def erp(settings: ImageProcessing, _size: tuple[int, int]) -> tuple[Shot, ...]:
    """The panorama itself as one view, in its own proportions and without a seam in its filter."""
    size = settings.image_size
    if size is not None and size[1] != 2 * size[0]:
        raise ConfigError(
            f"image_processing.image_size is {list(size)}, but crop_strategy erp shows the whole "
            "panorama in its own proportions, twice as wide as high: give a (height, width) such "
            f"as [{size[0]}, {2 * size[0]}], with a vision tower that reads it, or use "
            "crop_strategy resize, which distorts the panorama"
        )
    if settings.use_vision_processor:
        raise ConfigError(
            "image_processing.use_vision_processor is on, but crop_strategy erp makes the picture "
            "itself, with the panorama going on over its edges: set use_vision_processor to false"
        )
    return (Shot(WHOLE, Panorama(size)),)


def _looking(
    angles: list[tuple[float, float]], fov: float, size: tuple[int, int]
) -> tuple[Shot, ...]:
    """Return antialiased square views in some directions, (yaw, pitch) each."""
    return tuple(
        Shot(
            View(wrap_degrees(yaw), pitch, fov, fov),
            Perspective(Camera(wrap_degrees(yaw), pitch, fov, fov), size, antialias=True),
        )
        for yaw, pitch in angles
    )


def _by_row(place: tuple[float, float]) -> tuple[float, float]:
    yaw, pitch = place
    return round(pitch, 6), yaw
