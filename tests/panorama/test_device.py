"""Views that torch cuts are those of the pipeline, to the last bit."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from panovlm.config.schema import CropStrategy, ImageProcessing
from panovlm.errors import ConfigError
from panovlm.panorama import device as device_module
from panovlm.panorama import projection
from panovlm.panorama.device import DeviceViews
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.taps import FILTERS, passes_between, through
from panovlm.panorama.uncut import Uncut, together, uncut

COLOURS = {"image_mean": (0.4, 0.5, 0.6), "image_std": (0.2, 0.3, 0.25)}
PROCESSORS: tuple[dict[str, Any], ...] = (
    {"size": {"height": 30, "width": 26}, "resample": 2},
    {"size": {"shortest_edge": 20}, "crop_size": 24, "do_center_crop": True, "resample": 3},
    {"do_resize": False, "crop_size": {"height": 50, "width": 20}, "do_center_crop": True},
)
PANORAMAS = ((50, 100), (151, 300), (200, 401), (512, 1024))
"""Coarser than the views; of odd sides; much finer than the views."""
EVERYWHERE = {
    "e2p": {},
    "cubemap": {},
    "anyres": {"anyres_max_patches": 15},
    "anyres_max": {"anyres_max_patches": 11, "fov_deg": 70},
    "anyres_e2p": {"fov_deg": 80},
    "e2p_sphere": {"pitch_rows": 3, "poles": True},
    "cubemap6": {},
    "icosahedral": {"icosahedral_views": 20},
}
"""Strategies with perspective views, so set that these look over the seam and, where they can, at
both poles."""


def pipeline(strategy: str, **changes: Any) -> ViewPipeline:
    given = {"image_size": (24, 24), **COLOURS, **EVERYWHERE[strategy], **changes}
    return ViewPipeline(ImageProcessing(crop_strategy=strategy, **given))


def noise(*size: int) -> np.ndarray:
    """A panorama of nothing but edges, with values at both ends of the range."""
    rng = np.random.default_rng(size)
    picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    picture[rng.random(size) < 0.2] = 255
    return picture


def assert_equal(
    made_by: ViewPipeline, panoramas: list[np.ndarray], device: str = "cpu"
) -> list[Uncut]:
    """Cut panoramas in one batch and compare them with the pipeline's views."""
    views = DeviceViews(made_by)
    batch = together([uncut(panorama, made_by) for panorama in panoramas])
    cut = views.cut([group.on(torch.device(device)) for group in batch])
    assert cut.dtype == torch.uint8
    rendered = np.stack([made_by.render(panorama) for panorama in panoramas])
    assert np.array_equal(cut.cpu().numpy(), rendered)
    normalised = views.normalise(cut).cpu().numpy()
    expected = np.stack([made_by(panorama) for panorama in panoramas])
    assert normalised.dtype == expected.dtype == np.float32
    assert np.array_equal(normalised, expected)
    return batch


@pytest.mark.parametrize("size", [(24, 24), (24, 40)])
@pytest.mark.parametrize("strategy", EVERYWHERE)
def test_equal_to_the_last_bit(strategy: str, size: tuple[int, int]) -> None:
    batch = assert_equal(pipeline(strategy, image_size=size), [noise(*size) for size in PANORAMAS])
    assert len(batch) == len(PANORAMAS)


@pytest.mark.parametrize("strategy", ["e2p", "e2p_sphere"])
def test_of_panoramas_that_loaders_read_in_another_order(strategy: str) -> None:
    large = noise(760, 1520)
    assert large[..., 0].size >= projection._LARGE
    assert_equal(pipeline(strategy, fov_deg=60), [large])


@pytest.mark.parametrize("rendering", ["good", "fast"])
@pytest.mark.parametrize(
    "strategy", ["cubemap", "anyres_e2p", "e2p_sphere", "cubemap6", "icosahedral"]
)
def test_of_smaller_panoramas(strategy: str, rendering: str) -> None:
    cut = pipeline(strategy, rendering=rendering)
    *_, small = assert_equal(cut, [noise(*size) for size in PANORAMAS])
    assert small.panoramas.shape[1] < 512
    assert small.supersample == (2 if rendering == "good" else 1)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("strategy", ["cubemap", "anyres_e2p", "e2p"])
def test_through_the_towers_processor(strategy: str, processor: dict[str, Any]) -> None:
    if strategy == "anyres_e2p" and not processor.get("do_resize", True):
        processor = {**processor, "crop_size": {"height": 700, "width": 20}}
    config = {**processor, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    made = pipeline(strategy, use_vision_processor=True, vision_processor=config)
    assert_equal(made, [noise(151, 300)])


def test_at_random() -> None:
    """Angles, sizes and panoramas as they come."""
    rng = np.random.default_rng(5)
    for _ in range(40):
        size = (int(rng.integers(8, 40)), int(rng.integers(8, 40)))
        height, width = (int(side) for side in rng.integers((50, 100), (160, 330)))
        settings = {
            "image_size": size,
            "fov_deg": float(rng.uniform(40, 130)),
            "overlap_ratio": float(rng.uniform(0, 0.6)),
            "pitch_rows": int(rng.integers(1, 3)),
            "poles": bool(rng.integers(2)),
        }
        if settings["pitch_rows"] == 2 and settings["fov_deg"] > 100:
            settings["overlap_ratio"] = 0.4
        for strategy in ("e2p_sphere", "e2p"):
            assert_equal(pipeline(strategy, **settings), [noise(height, width)])


def test_batches_keep_their_order_and_share_what_has_one_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many panoramas are read in one go."""
    sizes = [(50, 100), (64, 128), (50, 100), (60, 120), (64, 128), (50, 100)]
    panoramas = [noise(*size) + number for number, size in enumerate(sizes)]
    for at_once in (1, 9 * 24 * 24 * 2, 2**22):
        monkeypatch.setattr(device_module, "AT_ONCE", at_once)
        batch = assert_equal(pipeline("anyres_e2p"), [p.astype(np.uint8) for p in panoramas])
        assert [list(group.rows) for group in batch] == [[0, 2, 5], [1, 4], [3]]
        assert [len(group.panoramas) for group in batch] == [3, 2, 1]


def test_coordinates_are_kept_for_few_sizes() -> None:
    made, kept = pipeline("e2p"), device_module._points
    views = DeviceViews(made)
    views.cut([uncut(noise(50, 100), made)])
    kept.cache_clear()
    for _ in range(3):
        views.cut([uncut(noise(50, 100), made)])
    assert kept.cache_info()[:2] == (2, 1)
    for width in range(100, 120):
        views.cut([uncut(noise(50, width), made)])
    assert kept.cache_info().currsize == 8


def test_other_pixels_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single value that differs by one is enough; and again, whenever it is asked for."""
    made = pipeline("e2p")
    views, render = DeviceViews(made), made.render

    def off_by_one(erp: np.ndarray) -> np.ndarray:
        rendered = render(erp)
        rendered[-1, 3, 4, 1] ^= 1
        return rendered

    monkeypatch.setattr(made, "render", off_by_one)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"cut on cpu are not those .* use views_on loader"):
            views.cut([uncut(noise(50, 100), made)])


@pytest.mark.parametrize(
    ("strategy", "changes", "said"),
    [
        ("sliding_window", {}, "with crop_strategy sliding_window no view is perspective"),
        ("resize", {}, "with crop_strategy resize no view is perspective"),
        ("erp", {"image_size": (16, 32)}, "with crop_strategy erp no view is perspective"),
        ("anyres", {"anyres_max_patches": 8}, "with crop_strategy anyres no view is perspective"),
        ("e2p", {"rendering": "good"}, r"\(22, 24\) pixels are stretched to \(24, 24\)"),
        ("cubemap", {"rendering": "fast", "image_size": (8, 9)}, r"stretched to \(8, 9\)"),
        (
            "e2p",
            {
                "use_vision_processor": True,
                "vision_processor": {"size": 24, "resample": 0, "do_normalize": False},
            },
            "resizes views by its filter NEAREST",
        ),
    ],
)
def test_what_a_device_cannot_cut(strategy: str, changes: dict[str, Any], said: str) -> None:
    settings = ImageProcessing(**{"image_size": (24, 24), "crop_strategy": strategy, **changes})
    with pytest.raises(ConfigError, match=rf"^views_on is device, but .*{said}.*views_on loader"):
        DeviceViews(ViewPipeline(settings))


def test_every_strategy_is_tried() -> None:
    assert EVERYWHERE.keys() | {"sliding_window", "resize", "erp"} == set(get_args(CropStrategy))


@pytest.mark.parametrize("resample", FILTERS)
def test_resizing_is_pillows(resample: Image.Resampling) -> None:
    rng = np.random.default_rng(int(resample))
    for _ in range(40):
        given, wanted = ((int(a), int(b)) for a, b in rng.integers(1, 120, (2, 2)))
        pictures = rng.choice(np.array([0, 1, 127, 254, 255], np.uint8), (2, *given, 3))
        found = through(torch.from_numpy(pictures), passes_between(given, wanted, resample))
        for picture, made in zip(pictures, found, strict=True):
            expected = Image.fromarray(picture).resize(wanted[::-1], resample)
            assert np.array_equal(made.numpy(), np.asarray(expected))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rendering", ["exact", "good", "fast"])
@pytest.mark.parametrize("strategy", ["anyres_e2p", "e2p_sphere", "cubemap6", "icosahedral"])
def test_on_a_cuda_device(strategy: str, rendering: str) -> None:
    made = pipeline(strategy, rendering=rendering, image_size=(64, 64))
    assert_equal(made, [noise(*size) for size in (*PANORAMAS, PANORAMAS[1])], "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_resized_on_a_cuda_device() -> None:
    assert_equal(pipeline("e2p"), [noise(*size) for size in PANORAMAS], "cuda")
