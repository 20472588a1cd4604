"""How a picture shows the sphere: all of it, a declared part, or as the faces of a cube."""

from __future__ import annotations

from typing import Literal

from panovlm.config.base import Field, StrictModel

Layout = Literal["erp", "cubemap_row", "cubemap_column", "cubemap_cross", "cubemap_cross_upright"]

FACES = "FRBLUD"
"""Front, right, back, left, up, down."""


class ImageInput(StrictModel):
    """How pictures show the sphere. Nothing is guessed from a picture's shape.

    Every row of a table can say it for its own picture, in the columns (or keys of JSON)
    ``image_layout``, ``image_faces``, ``image_hfov``, ``image_vfov``, ``image_yaw`` and
    ``image_pitch``.
    """

    layout: Layout = "erp"
    """``erp``: equirectangular. The others are cubes: six faces in a ``cubemap_row`` (6 x 1) or
    ``cubemap_column`` (1 x 6), or a ``cubemap_cross`` (4 x 3: up; left, front, right, back; down)
    or ``cubemap_cross_upright`` (3 x 4: up; left, front, right; down; back, upside down)."""
    faces: str = FACES
    """Order of the faces of a row (from the left) or column (from the top): front, right, back,
    left, up, down by their first letters. Side faces stand upright; the lower edge of up and the
    upper edge of down meet the front."""
    hfov: float | None = Field(default=None, gt=0, le=360)
    """Degrees of yaw that an equirectangular picture shows; unset: its GPano metadata, else all."""
    vfov: float | None = Field(default=None, gt=0, le=180)
    """Degrees of pitch that it shows; given together with ``hfov``."""
    yaw: float = Field(default=0, ge=-360, le=360)
    """Yaw of the middle of such a part, in degrees to the right."""
    pitch: float = Field(default=0, ge=-90, le=90)
    """Pitch of the middle of such a part, in degrees upwards."""

    def _check(self) -> None:
        if sorted(self.faces) != sorted(FACES):
            raise ValueError(
                f"faces is {self.faces!r}, expected each of the letters of {FACES} once, in the "
                "order of the picture"
            )
        if self.faces != FACES and self.layout not in ("cubemap_row", "cubemap_column"):
            raise ValueError(
                f"faces gives the order of a cubemap_row or cubemap_column, but layout is "
                f"{self.layout}; take one of the two away"
            )
        if (self.hfov is None) != (self.vfov is None):
            raise ValueError("hfov and vfov go together, and one of them is missing")
        if self.hfov is None and (self.yaw or self.pitch):
            raise ValueError("yaw and pitch say where a part lies; give hfov and vfov with them")
        if self.vfov is not None:
            self._check_part(self.vfov)

    def _check_part(self, vfov: float) -> None:
        if self.layout != "erp":
            raise ValueError(
                f"hfov and vfov are those of a part of an equirectangular panorama, but layout is "
                f"{self.layout}, which shows the whole sphere"
            )
        top, bottom = self.pitch + vfov / 2, self.pitch - vfov / 2
        # A millionth of a degree is the rounding of whoever wrote it.
        if top > 90 + 1e-6 or bottom < -90 - 1e-6:
            raise ValueError(
                f"vfov {vfov:g} about pitch {self.pitch:g} reaches from {bottom:g} to {top:g} "
                "degrees, beyond a pole"
            )

    @property
    def is_plain(self) -> bool:
        """Whether nothing is declared: the picture and its GPano metadata say all."""
        return self == PLAIN

    def __str__(self) -> str:
        """Say what is declared, such as ``layout=cubemap_row faces=RLUDFB``."""
        declared = self.model_dump(exclude_defaults=True)
        return " ".join(f"{name}={value}" for name, value in declared.items())


PLAIN = ImageInput()
