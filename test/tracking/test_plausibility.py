"""Poses that cannot follow the last one are held back, for one image."""

from __future__ import annotations

import numpy as np
import pytest

from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.tracking.plausibility import PlausibilityGate

SMALL = np.diag([1e-6] * 3 + [1e-8] * 3)
SECOND = 10**9


def at(x, y=0.0, yaw_deg=0.0):
    turn = rotation_from_vector([0, 0, np.radians(yaw_deg)])
    return RigidTransform(turn, np.array([x, y, 0.0]))


@pytest.fixture
def gate():
    return PlausibilityGate(max_speed=1.0, max_turn_rate=90.0, odometry_drift=0.1)


def test_motion_within_the_limits_is_accepted(gate):
    for step in range(20):
        assert gate.check(step * SECOND // 10, at(0.09 * step, yaw_deg=8 * step), SMALL) == ''


def test_one_wrong_pose_is_held_back(gate):
    assert gate.check(0, at(0), SMALL) == ''
    assert '5.000 m' in gate.check(SECOND // 10, at(5), SMALL)
    assert gate.check(2 * SECOND // 10, at(0.1), SMALL) == ''
    assert 'degrees' in gate.check(3 * SECOND // 10, at(0.1, yaw_deg=170), SMALL)
    # Two wrong poses that do not agree with each other are no confirmation either.
    assert gate.check(4 * SECOND // 10, at(-9), SMALL)
    assert gate.check(5 * SECOND // 10, at(0.2), SMALL) == ''


def test_a_robot_that_was_carried_away_is_found_with_the_second_image(gate):
    assert gate.check(0, at(0), SMALL) == ''
    assert gate.check(SECOND // 10, at(50), SMALL)
    assert gate.check(2 * SECOND // 10, at(50.05), SMALL) == ''
    assert gate.check(3 * SECOND // 10, at(50.1), SMALL) == ''


def test_time_without_poses_widens_the_limits(gate):
    assert gate.check(0, at(0), SMALL) == ''
    assert gate.check(60 * SECOND, at(50, yaw_deg=180), SMALL) == ''


def test_odometry_is_believed_over_speed(gate):
    assert gate.check(0, at(0), SMALL, at(100)) == ''
    # Odometry saw 8 m in the tenth of a second (a slow clock, a fast robot): 0.8 m of drift.
    assert gate.check(SECOND // 10, at(8.5), SMALL, at(108)) == ''
    # It stood still, so the pose must as well.
    assert gate.check(60 * SECOND, at(9.5), SMALL, at(108))
    assert gate.check(61 * SECOND, at(8.5), SMALL, at(108)) == ''


def test_odometry_in_a_turned_frame(gate):
    quarter = at(3, 4, 90)
    assert gate.check(0, at(1, 2), SMALL, quarter @ at(0)) == ''
    assert gate.check(SECOND, at(3, 2, 45), SMALL, quarter @ at(2, 0, 45)) == ''


def test_uncertain_poses_may_differ_more(gate):
    uncertain = np.diag([0.25] * 3 + [0.01] * 3)
    assert gate.check(0, at(0), uncertain) == ''
    assert gate.check(SECOND // 10, at(1.5), uncertain) == ''


def test_the_next_pose_is_foretold_by_odometry():
    gate = PlausibilityGate(max_speed=0.0, max_turn_rate=0.0, odometry_drift=0.1)
    assert gate.predict(SECOND, at(1), 2.0) is None
    quarter = at(3, 4, 90)
    gate.check(0, at(1, 2), SMALL, quarter @ at(0))
    expected, sigma_m, sigma_deg = gate.predict(SECOND, quarter @ at(2, 0, 45), 2.0)
    np.testing.assert_allclose(expected.matrix, at(3, 2, 45).matrix, atol=1e-12)
    # Half of the drift, and what the pose itself is uncertain by.
    assert sigma_m == pytest.approx(np.hypot(0.1, 1e-3))
    assert sigma_deg == pytest.approx(np.hypot(2.25, np.degrees(1e-4)))
    # Not for ever, not backwards, and not without odometry where nothing bounds the motion.
    assert gate.predict(3 * SECOND, quarter @ at(2), 2.0) is None
    assert gate.predict(-SECOND, quarter @ at(2), 2.0) is None
    assert gate.predict(SECOND, None, 2.0) is None


def test_the_next_pose_is_foretold_by_the_largest_speed(gate):
    gate.check(0, at(1), SMALL)
    expected, sigma_m, _ = gate.predict(SECOND // 10, None, 2.0)
    np.testing.assert_allclose(expected.translation, [1, 0, 0])
    assert sigma_m == pytest.approx(0.05, rel=1e-3)
    gate.reset()
    assert gate.predict(SECOND // 10, None, 2.0) is None


def test_a_reset_and_no_limit_accept_anything(gate):
    gate.check(0, at(0), SMALL)
    gate.reset()
    assert gate.check(1, at(100), SMALL) == ''
    off = PlausibilityGate(max_speed=0.0, max_turn_rate=0.0, odometry_drift=0.0)
    assert off.check(0, at(0), SMALL) == ''
    assert off.check(1, at(1000), SMALL) == ''
