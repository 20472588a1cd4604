"""Positions and stitching by the true directions of tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, Dinov2Config, SiglipVisionConfig

from panovlm.config.schema import ImageProcessing, ModelSettings
from panovlm.errors import ConfigError
from panovlm.models.vision.backbone import VisionBackbone
from panovlm.models.vision.canvas import canvas
from panovlm.models.vision.directions import TokenDirections, TokenRays
from panovlm.models.vision.positional import direction_positions
from panovlm.models.vision.projector import PanoramaProjector
from panovlm.models.vision.resampler import ResamplerModule
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.sphere import symmetry
from panovlm.panorama.views import leading_global, views_of

SMALL = {
    "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
}  # fmt: skip
STRATEGIES = {
    "anyres_e2p": {},
    "anyres_e2p rows": {"crop_strategy": "anyres_e2p", "fov_deg": 60},
    "e2p": {},
    "e2p rows": {"crop_strategy": "e2p_sphere", "pitch_rows": 3, "fov_deg": 60, "poles": True},
    "cubemap": {},
    "cubemap6": {},
    "sliding_window": {},
    "icosahedral": {},
    "resize": {},
    "anyres": {},
    "anyres_max": {},
}


def recipe_of(name: str, size: int = 64) -> ImageProcessing:
    changes = {"crop_strategy": name, **STRATEGIES[name]}
    return ImageProcessing(image_size=size, **changes)


def tower(size: int = 64, patch: int = 8, kind: type = SiglipVisionConfig) -> VisionBackbone:
    config = kind(image_size=size, patch_size=patch, **SMALL)
    return VisionBackbone(config, use_norm=False)


def directions(image: ImageProcessing, backbone: VisionBackbone, resampler: str = "identity"):
    models = ModelSettings(resampler_type=resampler, latent_dimension=12)
    return TokenDirections(image, backbone, ResamplerModule(models, vision_dim=12))


def rays_of(name: str, size: int = 64, patch: int = 8) -> TokenRays:
    image = recipe_of(name, size)
    return directions(image, tower(size, patch)).of((size // patch) ** 2, None)


def projector(image: ImageProcessing, **changes: object) -> PanoramaProjector:
    torch.manual_seed(4)
    models = ModelSettings(latent_dimension=24, **changes)
    return PanoramaProjector(
        models,
        language_dim=5,
        leading_global=leading_global(image),
        directions=directions(image, tower()),
    ).eval()


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.arccos(np.clip(a @ np.swapaxes(b, -1, -2), -1, 1))


class TestRays:
    def test_a_token_looks_through_the_middle_of_its_pixels(self):
        rays = rays_of("cubemap6").patches.reshape(6, 8, 8, 3)
        pixels = directions(recipe_of("cubemap6"), tower(64, 1)).of(64 * 64, None).patches
        pixels = pixels.reshape(6, 8, 8, 8, 8, 3)  # view, row, its pixels, column, its pixels
        # between the four innermost of its 8 x 8 pixels
        middle = pixels[:, :, 3:5, :, 3:5].mean(axis=(2, 4))
        middle /= np.linalg.norm(middle, axis=-1, keepdims=True)
        assert np.abs(rays - middle).max() < 2e-4

    def test_pixels_behind_the_last_whole_patch_are_not_read(self):
        """64 pixels in patches of 10 are 6 patches; the last four pixels belong to none."""
        rays = rays_of("cubemap6", 64, 10).patches.reshape(6, 6, 6, 3)[0]
        edge = 63 / 2  # from the first pixel's centre to the middle
        across = (np.arange(6) * 10 + 4.5 - edge) / edge
        assert np.allclose(rays[0, :, 0] / rays[0, :, 2], across)

    @pytest.mark.parametrize("kind", [CLIPVisionConfig, Dinov2Config])
    def test_a_class_token_looks_as_its_view(self, kind):
        image = recipe_of("icosahedral")
        backbone = tower(kind=kind)
        with torch.no_grad():
            count = backbone(torch.zeros(1, 3, 64, 64)).shape[1]
        rays = directions(image, backbone).of(count, None)
        assert rays.grid.extra == 1
        for view, token in zip(views_of(image), rays.tokens[:, 0], strict=True):
            yaw, pitch = math.radians(view.yaw), math.radians(view.pitch)
            expected = (math.cos(pitch) * math.sin(yaw), math.sin(pitch))
            assert token[:2] == pytest.approx(expected, abs=1e-9)

    def test_pooled_tokens_look_through_the_middle_of_their_window(self):
        fine = rays_of("e2p").patches.reshape(8, 8, 8, 3)
        coarse = directions(recipe_of("e2p"), tower()).of(16, (4, 4)).patches
        middle = fine.reshape(8, 4, 2, 4, 2, 3).mean(axis=(2, 4))
        middle /= np.linalg.norm(middle, axis=-1, keepdims=True)
        assert np.abs(coarse.reshape(8, 4, 4, 3) - middle).max() < 0.02

    def test_tokens_of_no_place_are_refused(self):
        models = ModelSettings(
            resampler_type="qformer",
            resampler_config={"num_attention_heads": 1, "num_hidden_layers": 1},
            latent_dimension=12,
        )
        queries = ResamplerModule(models, vision_dim=12)
        found = TokenDirections(recipe_of("e2p"), tower(), queries)
        with pytest.raises(ConfigError, match="resampler qformer show no certain directions"):
            found.of(64, None)


class TestPositions:
    def test_the_code_is_that_of_the_formula(self):
        towards = np.array([[0.6, 0.0, 0.8], [0.0, -1.0, 0.0]])
        code = direction_positions(towards, 20, 8.0)
        for row, direction in enumerate(towards):
            for axis in range(3):
                for band, periods in enumerate((0.5, 2.0, 8.0)):
                    angle_ = 2 * math.pi * periods * direction[axis] / 2
                    place = 3 * axis + band
                    assert code[row, place] == pytest.approx(math.sin(angle_))
                    assert code[row, 9 + place] == pytest.approx(math.cos(angle_))
        assert (code[:, 18:] == 0).all()
        with pytest.raises(ConfigError, match="at least 6"):
            direction_positions(towards, 5, 8.0)

    def test_added_before_the_linear_in_training_and_evaluation_alike(self):
        image = recipe_of("icosahedral")
        model = projector(image, pe_type="directions", stitching_mode="concat")
        tokens = torch.randn(20, 64, 24)
        code = direction_positions(rays_of("icosahedral").patches, 24, 16.0)
        expected = model.linear(tokens + torch.from_numpy(code).float())
        expected = expected.view(20, 8, 8, 5).transpose(0, 1).reshape(1, -1, 5)
        torch.testing.assert_close(model(tokens, 20), expected)
        torch.testing.assert_close(model.train()(tokens, 20), expected)

    @pytest.mark.parametrize("name", ["anyres_e2p", "e2p", "e2p rows", "cubemap6"])
    def test_a_turn_by_one_step_permutes_the_views_tokens_and_nothing_else(self, name):
        """Of pixels and of directions alike, at the seam too; the codes turn with them."""
        image = recipe_of(name, 32)
        sphere_views = [view for view in views_of(image) if not view.is_global]
        steps = symmetry(sphere_views)
        erp = np.random.default_rng(0).integers(0, 256, (96, 192, 3), dtype=np.uint8)
        first = len(views_of(image)) - len(sphere_views)
        before = ViewPipeline(image)(erp)[first:]
        after = ViewPipeline(image)(np.roll(erp, 192 // steps, axis=1))[first:]
        rays = directions(image, tower(32)).of(16, None).patches
        turn = 2 * math.pi / steps
        matrix = np.array(
            [
                [math.cos(turn), 0, -math.sin(turn)],
                [0, 1, 0],
                [math.sin(turn), 0, math.cos(turn)],
            ]
        )
        moved = []
        for number, view in enumerate(sphere_views):
            if abs(view.pitch) == 90:  # turns about itself, between two of its pixels
                continue
            apart = np.abs(rays[number] @ matrix - rays).max(axis=(1, 2))
            target = int(apart.argmin())
            assert apart[target] < 1e-9
            assert np.abs(after[target] - before[number]).max() < 0.06  # fixed-point rounding
            moved.append(target)
        assert len(set(moved)) == len(moved)
        assert not np.array_equal(moved, sorted(moved))


class TestSphere:
    @pytest.mark.parametrize("name", STRATEGIES)
    def test_every_direction_once(self, name):
        """No direction that a view shows is missing, none is there twice."""
        rays = rays_of(name)
        strip = canvas(rays)
        size = math.pi * min(view.vfov for view in rays.sphere.views) / 180 / 8
        apart = angle(strip.directions, strip.directions)
        np.fill_diagonal(apart, 9)
        rows = np.repeat(np.arange(len(strip.rows)), strip.rows)
        turns = symmetry(rays.sphere.views)
        # Rows are a cell apart; in a row too, but near the poles, where a full turn has one for
        # every view.
        same = rows[:, None] == rows
        assert apart[~same].min() > 0.8 * size * 0.9
        few = np.array(strip.rows)[rows] <= turns
        assert apart[same & ~few[:, None] & ~few].min() > 0.6 * size
        seen = np.random.default_rng(1).normal(size=(20000, 3))
        seen /= np.linalg.norm(seen, axis=1, keepdims=True)
        inner = np.zeros(len(seen), bool)  # shown, and not only by the outermost half token
        for place in rays.sphere.places(seen):
            inside = np.abs(place.across - 0.5) < 0.5 - 1 / 8
            inner |= place.inside & inside & (np.abs(place.down - 0.5) < 0.5 - 1 / 8)
        assert angle(seen[inner], strip.directions).min(axis=1).max() < size

    @pytest.mark.parametrize("name", STRATEGIES)
    def test_read_in_the_view_whose_centre_is_nearest(self, name):
        rays = rays_of(name)
        strip = canvas(rays)
        inside = np.stack([place.inside for place in rays.sphere.places(strip.directions)], 1)
        assert inside.any(axis=1).all()
        away = np.where(inside, angle(strip.directions, rays.sphere.centres), 9)
        assert inside[np.arange(len(away)), strip.view].all()
        assert (away[np.arange(len(away)), strip.view] <= away.min(axis=1) + 1e-7).all()

    @pytest.mark.parametrize("name", STRATEGIES)
    def test_directions_stay_what_they_are(self, name):
        """Stitching the directions themselves gives those of the strip, up to interpolation."""
        rays = rays_of(name)
        strip = canvas(rays)
        flat = rays.patches.reshape(-1, 3)
        assert np.allclose(strip.weights.sum(axis=1), 1)
        assert strip.weights.min() >= 0
        found = (flat[strip.tokens] * strip.weights[..., None]).sum(axis=1)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        wrong = np.arccos(np.clip((found * strip.directions).sum(axis=1), -1, 1))
        size = math.pi * max(view.vfov for view in rays.sphere.views) / 180 / 8
        # Beyond the outermost tokens' centres these count alone: up to half a token.
        assert wrong.max() < 0.75 * size
        assert np.median(wrong) < 0.1 * size
        assert (strip.tokens // 64 == strip.view[:, None]).all()

    @pytest.mark.parametrize("name", ["e2p", "anyres_e2p", "e2p rows", "cubemap6", "resize"])
    def test_a_turn_by_one_step_turns_the_strip(self, name):
        """The tokens of every row go on by one step, around the seam; nothing else happens."""
        image = recipe_of(name)
        views = [view for view in views_of(image) if not view.is_global or name == "resize"]
        steps = symmetry(views)
        model = projector(image, stitching_mode="sphere", use_projection_positional_encoding=False)
        rays = rays_of(name)
        strip = canvas(rays)
        count = len(views) + model.apart
        tokens = torch.randn(count, 64, 24)
        around = [
            int(np.abs(rays.sphere.centres - turned).max(axis=1).argmin())
            for turned in rays.sphere.centres @ _turn(360 / steps)
        ]
        turned = tokens.clone()
        for number, target in enumerate(around):
            if abs(views[number].pitch) < 90:
                turned[model.apart + target] = tokens[model.apart + number]
        front = model.apart * 64
        before, after = model(tokens, count)[0, front:], model(turned, count)[0, front:]
        assert model.num_tokens(count, 64) == front + len(before) == front + len(strip.view)
        first = 0
        for length in strip.rows:
            row, other = before[first : first + length], after[first : first + length]
            at_pole = np.abs(np.array([views[v].pitch for v in strip.view[first : first + length]]))
            if (at_pole < 90).all() and length % steps == 0:
                torch.testing.assert_close(other, row.roll(length // steps, 0))
            first += length

    def test_class_tokens_are_left_out(self):
        image = recipe_of("e2p")
        model = projector(image, stitching_mode="sphere", use_projection_positional_encoding=False)
        model._directions = directions(image, tower(kind=CLIPVisionConfig))
        tokens = torch.randn(8, 65, 24)
        bare = projector(image, stitching_mode="sphere", use_projection_positional_encoding=False)
        torch.testing.assert_close(model(tokens, 8), bare(tokens[:, 1:], 8))

    def test_fewer_tokens_than_side_by_side(self):
        image = recipe_of("anyres_e2p")
        counts = {
            mode: projector(image, stitching_mode=mode).num_tokens(9, 64)
            for mode in ("concat", "drop_overlap", "sphere")
        }
        assert counts["sphere"] < counts["drop_overlap"] < counts["concat"]


def _turn(degrees: float) -> np.ndarray:
    turn = math.radians(degrees)
    return np.array(
        [[math.cos(turn), 0, -math.sin(turn)], [0, 1, 0], [math.sin(turn), 0, math.cos(turn)]]
    )


@pytest.mark.parametrize("changes", [{"pe_type": "directions"}, {"stitching_mode": "sphere"}])
def test_what_cannot_be_is_refused(changes):
    image = recipe_of("anyres_e2p")
    with pytest.raises(ConfigError, match="global_view is first_view"):
        projector(image, global_view="first_view", **changes)
    with pytest.raises(ConfigError, match=r"got 7 tiles.*gives 8"):
        projector(image, **changes)(torch.randn(8, 64, 24), 8)
