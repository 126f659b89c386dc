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


@pytest.fixture(scope='module')
def walk():
    """Return seven images along a wall of 90 points: each shows 30, 20 of them as the last one."""
    rng = np.random.default_rng(6)
    points = np.stack([np.arange(90) / 10, rng.uniform(-1, 1, 90), rng.uniform(4, 5, 90)], axis=1)
    # As those of RootSIFT, none is opposite to another.
    clean = np.abs(rng.normal(size=(90, 16)))
    images = []
    for number in range(7):
        pose = RigidTransform(np.eye(3), np.array([number + 1.5, 0.1 * number % 3, 0.0]))
        seen = np.arange(10 * number, 10 * number + 30)
        descriptors = np.abs(clean[seen] + rng.normal(scale=0.2, size=(30, 16)))
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        pixel = CAMERA.project(pose.inverse().apply(points[seen])) + rng.normal(0, 0.3, (30, 2))
        features = LocalFeatures(
            pixel.astype(np.float32),
            np.ones(30, np.float32),
            descriptors.astype(np.float32),
            (640, 480),
            np.ones(30, np.float32),
        )
        images.append(MappedImage('', 0, CAMERA, pose, features, pixel, seen))
    lengths = np.bincount(np.concatenate([image.point_idx for image in images]), minlength=90)
    return Reconstruction(images, points, np.zeros(90), lengths, True)


def test_a_new_view_is_one_whose_neighbours_are_left_out(walk):
    table, statistics = build_landmarks(walk, max_landmarks=100)
    left_out = LeaveOneOut(walk, table, statistics, 6, shares_left=(1.0, 0.6, 0.3))
    chosen = [left_out.neighbours(index) for index in range(7)]
    # In turns: the image alone, and until 60 and 30 % of its landmarks are seen by others.
    assert chosen[0] == chosen[3] == chosen[6] == ()
    assert sorted(chosen[4]) == [2, 3, 5]
    assert len(chosen[5]) > len(chosen[1]) > 0
    for index, share in ((1, 0.6), (2, 0.3), (4, 0.6), (5, 0.3)):
        own = walk.images[index].point_idx

        def seen_by_others(
            without: tuple[int, ...], own: np.ndarray = own, index: int = index
        ) -> int:
            others = [
                image.point_idx
                for other, image in enumerate(walk.images)
                if other != index and other not in without
            ]
            return int(np.isin(own, np.concatenate(others)).sum())

        assert seen_by_others(chosen[index]) <= share * seen_by_others(())
        assert seen_by_others(chosen[index][:-1]) > share * seen_by_others(())


def test_a_new_view_finds_what_a_map_without_its_neighbours_shows(walk):
    table, statistics = build_landmarks(walk, max_landmarks=100)
    left_out = LeaveOneOut(walk, table, statistics, 6, shares_left=(1.0, 0.6, 0.3))
    others = [i for i in range(7) if i != 4 and i not in left_out.neighbours(4)]
    keys = np.zeros((90, 16))
    for index in others:
        np.add.at(keys, walk.images[index].point_idx, walk.images[index].features.descriptors)
    image = walk.images[4]
    norms = np.linalg.norm(keys, axis=1)
    cosines = image.features.descriptors @ (keys / np.maximum(norms, 1e-9)[:, None]).T
    cosines[:, norms == 0] = -1.0
    found = left_out.nearest(4)
    np.testing.assert_allclose(found.similarity[:, 0], cosines.max(axis=1), atol=1e-5)
    alone = LeaveOneOut(walk, table, statistics, 6)
    assert alone.neighbours(4) == ()
    assert alone.nearest(4).similarity[:, 0].mean() > found.similarity[:, 0].mean()
    left, gone = left_out.without(4)
    counts = np.bincount(
        np.concatenate([walk.images[index].point_idx for index in others]), minlength=90
    )
    np.testing.assert_array_equal(gone, (counts < 2) & (counts < walk.track_lengths))
    again = np.trace(left.covariances, axis1=1, axis2=2)
    assert (again >= np.trace(table.covariances, axis1=1, axis2=2) * 0.999).all()
