"""Drawn scenes keep the promises that questions and pictures rely on."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from random import Random

import cv2
import numpy as np

from panovlm.data.synthetic.scene import COLOURS, DIRECTIONS, draw_scene

SCENES = [draw_scene(Random(f"test/{i}")) for i in range(1500)]


def test_a_seed_decides_the_scene() -> None:
    assert draw_scene(Random("a")) == draw_scene(Random("a"))
    assert draw_scene(Random("a")) != draw_scene(Random("b"))


def test_one_solid_at_most_per_sector_and_colour() -> None:
    for scene in SCENES:
        assert 3 <= len(scene.solids) <= 5
        assert len({solid.sector for solid in scene.solids}) == len(scene.solids)
        assert len({solid.colour for solid in scene.solids}) == len(scene.solids)


def test_solids_are_well_inside_their_sector() -> None:
    for solid in itertools.chain.from_iterable(scene.solids for scene in SCENES):
        offset = (solid.yaw - 45 * DIRECTIONS.index(solid.direction) + 180) % 360 - 180
        assert abs(offset) <= 20
        assert -180 <= solid.yaw <= 180


def test_solids_do_not_touch_each_other_and_stand_in_the_room() -> None:
    for scene in SCENES:
        room = scene.room
        for left, right in itertools.combinations(scene.solids, 2):
            cosine = np.dot(left.centre, right.centre) / left.distance / right.distance
            angle = math.degrees(math.acos(cosine))
            sizes = [math.asin(s.bounding_radius / s.distance) for s in (left, right)]
            assert angle > math.degrees(sum(sizes))
        for solid in scene.solids:
            assert solid.centre[1] - solid.half_height >= -room.eye - 1e-9
            assert solid.centre[1] + solid.half_height < room.height - room.eye
            free = min(h - abs(c) for h, c in zip(room.half, room.camera, strict=True))
            assert solid.distance + solid.bounding_radius < free


def test_directions_are_balanced_and_a_fifth_of_the_scenes_crosses_the_seam() -> None:
    solids = [solid for scene in SCENES for solid in scene.solids]
    counts = Counter(solid.direction for solid in solids)
    assert set(counts) == set(DIRECTIONS)
    assert max(counts.values()) < 1.2 * min(counts.values())
    crossing = sum(any(s.straddles_seam for s in scene.solids) for scene in SCENES)
    assert 0.16 < crossing / len(SCENES) < 0.24


def test_a_solid_is_clearly_on_the_seam_or_clearly_off_it() -> None:
    for solid in itertools.chain.from_iterable(scene.solids for scene in SCENES):
        from_seam = 180 - abs(solid.yaw)
        if solid.straddles_seam:
            assert from_seam < 0.6 * solid.reach
        else:
            assert from_seam > solid.reach


def test_colours_are_far_apart() -> None:
    """CIE76 differences; 2.3 is just noticeable."""
    lab = cv2.cvtColor(np.array([list(COLOURS.values())], np.float32), cv2.COLOR_RGB2Lab)[0]
    for first, second in itertools.combinations(lab, 2):
        assert np.linalg.norm(first - second) > 35
