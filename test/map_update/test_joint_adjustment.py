"""New frames and points are made precise together, and nothing old moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from map_update.worlds import CAMERA, Room, keyframes, mapping_data

from d2s_ros.geometry.transforms import RigidTransform, pose_error, rotation_from_vector
from d2s_ros.map_update.joint_adjustment import adjust_new_frames
from d2s_ros.reconstruction.reconstruction import MappedImage


@pytest.fixture(scope='module')
def grown():
    """Return images, their number before, points, their number before, true poses and points.

    The upper half of the room was not mapped. Frames of a log see it and the lower half; their
    poses are off by 3 cm, and the points of the upper half by 10 cm.
    """
    room, rng = Room(), np.random.default_rng(5)
    data, renumber = mapping_data(room)
    old_points = data.points_in_map
    upper = np.flatnonzero(old_points[:, 2] > 1.7)
    lower = np.flatnonzero(old_points[:, 2] <= 1.7)
    order = np.concatenate([lower, upper])
    place = np.full(len(old_points) + 1, -1)
    place[order] = np.arange(len(order))
    images = []
    for image in data.images:
        point_idx = place[image.point_idx]
        images.append(replace(image, point_idx=np.where(point_idx < len(lower), point_idx, -1)))
    frames, poses, truths = keyframes(room, count=16)
    for frame, pose, truth in zip(frames, poses, truths, strict=True):
        turn = rotation_from_vector(rng.normal(0, np.radians(0.3), 3))
        off = RigidTransform(turn @ pose.rotation, pose.translation + rng.normal(0, 0.017, 3))
        images.append(
            MappedImage(
                frame.name,
                frame.stamp_ns,
                CAMERA,
                off,
                frame.features,
                CAMERA.undistort(frame.features.keypoints),
                place[renumber[truth]],
            )
        )
    points = old_points[order].copy()
    points[len(lower) :] += rng.normal(0, 0.06, (len(upper), 3))
    return images, len(data.images), points, len(lower), poses, old_points[order]


def test_poses_and_new_points_gain(grown):
    images, num_old, points, num_old_points, poses, true_points = grown
    before = [
        pose_error(i.map_from_camera, p) for i, p in zip(images[num_old:], poses, strict=True)
    ]
    adjusted, moved = adjust_new_frames(images, num_old, points, num_old_points)
    after = [
        pose_error(i.map_from_camera, p) for i, p in zip(adjusted[num_old:], poses, strict=True)
    ]
    assert np.median(before, axis=0)[0] > 0.02
    assert np.median(after, axis=0)[0] < 0.005
    assert np.max(after, axis=0)[0] < 0.02
    new = slice(num_old_points, None)
    seen = np.zeros(len(points), int)
    for image in images[num_old:]:
        seen[image.point_idx[image.point_idx >= 0]] += 1
    error = np.linalg.norm(moved - true_points, axis=1)[new][seen[new] >= 3]
    assert np.median(error) < 0.03
    assert (moved[:num_old_points] == points[:num_old_points]).all()
    for old, same in zip(images[:num_old], adjusted[:num_old], strict=True):
        assert (old.map_from_camera.matrix == same.map_from_camera.matrix).all()


def test_a_frame_that_shows_little_keeps_its_pose(grown):
    images, num_old, points, num_old_points, _, _ = grown
    images = list(images)
    few = images[-1].point_idx.copy()
    few[np.flatnonzero(few >= 0)[8:]] = -1
    images[-1] = replace(images[-1], point_idx=few)
    adjusted, _ = adjust_new_frames(images, num_old, points, num_old_points)
    same = adjusted[-1].map_from_camera.matrix == images[-1].map_from_camera.matrix
    assert same.all()
    assert not (adjusted[-2].map_from_camera.matrix == images[-2].map_from_camera.matrix).all()


def test_a_frame_far_from_where_it_fits_keeps_its_pose(grown):
    """What moves far was not nearly right; a robust fit would explain it somehow."""
    images, num_old, points, num_old_points, _, _ = grown
    images = list(images)
    pose = images[-1].map_from_camera
    far = replace(pose, translation=pose.translation + np.array([0.6, 0.0, 0.0]))
    images[-1] = replace(images[-1], map_from_camera=far)
    adjusted, _ = adjust_new_frames(images, num_old, points, num_old_points)
    assert (adjusted[-1].map_from_camera.matrix == far.matrix).all()


def test_nothing_new_changes_nothing(grown):
    images, num_old, points, num_old_points, _, _ = grown
    adjusted, moved = adjust_new_frames(images[:num_old], num_old, points, num_old_points)
    assert len(adjusted) == num_old
    assert (moved == points).all()
