"""Pixels that another decoder gives must be those that Pillow gives."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from panovlm.panorama.decode import decoded

NOISE = np.random.default_rng(5).integers(0, 256, (130, 260, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(NOISE[::20, ::20]).resize((260, 130), Image.Resampling.BICUBIC))
FACTORS = [1, 2, 4, 8]


def saved(picture: np.ndarray | Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    with pytest.MonkeyPatch.context() as patch:  # noise takes more than Pillow has room for
        patch.setattr(ImageFile, "MAXBLOCK", 2**20)
        image.save(file, kind, **options)
    return file.getvalue()


def opened(content: bytes, factor: int) -> Image.Image:
    file = Image.open(io.BytesIO(content))
    if factor > 1:
        file.draft(None, (file.width // factor, file.height // factor))
    return file


def by_pillow(content: bytes, factor: int = 1) -> np.ndarray:
    return np.array(ImageOps.exif_transpose(opened(content, factor)).convert("RGB"))


def found(content: bytes, factor: int = 1) -> np.ndarray:
    file = opened(content, factor)
    return decoded(file, file.fp, factor)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(8, 130), st.integers(8, 260)),
    factor=st.sampled_from(FACTORS),
    picture=st.sampled_from([NOISE, SMOOTH]),
    options=st.fixed_dictionaries(
        {
            "quality": st.integers(1, 100),
            "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
            "progressive": st.booleans(),
            "optimize": st.booleans(),
            "restart_marker_blocks": st.sampled_from([0, 1, 7]),
            "keep_rgb": st.booleans(),
        }
    ),
)
def test_jpeg_files_are_decoded_as_pillow_decodes_them(size, factor, picture, options):
    if options["keep_rgb"]:
        options = {**options, "subsampling": "4:4:4"}  # Pillow writes no other with it
    content = saved(picture[: size[0] // factor * factor, : size[1] // factor * factor], **options)
    assert np.array_equal(found(content, factor), by_pillow(content, factor))


@pytest.mark.parametrize("factor", [1, 2])
def test_pillow_decodes_no_ordinary_jpeg_file(factor, monkeypatch):
    content = saved(SMOOTH, exif=Image.Exif())
    expected = by_pillow(content, factor)
    monkeypatch.setattr(JpegImageFile, "load", lambda _: pytest.fail("Pillow decodes"))
    assert np.array_equal(found(content, factor), expected)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_files_that_are_turned(orientation, factor):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(NOISE[:128, :256], exif=exif)
    assert np.array_equal(found(content, factor), by_pillow(content, factor))


def test_the_first_of_several_pictures_in_a_file():
    others = [Image.fromarray(255 - SMOOTH)]
    content = saved(SMOOTH, "MPO", save_all=True, append_images=others)
    assert Image.open(io.BytesIO(content)).format == "MPO"
    assert np.array_equal(found(content), by_pillow(content))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_files_in_other_colours(mode, factor):
    content = saved(Image.fromarray(SMOOTH).convert(mode))
    assert np.array_equal(found(content, factor), by_pillow(content, factor))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_png_files_of_every_mode(mode):
    grey = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
    content = saved(grey if mode == "I;16" else Image.fromarray(SMOOTH).convert(mode), "PNG")
    expected = np.stack([NOISE[..., 0]] * 3, -1) if mode == "I;16" else by_pillow(content)
    assert np.array_equal(found(content), expected)


def outcome(read, content: bytes, factor: int) -> np.ndarray | str:
    try:
        return read(content, factor)
    except (OSError, SyntaxError) as error:
        return str(error).split(" <")[0]  # what follows is a place in memory


def same(a: np.ndarray | str, b: np.ndarray | str) -> bool:
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@settings(max_examples=60, deadline=None)
@given(
    share=st.floats(0, 1),
    ended=st.booleans(),
    progressive=st.booleans(),
    factor=st.sampled_from([1, 2]),
)
def test_cut_jpeg_files_fail_as_pillow_fails(share, ended, progressive, factor):
    """With an end put where they were cut, the decoder takes the rest for grey."""
    content = saved(NOISE, progressive=progressive)
    content = content[: int(len(content) * share)] + (b"\xff\xd9" if ended else b"")
    assert same(outcome(found, content, factor), outcome(by_pillow, content, factor))


@settings(max_examples=300, deadline=None)
@given(
    damage=st.lists(
        st.tuples(st.floats(0, 0.999), st.one_of(st.just(255), st.integers(0, 255))),
        min_size=1,
        max_size=4,
    ),
    header=st.booleans(),
    restart=st.sampled_from([0, 3]),
    factor=st.sampled_from([1, 2]),
)
def test_damaged_jpeg_files_give_what_pillow_gives(damage, header, restart, factor):
    """Among them 255, which begins a mark: Pillow reports those that cannot be, cv2 does not."""
    content = bytearray(saved(NOISE, restart_marker_blocks=restart))
    reach = 700 if header else len(content)
    for share, value in damage:
        content[int(reach * share)] = value
    content = bytes(content)
    assert same(outcome(found, content, factor), outcome(by_pillow, content, factor))
