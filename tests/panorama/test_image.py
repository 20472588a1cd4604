"""Reading of picture files of many kinds, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from panovlm.errors import DataError
from panovlm.panorama.image import check_panorama, read_panorama

PIXELS = np.random.default_rng(3).integers(0, 256, (60, 120, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(PIXELS[::20, ::20]).resize((120, 60), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("webp", {"lossless": True})])
def test_lossless_files_come_back_exactly(tmp_path, suffix, options):
    path = tmp_path / f"panorama.{suffix}"
    Image.fromarray(PIXELS).save(path, **options)
    found = read_panorama(path)
    assert found.dtype == np.uint8
    assert np.array_equal(found, PIXELS)
    assert np.array_equal(read_panorama(str(path)), PIXELS)


def test_jpeg(tmp_path):
    Image.fromarray(SMOOTH).save(tmp_path / "a.jpg", quality=95)
    difference = np.abs(read_panorama(tmp_path / "a.jpg").astype(int) - SMOOTH)
    assert difference.mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """The file holds the picture as the camera was held; reading puts it upright again."""
    as_held = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(as_held)).save(path, exif=exif)
    assert np.array_equal(read_panorama(path), PIXELS)


def test_transparency_is_dropped(tmp_path):
    alpha = np.zeros((60, 120, 1), np.uint8)
    Image.fromarray(np.concatenate([PIXELS, alpha], axis=2)).save(tmp_path / "a.png")
    assert np.array_equal(read_panorama(tmp_path / "a.png"), PIXELS)


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = PIXELS[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey, 255 - grey], axis=-1)).save(tmp_path / "grey-alpha.png")
    for name in ("grey.png", "grey-alpha.png"):
        assert np.array_equal(read_panorama(tmp_path / name), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["P", "CMYK"])
def test_other_colour_models_become_rgb(tmp_path, mode):
    image = Image.fromarray(SMOOTH).convert(mode)
    path = tmp_path / ("a.png" if mode == "P" else "a.tiff")
    image.save(path)
    assert np.array_equal(read_panorama(path), np.asarray(image.convert("RGB")))


def test_sixteen_bit_pictures_are_scaled_to_eight(tmp_path):
    deep = np.random.default_rng(4).integers(0, 65536, (60, 120, 3), dtype=np.uint16)
    deep[0, 0], deep[0, 1] = 0, 65535
    cv2.imwrite(str(tmp_path / "colour.png"), deep)  # cv2 writes BGR
    colour = read_panorama(tmp_path / "colour.png")
    assert np.abs(colour - deep[..., ::-1] / 257).max() <= 1
    cv2.imwrite(str(tmp_path / "grey.png"), deep[..., 0])
    grey = read_panorama(tmp_path / "grey.png")
    assert np.abs(grey - deep[..., :1] / 257).max() <= 0.5
    assert grey[0, 0].tolist() == [0, 0, 0]
    assert grey[0, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_cut_off_file_is_an_error(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(PIXELS).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=rf"cannot read the panorama .*cut\.{suffix}: \w+"):
        read_panorama(path)


def test_a_damaged_png_is_an_error(tmp_path):
    path = tmp_path / "damaged.png"
    Image.fromarray(PIXELS).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged\.png"):
        read_panorama(path)


@pytest.mark.parametrize(
    ("name", "content"), [("empty.jpg", b""), ("text.png", b"no picture\n" * 9)]
)
def test_what_is_no_picture_is_an_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: cannot identify"):
        read_panorama(tmp_path / name)


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jpg: no such file"):
        read_panorama(tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match="cannot read the panorama"):
        read_panorama(tmp_path)


def test_pixels_without_defined_white_are_an_error(tmp_path):
    Image.fromarray(np.ones((60, 120), np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(DataError, match=r"depth\.tiff: its pixels are 32-bit"):
        read_panorama(tmp_path / "depth.tiff")


@pytest.mark.parametrize(("width", "height"), [(99, 50), (100, 49)])
def test_small_pictures_are_an_error(tmp_path, width, height):
    path = Path(tmp_path / "small.png")
    Image.new("RGB", (width, height)).save(path)
    with pytest.raises(
        DataError, match=f"small.png has {width} x {height} pixels; at least 100 x 50"
    ):
        read_panorama(path)


@pytest.mark.parametrize(("width", "height", "enough"), [(104, 56, True), (96, 56, False)])
def test_the_least_size_is_that_of_the_file_however_it_is_decoded(tmp_path, width, height, enough):
    path = Path(tmp_path / "small.jpg")
    Image.new("RGB", (width, height), "red").save(path)
    if enough:
        assert read_panorama(path, lambda height, width: 2).shape == (height // 2, width // 2, 3)
    else:
        with pytest.raises(DataError, match=f"small.jpg has {width} x {height} pixels"):
            read_panorama(path, lambda height, width: 2)


def test_the_smallest_picture_is_read(tmp_path):
    Image.new("RGB", (100, 50), "red").save(tmp_path / "a.png")
    assert read_panorama(tmp_path / "a.png")[49, 99].tolist() == [255, 0, 0]


class TestCheck:
    """A look at a file finds what reading it finds, but for damage in its middle."""

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
    def test_a_whole_picture(self, suffix, tmp_path):
        Image.new("RGB", (200, 100), (9, 9, 9)).save(tmp_path / f"a.{suffix}")
        check_panorama(tmp_path / f"a.{suffix}")

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
    def test_a_picture_that_is_cut_off(self, suffix, tmp_path):
        noise = np.random.default_rng(1).integers(0, 256, (100, 200, 3), dtype=np.uint8)
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(DataError, match="cannot read the panorama"):
            check_panorama(path)

    def test_no_picture(self, tmp_path):
        (tmp_path / "a.jpg").write_text("words")
        (tmp_path / "b.jpg").touch()
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            with pytest.raises(DataError, match=f"cannot read the panorama .*{name}"):
                check_panorama(tmp_path / name)

    def test_a_picture_that_is_too_small(self, tmp_path):
        Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
        with pytest.raises(DataError, match="at least 100 x 50"):
            check_panorama(tmp_path / "a.png")

    def test_bytes_after_the_end_do_no_harm(self, tmp_path):
        path = tmp_path / "a.jpg"
        Image.new("RGB", (200, 100)).save(path)
        path.write_bytes(path.read_bytes() + b"appended")
        check_panorama(path)
