"""Parts of panoramas, by their GPano metadata."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from panovlm.errors import DataError
from panovlm.panorama.image import read_panorama

PART = np.random.default_rng(5).integers(0, 256, (60, 120, 3), dtype=np.uint8)
NAMES = (
    "FullPanoWidthPixels", "FullPanoHeightPixels", "CroppedAreaImageWidthPixels",
    "CroppedAreaImageHeightPixels", "CroppedAreaLeftPixels", "CroppedAreaTopPixels",
)  # fmt: skip


def written(path, values, *, elements=False, projection="equirectangular"):
    """Write the part as PNG with an XMP packet, and return the file."""
    fields = dict(zip(NAMES, values, strict=False)) | {"ProjectionType": projection}
    if elements:
        body = ">" + "".join(f"<GPano:{k}>{v}</GPano:{k}>" for k, v in fields.items())
    else:
        body = "".join(f' GPano:{k}="{v}"' for k, v in fields.items()) + ">"
    packet = f"<rdf:Description xmlns:GPano='http://ns.google.com/photos/1.0/panorama/'{body}"
    Image.fromarray(PART).save(path, "WEBP", lossless=True, xmp=packet.encode())
    return path


@pytest.mark.parametrize("elements", [False, True])
def test_a_part_is_put_into_its_place(tmp_path, elements):
    path = written(tmp_path / "a.webp", (400, 200, 120, 60, 30, 70), elements=elements)
    found = read_panorama(path)
    assert found.shape == (200, 400, 3)
    assert np.array_equal(found[70:130, 30:150], PART)
    found[70:130, 30:150] = 0
    assert not found.any()


def test_a_picture_that_was_resized_keeps_its_proportions(tmp_path):
    path = written(tmp_path / "a.webp", (4000, 2000, 1200, 600, 300, 700))
    assert np.array_equal(read_panorama(path)[70:130, 30:150], PART)


def test_a_whole_panorama_stays_as_it_is(tmp_path):
    path = written(tmp_path / "a.webp", (120, 60, 120, 60, 0, 0))
    assert np.array_equal(read_panorama(path), PART)
    assert np.array_equal(read_panorama(written(tmp_path / "b.webp", ())), PART)


@pytest.mark.parametrize(
    ("values", "projection", "told"),
    [
        ((400, 200, 120, 60, 300, 70), "equirectangular", "put 120 x 60 pixels at 300, 70"),
        ((400, 200, 120), "equirectangular", "lack CroppedAreaImageHeightPixels"),
        ((400, 200, 120, 60, 30, 70), "cylindrical", "say cylindrical"),
        ((4e6, 2e6, 120, 60, 30, 70), "equirectangular", "would have 4000000 x 2000000"),
        ((400, 200, "wide", 60, 30, 70), "equirectangular", "could not convert"),
    ],
)
def test_what_cannot_be_is_an_error(tmp_path, values, projection, told):
    path = written(tmp_path / "bad.webp", values, projection=projection)
    with pytest.raises(DataError, match=rf"bad\.webp: .*{told}"):
        read_panorama(path)
