"""Holding a rate: the controller against a made-up computer, and localizing with less work."""

from __future__ import annotations

import numpy as np
import pytest

from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.compute_budget import FULL, STEPS, ComputeBudget, RateController
from d2s_ros.localization.localizer import Localizer


def cost_ms(budget, load=1.0):
    return load * (10.0 + 50.0 * budget.keypoints + 140.0 * budget.scale**2)


def run(controller, frames, load=1.0):
    budgets = []
    for _ in range(frames):
        budgets.append(controller.budget)
        controller.record(cost_ms(controller.budget, load))
    return budgets


def test_full_budget_where_it_fits():
    controller = RateController(4.0)
    assert set(run(controller, 100)) == {FULL}
    assert controller.holds
    assert not controller.exhausted


@pytest.mark.parametrize('rate', [5.5, 6.0, 8.0, 10.0, 14.0])
def test_the_greatest_budget_that_fits_is_found_and_kept(rate):
    controller = RateController(rate)
    fits = [budget for budget in STEPS if cost_ms(budget) <= 0.9 * 1e3 / rate]
    budgets = run(controller, 2000)
    assert budgets[200:].count(fits[0]) > 0.9 * len(budgets[200:])
    # Tries to do more become rare.
    late = budgets[1000:]
    assert sum(budget not in fits for budget in late) <= 0.02 * len(late)


def test_the_budget_returns_when_the_load_is_gone():
    controller = RateController(4.0)
    run(controller, 300, load=3.0)
    assert not controller.budget.is_full
    assert run(controller, 3000)[-1] == FULL


def test_a_rate_that_cannot_be_held_is_said():
    controller = RateController(100.0)
    run(controller, 100)
    assert controller.budget == STEPS[-1]
    assert controller.exhausted


def test_single_slow_frames_change_nothing():
    controller = RateController(4.0)
    for index in range(200):
        controller.record(900.0 if index % 5 == 0 else 100.0)
    assert controller.budget.is_full


def test_sizes_keep_the_aspect():
    assert ComputeBudget(1.0, 0.5).size(640, 480) == (320, 240)
    assert FULL.size(641, 479) == (641, 479)
    assert ComputeBudget(1.0, 0.01).size(640, 480) == (85, 64)
    assert ComputeBudget(1.0, 0.5).size(40, 30) == (40, 30)


def test_half_the_budget_still_finds_the_place(small_map):
    localizer = Localizer.from_map(small_map.path, device='cpu')
    frame = small_map.frames[3]
    full = localizer.localize(frame.image, frame.camera, details=True)
    assert full.localized
    for chosen in (ComputeBudget(0.5), ComputeBudget(0.5, 0.8)):
        less = localizer.localize(frame.image, frame.camera, details=True, budget=chosen)
        assert less.localized
        assert less.num_keypoints <= 0.5 * localizer.extractor.config.max_keypoints
        metres, degrees = pose_error(less.map_from_camera, frame.map_from_camera)
        assert metres < 0.05
        assert degrees < 0.5
        # Keypoints are those of the given image: the inliers' points project onto them.
        inlier = less.details.inlier
        pixels = frame.camera.project(
            less.map_from_camera.inverse().apply(less.details.points_in_map[inlier])
        )
        errors = np.linalg.norm(pixels - less.details.keypoints[inlier], axis=1)
        assert np.median(errors) < 2.0
