"""A camera that was turned on its mount is told from a robot that slipped, by where it drives."""

from __future__ import annotations

import re

import numpy as np
import pytest

from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.tracking.mount_watch import MountWatch

SIGMA_M, SIGMA_DEG = 0.005, 0.1
COVARIANCE = np.diag([SIGMA_M**2] * 3 + [np.radians(SIGMA_DEG) ** 2] * 3)
BODY_FROM_CAMERA = RigidTransform.from_tum([0.3, 0.1, 1.2, -0.5, 0.5, -0.5, 0.5])
MAP_FROM_ODOM = RigidTransform(rotation_from_vector([0, 0, 1.1]), np.array([4.0, -2.0, 0.0]))
STEP_NS = 10**8
IDENTITY = RigidTransform.identity()


def turn(axis, degrees):
    return RigidTransform(rotation_from_vector(np.radians(degrees) * np.eye(3)[axis]), np.zeros(3))


def ahead(step, curve=0.0):
    """Return odometry at 1 m/s, turning by `curve` radians a second."""
    seconds = step / 10
    angle = curve * seconds
    place = [seconds, 0, 0]
    if curve:
        place = [np.sin(angle) / curve, (1 - np.cos(angle)) / curve, 0]
    return RigidTransform(rotation_from_vector([0, 0, angle]), np.array(place))


class Robot:
    """Drives, with a camera that may turn on it, or turns without its odometry."""

    def __init__(self, max_turn_deg=2.0, seed=1):
        self.watch = MountWatch(max_turn_deg, 0.1)
        self.rng = np.random.default_rng(seed)

    def sees(self, step, odometry, mount=IDENTITY, slip=IDENTITY, noise=1.0):
        """Return what the watch says of the next image."""
        # A slip turns the robot where it stood when the test began.
        pose = MAP_FROM_ODOM @ slip @ odometry @ BODY_FROM_CAMERA @ mount
        turned = rotation_from_vector(noise * np.radians(SIGMA_DEG) * self.rng.standard_normal(3))
        shifted = pose.translation + noise * SIGMA_M * self.rng.standard_normal(3)
        pose = RigidTransform(turned @ pose.rotation, shifted)
        return self.watch.check(step * STEP_NS, pose, COVARIANCE, odometry, BODY_FROM_CAMERA)


@pytest.mark.parametrize('curve', [0.0, 0.8])
@pytest.mark.parametrize('seed', range(5))
def test_a_camera_that_stands_still_on_its_robot_is_left_alone(curve, seed):
    robot = Robot(seed=seed)
    assert [robot.sees(step, ahead(step, curve)) for step in range(100)] == [''] * 100


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('degrees', [5.0, -8.0])
@pytest.mark.parametrize('curve', [0.0, 0.4])
def test_a_turned_camera_is_silent_at_once_and_told_within_a_second(axis, degrees, curve):
    robot = Robot()
    for step in range(10):
        assert robot.sees(step, ahead(step, curve)) == ''
    mount = turn(axis, degrees)
    found = [robot.sees(step, ahead(step, curve), mount=mount) for step in range(10, 40)]
    assert all(found)
    assert all('on its mount: mend' in text for text in found[9:])
    told = float(re.search(r'turned by ([\d.]+) degrees', found[9]).group(1))
    assert told == pytest.approx(abs(degrees), abs=5 * SIGMA_DEG)


def test_a_robot_that_slipped_goes_on_once_it_has_driven():
    robot = Robot()
    for step in range(10):
        assert robot.sees(step, ahead(0)) == ''
    at_camera = BODY_FROM_CAMERA.translation
    # About the camera: a mount could have done it.
    turned = turn(2, 6.0).rotation
    slip = RigidTransform(turned, at_camera - turned @ at_camera)
    found = [robot.sees(10 + step, ahead(step), slip=slip) for step in range(20)]
    assert 'slipped' in found[0]
    assert found[-10:] == [''] * 10


def test_a_single_wrong_pose_is_held_back_and_forgotten():
    robot = Robot()
    assert robot.sees(0, ahead(0)) == ''
    assert robot.sees(1, ahead(1), mount=turn(1, 7.0))
    assert robot.sees(2, ahead(2)) == ''


def test_a_robot_that_was_carried_away_is_no_turned_mount():
    robot = Robot()
    carried = RigidTransform(turn(2, 90.0).rotation, np.array([3.0, 1.0, 0.0]))
    assert robot.sees(0, ahead(0)) == ''
    assert robot.sees(1, ahead(0), slip=carried) == ''
    assert robot.sees(2, ahead(0), slip=carried) == ''


def test_a_robot_that_is_carried_away_while_a_turn_is_not_explained():
    robot = Robot()
    carried = RigidTransform(turn(2, 90.0).rotation, np.array([3.0, 1.0, 0.0]))
    assert robot.sees(0, ahead(0)) == ''
    assert robot.sees(1, ahead(1), mount=turn(1, 7.0))
    found = [robot.sees(step, ahead(step), slip=carried) for step in range(2, 20)]
    assert 'on its mount: mend' not in ''.join(found)
    assert found[-1] == ''


def test_a_mended_transform_or_a_reset_starts_again():
    robot = Robot()
    mount = turn(1, 5.0)
    for step in range(30):
        told = robot.sees(step, ahead(step), mount=mount if step > 5 else IDENTITY)
    assert 'on its mount' in told
    pose = MAP_FROM_ODOM @ ahead(30) @ BODY_FROM_CAMERA @ mount
    told = robot.watch.check(30 * STEP_NS, pose, COVARIANCE, ahead(30), BODY_FROM_CAMERA @ mount)
    assert told == ''
    for step in range(31, 60):
        told = robot.sees(step, ahead(step), mount=mount)
    assert 'on its mount' not in told
    robot.watch.reset()
    assert robot.sees(60, ahead(60)) == ''


def test_wheels_that_turn_without_the_robot_are_no_mount():
    robot = Robot()
    assert robot.sees(0, ahead(0)) == ''
    spun = turn(2, 70.0)
    at_camera = BODY_FROM_CAMERA.translation
    spun = RigidTransform(spun.rotation, at_camera - spun.rotation @ at_camera)
    assert robot.sees(10, spun, slip=spun.inverse()) == ''


def test_it_can_be_switched_off():
    robot = Robot(max_turn_deg=0.0)
    assert robot.sees(0, ahead(0)) == ''
    assert robot.sees(1, ahead(1), mount=turn(1, 40.0)) == ''
