"""Draws the pictures of README.md and docs/: ``python docs/images/make.py``.

All of them show one synthetic room. They are made by the package itself, so that they change when
the views do; run this again after a change of the crop strategies.
"""

from __future__ import annotations

import colorsys
from pathlib import Path
from random import Random
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from panovlm.config.schema import CropStrategy, ImageProcessing
from panovlm.data.synthetic.render import render
from panovlm.data.synthetic.scene import draw_scene
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.sheet import BACKGROUND, INK, MARGIN, SHEET_WIDTH, contact_sheet

FOLDER = Path(__file__).parent
SCENE = "docs/245"
"""Seed of a room with five solids, one of them across the seam."""
PANORAMA_WIDTH = 2048
SHOWN = (0.16, 0.84)
"""Part of the panorama's height that the README shows: above and below is nothing to see."""
QUALITY = 88


def main() -> None:
    """Write every picture."""
    scene = draw_scene(Random(SCENE))
    erp = render(scene, PANORAMA_WIDTH)
    _save(overview(erp, ImageProcessing(image_size=512)), "views.jpg")
    for strategy in get_args(CropStrategy):
        size = (336, 672) if strategy == "erp" else 336
        settings = ImageProcessing(
            crop_strategy=strategy, image_size=size, poles=True, icosahedral_views=12
        )
        _save(contact_sheet(erp, settings), f"sheet-{strategy.replace('_', '-')}.jpg")


def overview(erp: NDArray[np.uint8], settings: ImageProcessing) -> Image.Image:
    """Return a low picture: the panorama with the outlines of its views, and the tiles in a row."""
    pipeline = ViewPipeline(settings)
    sheet = contact_sheet(erp, settings)
    height = (SHEET_WIDTH - 2 * MARGIN) // 2
    top, bottom = (round(part * height) for part in SHOWN)
    tiles = [i for i, view in enumerate(pipeline.views) if not view.is_global]
    step = (SHEET_WIDTH - MARGIN) / len(tiles)
    side = int(step) - MARGIN
    line = 20
    picture = Image.new("RGB", (SHEET_WIDTH, bottom - top + side + line + 3 * MARGIN), BACKGROUND)
    picture.paste(sheet.crop((0, MARGIN + top, SHEET_WIDTH, MARGIN + bottom)), (0, MARGIN))
    draw = ImageDraw.Draw(picture)
    pictures = pipeline.render(erp)
    y = bottom - top + 2 * MARGIN
    # From left to right as in the panorama, so that a tile stands under what it shows.
    for place, number in enumerate(sorted(tiles, key=lambda i: pipeline.views[i].yaw)):
        x = MARGIN + round(place * step)
        tile = Image.fromarray(pictures[number]).resize((side, side), Image.Resampling.LANCZOS)
        picture.paste(tile, (x, y))
        frame = (x - 3, y - 3, x + side + 2, y + side + 2)
        draw.rectangle(frame, outline=_hue(number, len(pipeline.views)), width=3)
        view = pipeline.views[number]
        text = f"{number}   yaw {view.yaw:+.0f}°   pitch {view.pitch:+.0f}°"
        font = ImageFont.load_default(12)
        draw.text((x + side / 2, y + side + 8), text, fill=INK, font=font, anchor="ma")
    return picture


def _hue(number: int, count: int) -> tuple[int, ...]:
    """Return the colour in which the contact sheet outlines a view."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number / count, 0.65, 0.95))


def _save(picture: Image.Image, name: str) -> None:
    picture.save(FOLDER / name, quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
