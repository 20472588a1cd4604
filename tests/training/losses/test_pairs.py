"""Correspondences by ray casting, against brute force over all directions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from transformers import SiglipVisionConfig

from panovlm.config.schema import ImageProcessing, ModelSettings
from panovlm.models.vision.backbone import VisionBackbone
from panovlm.models.vision.directions import TokenDirections, TokenRays
from panovlm.models.vision.resampler import ResamplerModule
from panovlm.panorama.views import views_of
from panovlm.training.losses.pairs import column_pairs, direction_pairs

SETTINGS = {
    "anyres_e2p": {},
    "two rows": {"crop_strategy": "anyres_e2p", "fov_deg": 60},
    "e2p": {"overlap_ratio": 0.3},
    "sliding_window": {},
    "poles": {"crop_strategy": "e2p_sphere", "poles": True, "pitch_rows": 2},
    "icosahedral": {"icosahedral_views": 12},
    "anyres": {"anyres_max_patches": 14},
}


def image_of(name: str) -> ImageProcessing:
    return ImageProcessing(image_size=48, **{"crop_strategy": name, **SETTINGS[name]})


def rays_of(image: ImageProcessing, patch: int = 6) -> TokenRays:
    config = SiglipVisionConfig(
        image_size=48, patch_size=patch, hidden_size=4, intermediate_size=4,
        num_hidden_layers=1, num_attention_heads=1,
    )  # fmt: skip
    tower = VisionBackbone(config, use_norm=False)
    models = ModelSettings(resampler_type="identity", latent_dimension=4)
    resampler = ResamplerModule(models, vision_dim=4)
    return TokenDirections(image, tower, resampler).of((48 // patch) ** 2, None)


def in_view(view, image: ImageProcessing, ray: np.ndarray) -> bool:
    """Whether a square pinhole view shows a ray, by the camera's base vectors."""
    yaw, pitch = math.radians(view.yaw), math.radians(view.pitch)
    ahead = np.array(
        [math.cos(pitch) * math.sin(yaw), math.sin(pitch), math.cos(pitch) * math.cos(yaw)]
    )
    right = np.array([math.cos(yaw), 0, -math.sin(yaw)])
    up = np.cross(ahead, right)
    depth = ray @ ahead
    # The picture is half a pixel larger than its field of view, which joins pixel centres.
    edge = math.tan(math.radians(image.fov_deg) / 2) * 48 / 47
    return depth > 0 and abs(ray @ right / depth) <= edge and abs(ray @ up / depth) <= edge


@pytest.mark.parametrize("name", ["anyres_e2p", "two rows", "poles", "icosahedral"])
def test_partners_are_the_nearest_directions_that_both_views_show(name):
    image = image_of(name)
    rays = rays_of(image)
    views = [view for view in views_of(image) if not view.is_global]
    found = {(pair.first, pair.second): pair for pair in direction_pairs(rays)}
    for first, one in enumerate(views):
        for second, other in enumerate(views):
            if second <= first:
                continue
            a, b = rays.patches[first], rays.patches[second]
            apart = np.arccos(np.clip(a @ b.T, -1, 1))
            expected = set()
            for i in range(len(a)):
                if not in_view(other, image, a[i]):
                    continue
                for j in range(len(b)):
                    nearest = apart[i, j] <= min(apart[i].min(), apart[:, j].min()) + 1e-7
                    if nearest and in_view(one, image, b[j]):
                        expected.add((i, j))
            pair = found.get((first, second))
            ours = set() if pair is None else set(zip(pair.in_first, pair.in_second, strict=True))
            assert ours <= expected
            # Where two tokens are equally near, one of them was taken, or none.
            certain = {
                (i, j)
                for i, j in expected
                if (apart[i] < apart[i, j] + 1e-6).sum() == 1
                and (apart[:, j] < apart[i, j] + 1e-6).sum() == 1
            }
            assert certain <= ours or len(certain) < 2
            assert len(ours) == len({i for i, _ in ours}) == len({j for _, j in ours})


@pytest.mark.parametrize("name", SETTINGS)
def test_partners_look_the_same_way_up_to_a_token(name):
    rays = rays_of(image_of(name))
    pairs = direction_pairs(rays)
    assert pairs
    widest = max(max(view.hfov, view.vfov) for view in rays.sphere.views)
    for pair in pairs:
        a = rays.patches[pair.first, pair.in_first]
        b = rays.patches[pair.second, pair.in_second]
        apart = np.degrees(np.arccos(np.clip((a * b).sum(axis=1), -1, 1)))
        assert apart.max() < 0.75 * widest / 8
        assert len(set(pair.in_first)) == len(set(pair.in_second)) == len(apart)


def test_all_views_that_overlap_are_paired_and_no_others():
    rays = rays_of(image_of("icosahedral"))
    found = {(pair.first, pair.second) for pair in direction_pairs(rays)}
    upper = np.triu(rays.sphere.overlaps, 1)
    assert found == {(int(a), int(b)) for a, b in np.argwhere(upper)}
    assert direction_pairs(rays_of(ImageProcessing(crop_strategy="cubemap6", image_size=48))) == ()


def test_columns_of_perspective_views_look_elsewhere_than_their_directions():
    """What pairing by column index gets wrong, at 90 degrees and half overlap."""
    rays = rays_of(image_of("anyres_e2p"))
    pair = column_pairs(8, 8, 8, 0.5)[2]
    assert (pair.first, pair.second) == (2, 3)
    a, b = rays.patches[2, pair.in_first], rays.patches[3, pair.in_second]
    yaw = [np.degrees(np.arctan2(side[:, 0], side[:, 2])) for side in (a, b)]
    wrong = np.abs((yaw[0] - yaw[1] + 180) % 360 - 180)
    assert 5 < wrong.max() < 9
    assert column_pairs(8, 8, 8, 0.5)[7].second == 0
