"""The tower's image processor against that of transformers, in every pixel."""

from __future__ import annotations

import numpy as np
import py360convert
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil

from panovlm.config.schema import ImageProcessing
from panovlm.errors import ConfigError
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.processor import read_processor
from panovlm.panorama.views import STRATEGIES

NOISE = np.random.default_rng(2).integers(0, 256, (151, 300, 3), dtype=np.uint8)
PROCESSORS = {
    "siglip": SiglipImageProcessorPil(size={"height": 40, "width": 40}),
    "siglip-wide": SiglipImageProcessorPil(size={"height": 24, "width": 50}, resample=2),
    "clip": CLIPImageProcessorPil(
        size={"shortest_edge": 33}, crop_size={"height": 33, "width": 33}
    ),
    "dinov2": BitImageProcessorPil(
        size={"shortest_edge": 36}, crop_size={"height": 28, "width": 28}, do_convert_rgb=True
    ),
    "padded": CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 31, "width": 44}, resample=1
    ),
    "crop-only": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 40, "width": 25}),
    "raw": SiglipImageProcessorPil(
        size={"height": 8, "width": 9}, do_rescale=False, do_normalize=False, resample=0
    ),
    "unscaled": SiglipImageProcessorPil(size={"height": 8, "width": 9}, do_rescale=False),
    "not-normalised": SiglipImageProcessorPil(
        size={"height": 8, "width": 9}, do_normalize=False, rescale_factor=1 / 127.5
    ),
}


def pipeline(processor, strategy: str = "e2p", **fields) -> ViewPipeline:
    return ViewPipeline(
        ImageProcessing(
            crop_strategy=strategy,
            image_size=fields.pop("image_size", 48),
            use_vision_processor=True,
            vision_processor=processor.to_dict(),
            **fields,
        )
    )


def reference(processor, pictures: list[np.ndarray]) -> np.ndarray:
    images = [Image.fromarray(np.ascontiguousarray(picture)) for picture in pictures]
    return processor(images, return_tensors="np")["pixel_values"]


@pytest.mark.parametrize("name", sorted(PROCESSORS))
@settings(max_examples=8, deadline=None)
@given(size=st.tuples(st.integers(9, 90), st.integers(9, 90)))
def test_equals_transformers(name, size):
    processor = PROCESSORS[name]
    picture = NOISE[: size[0], : size[1]]
    tower = pipeline(processor)
    found = tower.normalise(read_processor(processor.to_dict()).resized(picture)[None])
    assert np.array_equal(found, reference(processor, [picture]))


def letterboxed(side: int) -> np.ndarray:
    """The noise, 300 x 151, in a black square."""
    high = round(151 * side / 300)
    square = np.zeros((side, side, 3), np.uint8)
    top = (side - high) // 2
    square[top : top + high] = np.asarray(
        Image.fromarray(NOISE).resize((side, high), Image.Resampling.BICUBIC)
    )
    return square


def test_anyres_e2p_goes_through_the_processor_as_in_the_original_system():
    tower = pipeline(
        PROCESSORS["siglip"], "anyres_e2p", overlap_ratio=0.0, fov_deg=90, anyres_patch_size=100
    )
    assert [view.yaw for view in tower.views[1:]] == [0, 90, -180, -90]
    tiles = [py360convert.e2p(NOISE, 90, 90 * n, 0, (672, 672)) for n in range(4)]
    expected = reference(PROCESSORS["siglip"], [letterboxed(100), *tiles])
    assert np.allclose(tower(NOISE), expected, atol=1.01 / 127.5)


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_anyres_goes_through_the_processor_unresized(name):
    bands = [NOISE[38:112, 50 * n : 50 * n + 50] for n in range(6)]
    expected = reference(PROCESSORS[name], [NOISE, *bands])
    assert np.array_equal(pipeline(PROCESSORS[name], "anyres")(NOISE), expected)


def test_cube_faces_go_through_the_processor_at_256():
    faces = [py360convert.e2p(NOISE, 90, yaw, 0, (256, 256)) for yaw in (0, 90, 180, -90)]
    expected = reference(PROCESSORS["clip"], faces)
    assert np.allclose(pipeline(PROCESSORS["clip"], "cubemap")(NOISE), expected, atol=1 / 50)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES.keys() - {"erp"}))
def test_every_strategy_gives_the_size_of_the_processor(strategy):
    tower = pipeline(PROCESSORS["siglip-wide"], strategy, anyres_patch_size=64)
    assert tower(NOISE).shape == (len(tower.views), 3, 24, 50)


def test_the_processor_normalises_whatever_the_settings_say():
    tower = pipeline(
        PROCESSORS["siglip"], normalize=False, image_mean=(0, 0, 0), image_std=(1, 1, 1)
    )
    assert np.array_equal(tower(NOISE), pipeline(PROCESSORS["siglip"])(NOISE))


def test_sizes_of_old_files_are_one_number():
    old_clip = {"size": 33, "crop_size": 33, "do_center_crop": True, "do_normalize": False}
    found = read_processor(old_clip).resized(NOISE)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 33}, crop_size={"height": 33, "width": 33}
    )
    expected = images(Image.fromarray(NOISE), do_rescale=False, do_normalize=False)["pixel_values"]
    assert np.array_equal(found.transpose(2, 0, 1), expected[0])
    old_vit = {"size": 33, "do_normalize": False}
    assert read_processor(old_vit).resized(NOISE).shape == (33, 33, 3)


def test_views_of_different_sizes_are_an_error():
    no_crop = CLIPImageProcessorPil(size={"shortest_edge": 20}, do_center_crop=False)
    with pytest.raises(ConfigError, match=r"different sizes .*\(20, 39\)"):
        pipeline(no_crop, "anyres")(NOISE)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_normalize": False}, "do_resize is on, but size missing"),
        ({"size": {"height": 8, "width": 8}}, "image_mean and image_std missing"),
        ({"size": {"longest_edge": 8}, "do_normalize": False}, "longest_edge"),
        ({"do_resize": False, "do_normalize": False, "do_center_crop": True}, "crop_size missing"),
        ({"size": {"shortest_edge": 0}, "do_normalize": False}, "at least 1"),
        ({"size": 8, "do_normalize": False, "resample": 17}, "resample"),
    ],
)
def test_a_configuration_that_says_too_little_or_too_much_is_an_error(config, message):
    with pytest.raises(ConfigError, match=message):
        read_processor(config)
