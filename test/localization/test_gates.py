"""The gates: chance, things that stand elsewhere, and what they let through."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.gates import (
    count_off_plane,
    doubt_lone_thing,
    evidence,
    judge,
    needed_evidence,
)
from d2s_ros.localization.pose_solver import PoseEstimate, PoseUncertainty, Support
from d2s_ros.localization.result import LocalizationStatus
from d2s_ros.maps.manifest import Calibration

CAMERA = Camera('pinhole', 640, 480, 500.0, 500.0, 320.0, 240.0)
DEPTH = 4.0


def estimate_of(points, total=None):
    """Return a sure pose at the origin whose inliers are points (K, 3) in front of it."""
    pixels = CAMERA.project(points)
    mask = np.zeros(total or len(points), bool)
    mask[: len(points)] = True
    widths = 4 * np.sqrt(np.linalg.eigvalsh(np.cov(points.T)))
    return PoseEstimate(
        RigidTransform.identity(),
        PoseUncertainty(lambda: (1e-6 * np.eye(6), False)),
        mask,
        np.zeros(len(mask)),
        float(np.median(points[:, 2])),
        np.cov(pixels.T),
        float(widths[1]),
    )


def patch(rng, count, width, center=(0.0, 0.0), thickness=0.0):
    """Return points (count, 3) of a square thing at 4 m."""
    points = rng.uniform(-0.5, 0.5, (count, 3)) * [width, width, thickness]
    return points + np.array([*center, DEPTH])


def test_evidence_bounds_the_binomial_tail():
    chance = np.pi * 4.0**2 / (640 * 480)
    for used, count in ((80, 6), (80, 12), (500, 9), (500, 100)):
        found = evidence(count, used, CAMERA, 4.0)
        exact = -stats.binom.logsf(count - 4, used - 3, chance) / np.log(10)
        assert 0 < found <= exact
        assert found > 0.5 * exact
    assert evidence(3, 80, CAMERA, 4.0) == 0.0
    assert evidence(80, 80, CAMERA, 4.0) > 200


def test_the_needed_evidence_keeps_the_rate_of_an_exponential_tail(rng):
    values = rng.exponential(1.5, 200_000)
    median = float(np.median(values))
    calibration = Calibration(chance_evidence=median, chance_scale=1.5)
    for rate in (0.5, 0.1, 1e-3):
        accepted = (values >= needed_evidence(calibration, rate)).mean()
        assert accepted == pytest.approx(rate, rel=0.2)
    assert needed_evidence(Calibration(), 1e-6) == 0.0


def test_chance_is_refused_at_a_stricter_rate(rng):
    estimate = estimate_of(patch(rng, 12, 3.0, thickness=2.0), total=400)
    calibration = Calibration(scene_depth=DEPTH, chance_evidence=5.0, chance_scale=2.0)
    config = LocalizerConfig(min_inliers=10, min_inlier_share=0.01)
    found = evidence(12, 400, CAMERA, 4.0)
    threshold = 0.5 * np.exp(-(found - 5.0) / 2.0)
    for factor, expected in (
        (2.0, LocalizationStatus.LOCALIZED),
        (0.5, LocalizationStatus.TOO_FEW_INLIERS),
    ):
        chosen = replace(config, false_accept_rate=float(factor * threshold))
        status, reason = judge(estimate, CAMERA, 400, chosen, calibration, 4.0)
        assert status is expected, reason


@pytest.mark.parametrize(
    ('width', 'center', 'expected'),
    [
        # A picture of 30 cm seen from 4 m.
        (0.3, (0.0, 0.0), LocalizationStatus.POOR_SPREAD),
        # A wall.
        (2.5, (0.0, 0.0), LocalizationStatus.LOCALIZED),
    ],
)
def test_small_things_are_no_place(rng, width, center, expected):
    estimate = estimate_of(patch(rng, 200, width, center))
    calibration = Calibration(scene_depth=DEPTH)
    status, reason = judge(estimate, CAMERA, 220, LocalizerConfig(), calibration, 4.0)
    assert status is expected, reason


def test_a_wide_thing_may_fill_less_of_the_image(rng):
    far = patch(rng, 200, 2.0) + np.array([0.0, 0.0, 2.5])
    estimate = estimate_of(far)
    config = LocalizerConfig()
    assert 0.25 * config.min_spread < estimate.spread(CAMERA) < config.min_spread
    status, _ = judge(estimate, CAMERA, 220, config, Calibration(scene_depth=DEPTH), 4.0)
    assert status is LocalizationStatus.LOCALIZED
    # Without a scale of the scene the image alone decides.
    status, _ = judge(estimate, CAMERA, 220, config, Calibration(), 4.0)
    assert status is LocalizationStatus.POOR_SPREAD


def test_inliers_must_be_more_than_a_few_of_all_reliable_keypoints(rng):
    estimate = estimate_of(patch(rng, 20, 3.0, thickness=2.0))
    calibration = Calibration(scene_depth=DEPTH)
    config = LocalizerConfig()
    assert judge(estimate, CAMERA, 40, config, calibration, 4.0, 60)[0] == 'localized'
    status, _ = judge(estimate, CAMERA, 40, config, calibration, 4.0, 800)
    assert status is LocalizationStatus.LOW_INLIER_SHARE


def test_points_off_a_plane_are_counted(rng):
    flat = patch(rng, 100, 2.0, thickness=0.01)
    assert count_off_plane(flat, 0.1) == 0
    box = np.concatenate([flat, patch(rng, 7, 2.0) - [0.0, 0.0, 0.5]])
    assert count_off_plane(box, 0.1) == 7


@pytest.mark.parametrize(
    ('seen', 'around', 'depth', 'doubted'),
    [
        (150, 300, 0.0, True),
        # Seen badly: as little of what is around it would be found.
        (25, 300, 0.0, False),
        # Nothing else is there to be seen.
        (150, 10, 0.0, False),
        # A box: it is not flat.
        (150, 300, 0.8, False),
    ],
)
def test_a_moved_picture_is_doubted(rng, seen, around, depth, doubted):
    thing = patch(rng, 300, 1.2, thickness=depth)
    elsewhere = patch(rng, 4 * around, 4.6)
    beside = np.abs(elsewhere[:, :2]).max(axis=1) > 0.95
    landmarks = np.concatenate([thing, elsewhere[beside][:around]]).astype(np.float32)
    inliers = thing[:seen]
    reason = doubt_lone_thing(
        estimate_of(inliers),
        CAMERA.project(inliers),
        inliers,
        landmarks,
        CAMERA,
        LocalizerConfig(),
        DEPTH,
    )
    assert bool(reason) == doubted


def test_far_fewer_inliers_than_the_reliabilities_promise_are_refused(rng):
    """As with a wrong focal length: keypoints find their landmarks, which then do not fit."""
    estimate = estimate_of(patch(rng, 60, 3.0, thickness=2.0), total=400)
    calibration = Calibration(scene_depth=DEPTH)
    for expected, wanted in (
        (320.0, LocalizationStatus.LOW_INLIER_SHARE),
        (150.0, LocalizationStatus.LOCALIZED),
    ):
        status, reason = judge(
            estimate, CAMERA, 400, LocalizerConfig(), calibration, 4.0, expected=expected
        )
        assert status is wanted, reason


def support_of(count, spread, extent, center=(320.0, 240.0)):
    """Return support whose keypoints all are at one place of the image."""
    return Support(np.tile(np.array(center), (count, 1)), spread, extent)


@pytest.mark.parametrize(
    ('inliers', 'support', 'expected'),
    [
        (8, 40, LocalizationStatus.LOCALIZED),
        (8, 30, LocalizationStatus.TOO_FEW_INLIERS),
        (8, 10, LocalizationStatus.TOO_FEW_INLIERS),
        (5, 40, LocalizationStatus.TOO_FEW_INLIERS),
        (20, 30, LocalizationStatus.LOCALIZED),
        (20, 10, LocalizationStatus.TOO_FEW_INLIERS),
        (40, 0, LocalizationStatus.LOCALIZED),
    ],
)
def test_few_inliers_need_support(rng, inliers, support, expected):
    estimate = estimate_of(patch(rng, inliers, 3.0, thickness=2.0))
    estimate = replace(estimate, support=support_of(support, 0.5, 3.0))
    calibration = Calibration(scene_depth=DEPTH)
    status, reason = judge(
        estimate, CAMERA, 60, LocalizerConfig(), calibration, 4.0, expected=float(inliers)
    )
    assert status is expected, reason


@pytest.mark.parametrize(
    ('count', 'spread', 'extent', 'expected'),
    [
        (40, 0.3, 2.0, LocalizationStatus.LOCALIZED),
        # The same thing, seen a little better.
        (40, 0.05, 0.5, LocalizationStatus.POOR_SPREAD),
        # A few that are chance widen it.
        (5, 0.3, 2.0, LocalizationStatus.POOR_SPREAD),
    ],
)
def test_support_all_over_the_image_makes_a_small_thing_a_place(
    rng, count, spread, extent, expected
):
    estimate = estimate_of(patch(rng, 60, 0.4))
    estimate = replace(estimate, support=support_of(count, spread, extent))
    status, reason = judge(
        estimate, CAMERA, 60, LocalizerConfig(), Calibration(scene_depth=DEPTH), 4.0
    )
    assert status is expected, reason


@pytest.mark.parametrize(('center', 'doubted'), [((320.0, 240.0), True), ((60.0, 60.0), False)])
def test_a_picture_with_support_around_it_was_not_moved(rng, center, doubted):
    thing = patch(rng, 200, 1.2)
    around = patch(rng, 400, 3.6)
    landmarks = np.concatenate([thing, around[np.abs(around[:, :2]).max(axis=1) > 0.8]])
    estimate = estimate_of(thing[:120])
    estimate = replace(estimate, support=support_of(30, 0.3, 1.3, center))
    reason = doubt_lone_thing(
        estimate,
        CAMERA.project(thing[:120]),
        thing[:120],
        landmarks.astype(np.float32),
        CAMERA,
        LocalizerConfig(),
        DEPTH,
    )
    assert bool(reason) == doubted
