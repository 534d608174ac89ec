"""What two pictures have in common: edges, colours, and what their parts show."""

from __future__ import annotations

import cv2
import numpy as np

from worker.media.planes import Plane, Thumb
from worker.media.similarity import edge_change, matching_blocks, shared_colours


def place(seed: int) -> Plane:
    """uint8 [90, 160]: boxes and lines on a plain ground."""
    rng = np.random.default_rng(seed)
    picture = np.full((90, 160), 60, np.uint8)
    for _ in range(12):
        x, y, width, height = (int(rng.integers(0, limit)) for limit in (150, 80, 40, 30))
        cv2.rectangle(picture, (x, y), (x + width + 3, y + height + 3), int(rng.integers(80, 200)), 1)
    return picture


def test_another_light_leaves_the_edges() -> None:
    before = place(1)
    after = cv2.convertScaleAbs(before, alpha=1.6, beta=20)
    assert edge_change(before, np.asarray(after, np.uint8)) < 0.1
    assert edge_change(before, before) == 0


def test_what_leaves_the_picture_brings_no_edges() -> None:
    after = place(1)
    before = after.copy()
    cv2.rectangle(before, (60, 30), (84, 50), 240, -1)
    cv2.circle(before, (72, 40), 8, 20, 2)
    assert edge_change(before, after) < 0.4


def test_another_scene_has_other_edges() -> None:
    assert all(edge_change(place(seed), place(seed + 100)) > 0.6 for seed in range(5))


def test_of_a_picture_without_edges_nothing_is_known() -> None:
    assert edge_change(np.full((90, 160), 16, np.uint8), place(1)) == 1


def thumb(seed: int) -> Thumb:
    """Smooth random colours."""
    rng = np.random.default_rng(seed)
    planes = [
        cv2.resize(rng.integers(low, high, (5, 8)).astype(np.uint8), size, interpolation=cv2.INTER_CUBIC)
        for low, high, size in ((20, 230, (160, 90)), (80, 176, (80, 45)), (80, 176, (80, 45)))
    ]
    return Thumb(*planes, mean=float(planes[0].mean()), std=float(planes[0].std()))


def test_colours_that_only_move_are_shared() -> None:
    before = thumb(1)
    turned = Thumb(before.y[::-1], before.u[::-1], before.v[::-1], before.mean, before.std)
    turned = Thumb(
        *(np.ascontiguousarray(p) for p in (turned.y, turned.u, turned.v)), before.mean, before.std
    )
    assert shared_colours(before, turned) > 0.95
    assert all(shared_colours(thumb(seed), thumb(seed + 100)) < 0.6 for seed in range(5))


def test_blocks_match_where_the_camera_and_the_light_move() -> None:
    before = place(1)
    after = np.clip(np.roll(before, (4, -6), (0, 1)) * 0.5 + 20, 0, 255).astype(np.uint8)
    assert matching_blocks(before, after) > 0.85
    assert all(matching_blocks(place(seed), place(seed + 100)) < 0.7 for seed in range(5))
    assert matching_blocks(before, np.full((90, 160), 16, np.uint8)) == 0
