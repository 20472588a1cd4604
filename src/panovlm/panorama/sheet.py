"""Contact sheet: a panorama with the outlines of its views, and below the views themselves."""

from __future__ import annotations

import colorsys
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from panovlm.config.schema import ImageProcessing
from panovlm.panorama.cuts import Box, Cut, Letterbox, Panorama, Pixels, Region, resize
from panovlm.panorama.geometry import Camera, erp_coordinates, ray_angles, rotation
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.shots import View
from panovlm.panorama.views import shots_of

SHEET_WIDTH = 1200
MARGIN = 16
TEXT_HEIGHT = 15
CELL_WIDTHS = (150, 280)
"""Smallest and largest width of a view on the sheet, in pixels."""
MARK_RADIUS = 11
BACKGROUND = (250, 250, 250)
INK = (40, 40, 40)
EDGE_POINTS = 64
"""Points along one edge of an outline."""

Colour = tuple[int, int, int]
Line = NDArray[np.floating]
"""Points [n, 2] of an outline: x, y in pixels of the panorama."""


def contact_sheet(erp: NDArray[np.uint8], settings: ImageProcessing) -> Image.Image:
    """Draw what the model sees of a panorama.

    On top the panorama with the outlines of the views, numbered in the model's order; below, the
    views with their number, yaw, pitch and field of view.

    Args:
        erp: Panorama [H, W, 3], RGB, 0 to 255.
        settings: How it becomes views; ``image_size`` must be set.

    Returns:
        An RGB picture 1200 pixels wide.

    Raises:
        ConfigError: The settings cannot be worked with.
        DataError: The panorama is not such an array, or too small or large to be cut.
    """
    pipeline = ViewPipeline(settings)
    pictures = pipeline.render(erp)
    overview = _overview(erp, [shot.cut for shot in shots_of(settings)])
    columns = _columns(len(pictures))
    cell_width = (SHEET_WIDTH - MARGIN) // columns - MARGIN
    shown_width = min(cell_width, CELL_WIDTHS[1])
    shown_height = round(shown_width * pictures.shape[1] / pictures.shape[2])
    cell_height = shown_height + 2 * TEXT_HEIGHT + MARGIN
    rows = -(-len(pictures) // columns)
    top = overview.height + 2 * MARGIN
    sheet = Image.new("RGB", (SHEET_WIDTH, top + rows * cell_height + MARGIN), BACKGROUND)
    sheet.paste(overview, (MARGIN, MARGIN))
    draw = ImageDraw.Draw(sheet)
    for number, (view, picture) in enumerate(zip(pipeline.views, pictures, strict=True)):
        x = MARGIN + number % columns * (cell_width + MARGIN)
        y = top + number // columns * cell_height
        # Pixels enlarged one by one, so that the sheet shows them and not an interpolation.
        enlarge = picture.shape[1] < shown_width
        filter_ = Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS
        shown = Image.fromarray(resize(picture, (shown_height, shown_width), filter_))
        sheet.paste(shown, (x, y))
        frame = (x - 2, y - 2, x + shown_width + 1, y + shown_height + 1)
        draw.rectangle(frame, outline=_colour(number, len(pictures)), width=2)
        draw.text((x, y + shown_height + 3), _caption(number, view), fill=INK, font=_font())
    return sheet


def _columns(count: int) -> int:
    """Return how many views stand side by side: full rows of cells that are not too narrow."""
    most = (SHEET_WIDTH - MARGIN) // (CELL_WIDTHS[0] + MARGIN)
    fewest = (SHEET_WIDTH - MARGIN) // (CELL_WIDTHS[1] + MARGIN)
    return min(range(fewest, most + 1), key=lambda columns: (-count % columns, columns))


def _caption(number: int, view: View) -> str:
    """Return the two lines under a view."""
    if view.is_global:
        return f"{number}  whole panorama\n{view.hfov:g}° x {view.vfov:g}°"
    return (
        f"{number}  yaw {view.yaw:+.0f}°  pitch {view.pitch:+.0f}°\n"
        f"{view.hfov:.0f}° x {view.vfov:.0f}°"
    )


def _overview(erp: Pixels, cuts: list[Cut]) -> Image.Image:
    """Draw the outlines of all cuts but the whole panorama on the panorama."""
    height, width = erp.shape[:2]
    shown_width = SHEET_WIDTH - 2 * MARGIN
    scale = shown_width / width
    shown = resize(erp, (round(height * scale), shown_width), Image.Resampling.LANCZOS)
    image = Image.fromarray(shown)
    draw = ImageDraw.Draw(image)
    marks: dict[int, tuple[float, float]] = {}
    for number, cut in enumerate(cuts):
        outline = _outline(cut, width, height)
        if outline is None:
            continue
        line, centre = outline
        for part in _split_at_seam(line, width):
            points = [(x, y) for x, y in part * scale]
            draw.line(points, fill=_colour(number, len(cuts)), width=2)
        x, y = centre[0] % width * scale, centre[1] * scale
        x = min(max(x, MARK_RADIUS), shown_width - 1 - MARK_RADIUS)  # whole, also on the seam
        while any(math.dist((x, y), mark) < 2 * MARK_RADIUS for mark in marks.values()):
            y += 2 * MARK_RADIUS
        marks[number] = (x, y)
    for number, (x, y) in marks.items():
        draw.circle((x, y), MARK_RADIUS, fill=_colour(number, len(cuts)))
        draw.text((x, y), str(number), fill=(0, 0, 0), font=_font(), anchor="mm")
    return image


def _outline(cut: Cut, width: int, height: int) -> tuple[Line, Line] | None:
    """Return the closed outline of a cut and its centre [2], or None for the whole panorama."""
    if isinstance(cut, Letterbox | Panorama):
        return None
    if isinstance(cut, Region):
        box = cut.box(width, height)
        if box == Box(0, 0, width, height):
            return None
        x = np.linspace(box.left, box.right, EDGE_POINTS)
        y = np.linspace(box.top, box.bottom, EDGE_POINTS)
        return _rectangle(x, y), np.array([x.mean(), y.mean()])
    camera = cut.camera
    right = np.tan(np.deg2rad(camera.hfov) / 2) * np.linspace(-1, 1, EDGE_POINTS)
    up = np.tan(np.deg2rad(camera.vfov) / 2) * np.linspace(1, -1, EDGE_POINTS) * cut.kept_rows
    line = _seen(camera, _rectangle(right, up), width, height)
    return line, _seen(camera, np.zeros((1, 2)), width, height)[0]


def _rectangle(x: Line, y: Line) -> Line:
    """Return points [4 n, 2] around the rectangle over the positions x [n] and y [n]."""
    n = len(x)
    return np.concatenate(
        [
            np.stack([x, np.full(n, y[0])], 1),
            np.stack([np.full(n, x[-1]), y], 1),
            np.stack([x[::-1], np.full(n, y[-1])], 1),
            np.stack([np.full(n, x[0]), y[::-1]], 1),
        ]
    )


def _seen(camera: Camera, points: Line, width: int, height: int) -> Line:
    """Return where points [n, 2] of a camera's image plane lie in the panorama."""
    rays = np.concatenate([points, np.ones((len(points), 1))], 1)
    angles = ray_angles(rays @ rotation(camera.yaw, camera.pitch))
    return np.stack(erp_coordinates(*angles, height, width), 1)


def _split_at_seam(line: Line, width: int) -> list[Line]:
    """Cut a line wherever it leaves the panorama on one side and comes back on the other."""
    line = np.stack([line[:, 0] % width, line[:, 1]], 1)
    jumps = np.flatnonzero(np.abs(np.diff(line[:, 0])) > width / 2) + 1
    return [part for part in np.split(line, jumps) if len(part) > 1]


def _colour(number: int, count: int) -> Colour:
    """Return the colour of a view: hues spread over all views."""
    red, green, blue = colorsys.hsv_to_rgb(number / count, 0.65, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font."""
    return ImageFont.load_default(12)
