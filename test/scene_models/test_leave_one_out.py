"""Leaving images out of a map: points without one of their observations, against a new fit."""

from __future__ import annotations

import numpy as np
import pytest

from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction
from d2s_ros.scene_models.landmark.leave_one_out import LeaveOneOut
from d2s_ros.scene_models.landmark.table import build_landmarks

CAMERA = Camera('pinhole', 640, 480, 500.0, 500.0, 320.0, 240.0)


def fit(points, poses, pixels, visible):
    """Return the points (N, 3) with least squared residuals in px, from a start near them."""
    result = points.copy()
    for index in range(len(points)):
        for _ in range(20):
            normal, right = np.zeros((3, 3)), np.zeros(3)
            for pose, pixel, seen in zip(poses, pixels, visible, strict=True):
                if not seen[index]:
                    continue
                x, y, z = pose.inverse().apply(result[None, index])[0]
                jacobian = (
                    np.array([[500 / z, 0, -500 * x / z**2], [0, 500 / z, -500 * y / z**2]])
                    @ pose.inverse().rotation
                )
                residual = np.array([500 * x / z + 320, 500 * y / z + 240]) - pixel[index]
                normal += jacobian.T @ jacobian
                right += jacobian.T @ residual
            result[index] -= np.linalg.solve(normal, right)
    return result


@pytest.fixture(scope='module')
def scene():
    """Return a reconstruction of noisy observations, fitted, and its parts."""
    rng = np.random.default_rng(5)
    true = rng.uniform([-2, -1.5, 4], [2, 1.5, 7], (40, 3))
    poses = [
        RigidTransform(rotation_from_vector(rng.normal(0, 0.05, 3)), np.array([x, 0.2 * x**2, 0.0]))
        for x in (-1.5, -0.5, 0.5, 1.5)
    ]
    pixels = [
        CAMERA.project(pose.inverse().apply(true)) + rng.normal(0, 0.5, (40, 2)) for pose in poses
    ]
    visible = np.ones((4, 40), bool)
    # The last five points are seen by two images only, the first among them.
    visible[1:3, 35:] = False
    points = fit(true, poses, pixels, visible)
    images = []
    for pose, pixel, seen in zip(poses, pixels, visible, strict=True):
        descriptors = rng.normal(size=(40, 8)).astype(np.float32)
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        features = LocalFeatures(
            pixel.astype(np.float32),
            np.ones(40, np.float32),
            descriptors,
            (640, 480),
            np.ones(40, np.float32),
        )
        point_idx = np.where(seen, np.arange(40), -1)
        images.append(MappedImage('', 0, CAMERA, pose, features, pixel, point_idx))
    lengths = visible.sum(axis=0)
    return Reconstruction(images, points, np.zeros(40), lengths, True), poses, pixels, visible


def test_points_move_as_if_they_had_been_fitted_without_the_image(scene):
    reconstruction, poses, pixels, visible = scene
    table, statistics = build_landmarks(reconstruction, max_landmarks=100)
    others = LeaveOneOut(reconstruction, table, statistics, 6)
    left, gone = others.without(0)
    np.testing.assert_array_equal(np.flatnonzero(gone), np.arange(35, 40))
    expected = fit(reconstruction.points_in_map, poses[1:], pixels[1:], visible[1:] | gone)
    step = left.points_in_map[:35] - table.points_in_map[:35]
    true_step = expected[:35] - table.points_in_map[:35]
    assert np.linalg.norm(true_step, axis=1).max() > 0.01
    # The formula is of first order.
    assert np.linalg.norm(step - true_step) < 0.1 * np.linalg.norm(true_step)
    np.testing.assert_array_equal(left.points_in_map[gone], table.points_in_map[gone])


def test_fewer_observations_make_points_less_certain(scene):
    reconstruction = scene[0]
    table, statistics = build_landmarks(reconstruction, max_landmarks=100)
    left, gone = LeaveOneOut(reconstruction, table, statistics, 6).without(0)
    kept = ~gone
    without = Reconstruction(
        reconstruction.images[1:],
        reconstruction.points_in_map,
        reconstruction.point_errors_px,
        reconstruction.track_lengths,
        True,
    )
    again, _ = build_landmarks(without, max_landmarks=100)
    traces = [np.trace(item.covariances[kept], axis1=1, axis2=2) for item in (left, again, table)]
    np.testing.assert_allclose(traces[0], traces[1], rtol=0.05)
    assert (traces[0] > traces[2]).all()


def test_landmarks_of_one_point_move_together(scene):
    reconstruction = scene[0]
    # The point 0 as two landmarks: images 0 and 1 see one of them, the others see the other.
    points = np.concatenate([reconstruction.points_in_map, reconstruction.points_in_map[:1]])
    images = [
        MappedImage(
            '', 0, CAMERA, image.map_from_camera, image.features, image.ideal_keypoints, idx
        )
        for number, image in enumerate(reconstruction.images)
        for idx in [np.where((image.point_idx == 0) & (number >= 2), 40, image.point_idx)]
    ]
    lengths = np.append(reconstruction.track_lengths, 2)
    split = Reconstruction(images, points, np.zeros(41), lengths, True)
    table, statistics = build_landmarks(split, max_landmarks=100)
    left, gone = LeaveOneOut(split, table, statistics, 6).without(0)
    one, other = statistics.landmark_of_point[[0, 40]]
    assert not gone[[one, other]].any()
    np.testing.assert_array_equal(left.points_in_map[one], left.points_in_map[other])
    whole_table, whole = build_landmarks(reconstruction, max_landmarks=100)
    expected = LeaveOneOut(reconstruction, whole_table, whole, 6).without(0)[0]
    np.testing.assert_allclose(
        left.points_in_map[one], expected.points_in_map[whole.landmark_of_point[0]], atol=1e-5
    )
