"""Fused poses are better than those of images, honest, and go where the images are."""

from __future__ import annotations

import numpy as np
import pytest

from d2s_ros.geometry.transforms import (
    RigidTransform,
    pose_error,
    rotation_from_vector,
    vector_from_rotation,
)
from d2s_ros.tracking.odometry_fusion import OdometryFusion

SECOND = 10**9
SIGMA_M, SIGMA_RAD = 0.01, 0.003
COVARIANCE = np.diag([SIGMA_M**2] * 3 + [SIGMA_RAD**2] * 3)


def error_of(pose, truth):
    """Return translation and rotation along map axes, as covariances are."""
    return np.r_[
        pose.translation - truth.translation,
        vector_from_rotation(pose.rotation @ truth.rotation.T),
    ]


def noisy(pose, rng, scale=1.0):
    turn = rotation_from_vector(scale * rng.normal(0, SIGMA_RAD, 3))
    return RigidTransform(
        turn @ pose.rotation, pose.translation + scale * rng.normal(0, SIGMA_M, 3)
    )


def drive(rng, steps, drift, step=0.2, yaw_deg=4.0):
    """Return true poses and odometry, which is off by `drift` in each direction."""
    motion = RigidTransform(
        rotation_from_vector([0, 0, np.radians(yaw_deg)]), np.array([step, 0, 0])
    )
    true, odom = [RigidTransform.identity()], [RigidTransform.identity()]
    for _ in range(steps):
        true.append(true[-1] @ motion)
        share = drift * np.radians(yaw_deg) + drift * step
        turn = rotation_from_vector(vector_from_rotation(motion.rotation) + rng.normal(0, share, 3))
        moved = motion.translation + rng.normal(0, drift * step, 3)
        odom.append(odom[-1] @ RigidTransform(turn, moved))
    return true, odom


def test_fused_poses_are_better_and_honest():
    rng = np.random.default_rng(3)
    alone, fused, distances, held = [], [], [], 0
    for _ in range(20):
        true, odom = drive(rng, 30, 0.01)
        fusion = OdometryFusion(0.02)
        for index, (pose, moved) in enumerate(zip(true, odom, strict=True)):
            image = noisy(pose, rng)
            found = fusion.fuse(index * SECOND, image, COVARIANCE, moved)
            held += bool(found.refusal)
            if index < 5 or found.refusal:
                continue
            alone.append(pose_error(image, pose)[0])
            fused.append(pose_error(found.map_from_body, pose)[0])
            off = error_of(found.map_from_body, pose)
            distances.append(off @ np.linalg.solve(found.covariance, off))
    # The gate is beyond 99 % of what such covariances promise.
    assert held <= 0.01 * 20 * 31
    assert np.median(fused) < 0.6 * np.median(alone)
    # Six degrees of freedom; covariances of images count more than once, so it is on the safe side.
    assert 2.0 < np.mean(distances) < 6.0
    assert np.mean(np.array(distances) < 12.59) > 0.95


def test_the_first_pose_is_the_images():
    pose = noisy(RigidTransform.identity(), np.random.default_rng(0))
    found = OdometryFusion(0.02).fuse(0, pose, COVARIANCE, RigidTransform.identity())
    np.testing.assert_array_equal(found.map_from_body.matrix, pose.matrix)
    np.testing.assert_array_equal(found.covariance, COVARIANCE)


def test_without_odometry_nothing_is_fused():
    rng = np.random.default_rng(0)
    fusion = OdometryFusion(0.02)
    for index in range(3):
        pose = noisy(RigidTransform.identity(), rng)
        found = fusion.fuse(index * SECOND, pose, COVARIANCE, None)
        np.testing.assert_array_equal(found.map_from_body.matrix, pose.matrix)
    assert fusion.predict(5 * SECOND, RigidTransform.identity(), 10.0) is None


def test_a_pose_that_does_not_follow_is_held_back_once():
    rng = np.random.default_rng(1)
    true, odom = drive(rng, 12, 0.005)
    fusion = OdometryFusion(0.02)
    for index in range(10):
        fusion.fuse(index * SECOND, noisy(true[index], rng), COVARIANCE, odom[index])
    wrong = RigidTransform(true[10].rotation, true[10].translation + np.array([0.3, 0, 0]))
    found = fusion.fuse(10 * SECOND, wrong, COVARIANCE, odom[10])
    assert float(found.refusal.split()[0]) == pytest.approx(0.3, abs=0.03)
    assert 'odometry' in found.refusal
    # Time counts from the last image that was believed.
    assert fusion.predict(11 * SECOND, odom[11], 1.5) is None
    assert fusion.predict(11 * SECOND, odom[10], 2.5) is not None
    found = fusion.fuse(11 * SECOND, noisy(true[11], rng), COVARIANCE, odom[11])
    assert not found.refusal
    assert pose_error(found.map_from_body, true[11])[0] < 0.03


@pytest.mark.parametrize('shift', [[5.0, 0, 0], [0, -0.4, 0]])
def test_a_robot_that_was_carried_away_is_found_with_the_second_image(shift):
    rng = np.random.default_rng(2)
    true, odom = drive(rng, 20, 0.005)
    fusion = OdometryFusion(0.02)
    for index in range(10):
        fusion.fuse(index * SECOND, noisy(true[index], rng), COVARIANCE, odom[index])
    for index in range(10, 20):
        there = RigidTransform(true[index].rotation, true[index].translation + shift)
        found = fusion.fuse(index * SECOND, noisy(there, rng), COVARIANCE, odom[index])
        assert bool(found.refusal) == (index == 10)
        if index > 10:
            assert pose_error(found.map_from_body, there)[0] < 0.04


def test_images_from_one_place_do_not_make_it_sure():
    """Their errors are alike: a hundred say little more than one."""
    fusion = OdometryFusion(0.02)
    still = RigidTransform.identity()
    for index in range(100):
        found = fusion.fuse(index * SECOND // 10, still, COVARIANCE, still)
    sigmas = np.sqrt(np.diag(found.covariance))
    assert sigmas[0] > 0.5 * SIGMA_M
    assert sigmas[3] > 0.5 * SIGMA_RAD


def test_what_proves_nothing_is_not_remembered():
    rng = np.random.default_rng(4)
    true, odom = drive(rng, 6, 0.0)
    with_it, without = OdometryFusion(0.02), OdometryFusion(0.02)
    for index, (pose, moved) in enumerate(zip(true, odom, strict=True)):
        image = noisy(pose, rng)
        if index == 3:
            found = with_it.fuse(index * SECOND, image, COVARIANCE, moved, proven=False)
            assert pose_error(found.map_from_body, image)[0] > 0
            continue
        found = with_it.fuse(index * SECOND, image, COVARIANCE, moved)
        other = without.fuse(index * SECOND, image, COVARIANCE, moved)
        np.testing.assert_allclose(found.map_from_body.matrix, other.map_from_body.matrix)


def test_predictions_grow_with_the_way_and_end():
    fusion = OdometryFusion(0.1)
    start = RigidTransform.identity()
    fusion.fuse(0, start, COVARIANCE, start)

    def at(x):
        return RigidTransform(np.eye(3), np.array([x, 0.0, 0.0]))

    pose, sigma, turn = fusion.predict(SECOND, at(1.0), 2.0)
    assert pose.translation[0] == pytest.approx(1.0)
    _, more, more_turn = fusion.predict(SECOND, at(2.0), 2.0)
    assert SIGMA_M < sigma < more
    assert turn < more_turn
    # There and back is a way too.
    _, back, _ = fusion.predict(SECOND, at(1.0), 2.0)
    assert back > more
    assert fusion.predict(3 * SECOND, at(1.0), 2.0) is None
    assert fusion.predict(SECOND, None, 2.0) is None
    fusion.reset()
    assert fusion.predict(SECOND, at(1.0), 2.0) is None


def test_odometry_that_is_worse_than_said_is_believed_less():
    """A wheel that is 4 % too large, where 1 % was promised: images go on being published."""
    rng = np.random.default_rng(5)
    true, _ = drive(rng, 80, 0.0)
    motion = true[0].inverse() @ true[1]
    wrong = RigidTransform(motion.rotation, 1.04 * motion.translation)
    odom = [RigidTransform.identity()]
    for _ in true[1:]:
        odom.append(odom[-1] @ wrong)
    fusion = OdometryFusion(0.01)
    small = 0.1**2 * COVARIANCE
    held, errors = [], []
    for index, (pose, moved) in enumerate(zip(true, odom, strict=True)):
        found = fusion.fuse(index * SECOND, noisy(pose, rng, 0.1), small, moved)
        held.append(bool(found.refusal))
        errors.append(pose_error(found.map_from_body, pose)[0])
    # It is 28 of 41 if the promise is believed.
    assert sum(held[40:]) <= 8
    assert np.median(errors[40:]) < 0.5 * 0.04 * 0.2
