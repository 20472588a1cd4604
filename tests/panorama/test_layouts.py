"""Cubes and declared parts: the same panorama as another library makes, or one clear refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import py360convert
import pytest
from PIL import Image

from panovlm.config.image_input import FACES, ImageInput
from panovlm.config.problems import ValidationError
from panovlm.errors import DataError
from panovlm.panorama.cubemap import cube_to_erp
from panovlm.panorama.image import check_panorama, panorama_size, read_panorama
from panovlm.panorama.picture import Picture

SIDE = 48


def smooth(height: int = 2 * SIDE, width: int = 4 * SIDE) -> np.ndarray:
    """Return a panorama that differs everywhere and changes slowly, over seam and poles too."""
    longitude = (np.arange(width) + 0.5) / width * 2 * np.pi - np.pi
    latitude = np.pi / 2 - (np.arange(height) + 0.5) / height * np.pi
    level, up = np.cos(latitude)[:, None], np.sin(latitude)[:, None]
    x, z = level * np.sin(longitude), level * np.cos(longitude)
    y = np.broadcast_to(up, x.shape)
    return np.rint(np.stack([x, y, z], -1) * 120 + 127).astype(np.uint8)


def faces() -> dict[str, np.ndarray]:
    return py360convert.e2c(smooth(8 * SIDE, 16 * SIDE), face_w=SIDE, cube_format="dict")


def pictures() -> dict[str, tuple[np.ndarray, ImageInput]]:
    cube = faces()
    return {
        "row": (
            py360convert.cube_dict2h(cube),
            ImageInput(layout="cubemap_row"),
        ),
        "row in another order": (
            np.concatenate([cube[name] for name in "RLUDFB"], axis=1),
            ImageInput(layout="cubemap_row", faces="RLUDFB"),
        ),
        "column": (
            np.concatenate([cube[name] for name in FACES]),
            ImageInput(layout="cubemap_column"),
        ),
        "cross": (
            py360convert.cube_h2dice(py360convert.cube_dict2h(cube)),
            ImageInput(layout="cubemap_cross"),
        ),
    }


@pytest.mark.parametrize("name", pictures())
def test_a_cube_is_the_panorama_it_was_made_of(name: str) -> None:
    pixels, given = pictures()[name]
    found = cube_to_erp(pixels, given)
    assert found.shape == (2 * SIDE, 4 * SIDE, 3)
    # py360convert places pixels by another convention, up to a pixel apart: a few grey
    # values here. A face in a wrong place or orientation would be off by tens.
    assert np.abs(found.astype(int) - smooth()).max() <= 4
    cube = py360convert.cube_dict2h(faces())
    own = py360convert.c2e(cube, 2 * SIDE, 4 * SIDE, cube_format="horizon")
    assert np.abs(found.astype(int) - own).max() <= 6


def test_a_cross_on_its_foot_has_its_back_upside_down() -> None:
    cube = faces()
    picture = np.zeros((4 * SIDE, 3 * SIDE, 3), np.uint8)
    places = {"U": (0, 1), "L": (1, 0), "F": (1, 1), "R": (1, 2), "D": (2, 1)}
    for name, (row, column) in places.items():
        picture[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = cube[name]
    picture[3 * SIDE :, SIDE : 2 * SIDE] = np.rot90(cube["B"], 2)
    found = cube_to_erp(picture, ImageInput(layout="cubemap_cross_upright"))
    assert np.array_equal(found, cube_to_erp(*pictures()["row"]))


def test_rays_hit_the_pixels_that_the_formula_names() -> None:
    """A cube whose pixels are their own directions gives a panorama of directions."""
    side = 64
    inside = (np.arange(side) + 0.5) / side * 2 - 1
    u, v = np.meshgrid(inside, inside)
    one = np.ones_like(u)
    directions = {
        "F": (u, -v, one), "R": (one, -v, -u), "B": (-u, -v, -one), "L": (-one, -v, u),
        "U": (u, one, v), "D": (u, -one, -v),
    }  # fmt: skip
    row = [np.stack(directions[name], -1) for name in FACES]
    pixels = np.concatenate([face / np.linalg.norm(face, axis=-1)[..., None] for face in row], 1)
    found = cube_to_erp(
        np.rint(pixels * 120 + 127).astype(np.uint8), ImageInput(layout="cubemap_row")
    )
    assert np.abs(found.astype(int) - smooth(2 * side, 4 * side)).max() <= 1


def saved(path: Path, pixels: np.ndarray, given: ImageInput, **options: object) -> Picture:
    Image.fromarray(pixels).save(path, **options)
    return Picture(path, given)


def test_a_declared_part_lies_where_it_was_cut(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (180, 360, 3), dtype=np.uint8)
    # 120 degrees about yaw 150: over the seam. 60 degrees about pitch 30.
    part = np.roll(whole, -270, axis=1)[30:90, :120]
    picture = saved(tmp_path / "a.png", part, ImageInput(hfov=120, vfov=60, yaw=150, pitch=30))
    found = read_panorama(picture)
    expected = np.zeros_like(whole)
    expected[30:90, 270:] = whole[30:90, 270:]
    expected[30:90, :30] = whole[30:90, :30]
    assert np.array_equal(found, expected)
    assert panorama_size(picture) == (360, 180)
    check_panorama(picture)


def test_a_whole_that_is_declared_is_itself(tmp_path: Path) -> None:
    pixels = smooth()
    picture = saved(tmp_path / "a.png", pixels, ImageInput(hfov=360, vfov=180))
    assert np.array_equal(read_panorama(picture), pixels)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hfov": 90}, "go together"),
        ({"yaw": 10}, "give hfov and vfov"),
        ({"hfov": 400, "vfov": 90}, "at most 360"),
        ({"hfov": 90, "vfov": 100, "pitch": 50}, "from 0 to 100 degrees, beyond a pole"),
        ({"hfov": 90, "vfov": 45, "layout": "cubemap_row"}, "shows the whole sphere"),
        ({"layout": "cubemap_row", "faces": "FRBLUU"}, "each of the letters"),
        ({"layout": "cubemap_cross", "faces": "RLUDFB"}, "take one of the two away"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ImageInput.model_validate(values)


@pytest.mark.parametrize("shape", [(100, 500), (60, 360), (100, 601)])
def test_a_picture_of_another_shape_is_refused_by_all_readers(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    if shape == (60, 360):
        given = ImageInput(layout="cubemap_cross")
    else:
        given = ImageInput(layout="cubemap_row")
    picture = saved(tmp_path / "a.png", np.zeros((*shape, 3), np.uint8), given)
    for read in (read_panorama, check_panorama, panorama_size):
        with pytest.raises(DataError, match=r"a\.png.*square faces; mend the declared layout"):
            read(picture)


def test_metadata_of_its_own_beside_a_declaration_are_refused(tmp_path: Path) -> None:
    names = ["FullPanoWidthPixels", "FullPanoHeightPixels", "CroppedAreaImageWidthPixels"]
    packet = "".join(f' GPano:{name}="400"' for name in names)
    given = ImageInput(hfov=90, vfov=45)
    pixels = np.zeros((60, 120, 3), np.uint8)
    picture = saved(tmp_path / "a.webp", pixels, given, lossless=True, xmp=f"<x{packet}>".encode())
    with pytest.raises(DataError, match=r"hfov=90.0 vfov=45.0 is declared, but .* GPano"):
        read_panorama(picture)
    with pytest.raises(DataError, match="GPano"):
        check_panorama(picture)


def test_a_part_of_something_enormous_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((200, 200, 3), np.uint8)
    picture = saved(tmp_path / "a.png", pixels, ImageInput(hfov=0.5, vfov=0.5))
    with pytest.raises(DataError, match="would have 144000 x 72000 pixels"):
        read_panorama(picture)


def test_faces_blend_at_their_edges_and_nowhere_else() -> None:
    shades = {"F": 0, "R": 50, "B": 100, "L": 150, "U": 200, "D": 250}
    row = np.concatenate([np.full((SIDE, SIDE, 3), shades[name], np.uint8) for name in FACES], 1)
    found = cube_to_erp(row, ImageInput(layout="cubemap_row"))[..., 0]
    rays = smooth().astype(float) - 127
    largest, second = np.sort(np.abs(rays), axis=-1)[..., [-1, -2]].transpose(2, 0, 1)
    at_an_edge = second / largest > 1 - 3 / SIDE
    blended = ~np.isin(found, list(shades.values()))
    assert blended.any()
    assert not (blended & ~at_an_edge).any()
