"""Landmarks from tracks: which, how certain, and how training leaves an image out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2s_ros.errors import InputError
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.noise import detection_sigma_px
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction
from d2s_ros.scene_models.base import View
from d2s_ros.scene_models.landmark.samples import make_sample, network_inputs
from d2s_ros.scene_models.landmark.table import (
    LandmarkIndex,
    build_landmarks,
    candidate_errors_px,
    find_training_candidates,
)

CAMERA = Camera('pinhole', 640, 480, 500.0, 505.0, 320.0, 240.0)
DIM = 24


def unit(vectors):
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(norm, 1e-12)).astype(np.float32)


def make_reconstruction(rng, num_points=60, num_images=5, clutter=20):
    """Return a hand-made reconstruction: exact projections, noisy descriptors, some clutter."""
    points = rng.uniform([-2, -1.5, 4], [2, 1.5, 8], (num_points, 3))
    names = unit(rng.normal(size=(num_points, DIM)))
    lengths = np.zeros(num_points, np.int64)
    images = []
    for index in range(num_images):
        pose = RigidTransform(
            rotation_from_vector(0.05 * rng.normal(size=3)), np.array([0.4 * index - 0.8, 0, 0])
        )
        # Later points are seen by fewer images.
        seen = np.flatnonzero(np.arange(num_points) % num_images >= index - 1)
        pixels = CAMERA.project(pose.inverse().apply(points[seen]))
        keypoints = np.concatenate([pixels, rng.uniform([0, 0], [640, 480], (clutter, 2))])
        descriptors = np.concatenate(
            [
                names[seen] + 0.15 * rng.normal(size=(len(seen), DIM)),
                rng.normal(size=(clutter, DIM)),
            ]
        )
        count = len(keypoints)
        features = LocalFeatures(
            keypoints.astype(np.float32),
            np.ones(count, np.float32),
            unit(descriptors),
            (640, 480),
            rng.uniform(1, 6, count).astype(np.float32),
        )
        point_idx = np.concatenate([seen, np.full(clutter, -1)]).astype(np.int64)
        lengths[seen] += 1
        images.append(MappedImage(str(index), index, CAMERA, pose, features, keypoints, point_idx))
    return Reconstruction(images, points, np.zeros(num_points), lengths, True)


def test_keys_are_mean_descriptors(rng):
    reconstruction = make_reconstruction(rng)
    table, statistics = build_landmarks(reconstruction, max_landmarks=1000)
    assert len(table) == 60
    for landmark in range(60):
        descriptors = [
            image.features.descriptors[image.point_idx == landmark]
            for image in reconstruction.images
        ]
        mean = np.concatenate(descriptors).sum(0)
        np.testing.assert_allclose(table.keys[landmark], unit(mean), atol=1e-6)
        assert statistics.counts[landmark] == sum(map(len, descriptors))
    np.testing.assert_allclose(table.points_in_map, reconstruction.points_in_map, atol=1e-6)
    assert (statistics.landmark_of_point == np.arange(60)).all()


def test_the_longest_tracks_are_kept(rng):
    reconstruction = make_reconstruction(rng)
    table, statistics = build_landmarks(reconstruction, max_landmarks=25)
    assert len(table) == 25
    kept = statistics.landmark_of_point >= 0
    lengths = reconstruction.track_lengths
    assert lengths[kept].min() >= lengths[~kept].max()
    np.testing.assert_allclose(
        table.points_in_map[statistics.landmark_of_point[kept]],
        reconstruction.points_in_map[kept],
        atol=1e-6,
    )


def test_too_few_points_are_an_error(rng):
    with pytest.raises(InputError, match='only 12 points'):
        build_landmarks(make_reconstruction(rng, num_points=12), max_landmarks=100)


def test_covariances_agree_with_monte_carlo(rng):
    reconstruction = make_reconstruction(rng, num_points=25)
    table, _ = build_landmarks(reconstruction, max_landmarks=100)
    checked = 0
    for point in range(25):
        rows = []
        for image in reconstruction.images:
            for keypoint in np.flatnonzero(image.point_idx == point):
                sigma = detection_sigma_px(image.features.scales[keypoint : keypoint + 1])[0]
                rows.append((image.map_from_camera.inverse(), sigma))
        if len(rows) < 3:
            continue
        truth = reconstruction.points_in_map[point]
        estimates = triangulate_many(rows, truth, rng, 1500)
        found = np.cov(estimates.T)
        expected = table.covariances[point].astype(np.float64)
        # Compare after whitening: the ratio of variances in every direction is about one.
        lower = np.linalg.cholesky(expected)
        whitened = np.linalg.solve(lower, np.linalg.solve(lower, found).T)
        eigenvalues = np.linalg.eigvalsh(whitened)
        assert 0.8 < eigenvalues[0] <= eigenvalues[-1] < 1.25
        checked += 1
    assert checked >= 10


def triangulate_many(rows, truth, rng, trials):
    """Return weighted least-squares points (trials, 3) from noisy pixels, by Gauss-Newton."""
    estimates = np.repeat(truth[None], trials, axis=0)
    observed = [
        CAMERA.project(pose.apply(truth[None])) + sigma * rng.normal(size=(trials, 2))
        for pose, sigma in rows
    ]
    for _ in range(5):
        information = np.zeros((trials, 3, 3))
        gradient = np.zeros((trials, 3))
        for (pose, sigma), pixels in zip(rows, observed, strict=True):
            base = CAMERA.project(pose.apply(estimates))
            step = 1e-5
            jacobian = np.stack(
                [
                    (CAMERA.project(pose.apply(estimates + step * e)) - base) / step
                    for e in np.eye(3)
                ],
                axis=2,
            )
            information += jacobian.transpose(0, 2, 1) @ jacobian / sigma**2
            gradient += np.einsum('nij,ni->nj', jacobian, pixels - base) / sigma**2
        estimates = estimates + np.linalg.solve(information, gradient[..., None])[..., 0]
    return estimates


def test_covariances_survive_float32(rng):
    """Two nearly parallel views leave the depth open; the covariance stays positive definite."""
    reconstruction = make_reconstruction(rng, num_images=2)
    close = [
        MappedImage(
            image.name,
            image.stamp_ns,
            image.camera,
            RigidTransform(np.eye(3), np.array([1e-4 * index, 0, 0])),
            image.features,
            image.ideal_keypoints,
            image.point_idx,
        )
        for index, image in enumerate(reconstruction.images)
    ]
    table, _ = build_landmarks(
        Reconstruction(
            close, reconstruction.points_in_map, np.zeros(60), reconstruction.track_lengths, True
        ),
        max_landmarks=100,
    )
    values = np.linalg.eigvalsh(table.covariances)
    assert values.min() > 0
    assert (values[:, 2] > 100 * values[:, 0]).all()


def test_leaving_an_image_out_equals_a_map_without_it(rng):
    reconstruction = make_reconstruction(rng)
    table, statistics = build_landmarks(reconstruction, max_landmarks=1000)
    for index in (0, 2, 4):
        image = reconstruction.images[index]
        candidates = find_training_candidates(image.features, image.point_idx, table, statistics, 5)
        keys = np.zeros((60, DIM))
        for other_index, other in enumerate(reconstruction.images):
            if other_index != index:
                seen = other.point_idx >= 0
                np.add.at(keys, other.point_idx[seen], other.features.descriptors[seen])
        similarity = image.features.descriptors @ unit(keys).T
        # A landmark that only this image saw cannot be found without it.
        similarity[:, ~keys.any(axis=1)] = -1.0
        order = np.argsort(-similarity, axis=1)[:, :5]
        expected = np.take_along_axis(similarity, order, axis=1)
        # The search by 8-bit integers may swap candidates that are nearly as good.
        np.testing.assert_allclose(candidates.similarity, expected, atol=0.02)
        found = np.take_along_axis(similarity, candidates.landmark_idx, axis=1)
        np.testing.assert_allclose(candidates.similarity, found, atol=1e-5)
        assert (candidates.landmark_idx[:, 0] == order[:, 0]).mean() > 0.98
        np.testing.assert_allclose(
            candidates.best_of_landmark, similarity.max(0)[candidates.landmark_idx], atol=0.02
        )
        with_own = LandmarkIndex(table.keys).search(image.features.descriptors, 5)
        own = image.point_idx >= 0
        assert with_own.similarity[own, 0].mean() > candidates.similarity[own, 0].mean() + 0.01


def test_two_keypoints_of_one_landmark_in_an_image(rng):
    reconstruction = make_reconstruction(rng)
    image = reconstruction.images[1]
    image.point_idx[-1] = image.point_idx[0]
    table, statistics = build_landmarks(reconstruction, max_landmarks=1000)
    landmark = int(image.point_idx[0])
    candidates = find_training_candidates(image.features, image.point_idx, table, statistics, 60)
    total = sum(
        other.features.descriptors[other.point_idx == landmark].sum(0)
        for other in reconstruction.images
        if other is not image
    )
    column = np.argmax(candidates.landmark_idx[0] == landmark)
    expected = float(image.features.descriptors[0] @ unit(total))
    assert np.isclose(candidates.similarity[0, column], expected, atol=1e-5)


def test_few_landmarks_are_padded(rng):
    keys = unit(rng.normal(size=(3, DIM)))
    candidates = LandmarkIndex(keys).search(unit(rng.normal(size=(7, DIM))), 5)
    assert candidates.landmark_idx.shape == candidates.similarity.shape == (7, 5)
    assert (candidates.similarity[:, 3:] == -1).all()
    assert candidates.landmark_idx.max() <= 2
    none = LandmarkIndex(keys).search(np.zeros((0, DIM), np.float32), 2)
    assert none.landmark_idx.shape == (0, 2)


@pytest.mark.parametrize(('landmarks', 'keypoints'), [(40, 5), (700, 300), (5000, 600)])
def test_search_finds_what_exact_cosines_find(rng, landmarks, keypoints):
    keys = unit(rng.normal(size=(landmarks, 64)) + 1.0)
    seen = rng.permutation(landmarks)[:keypoints] if keypoints <= landmarks else None
    queries = unit(keys[seen] + rng.normal(scale=0.05, size=(keypoints, 64)))
    found = LandmarkIndex(keys).search(queries, 6)
    cosines = queries @ keys.T
    expected = np.sort(cosines, axis=1)[:, :-7:-1]
    np.testing.assert_array_equal(found.landmark_idx[:, 0], cosines.argmax(axis=1))
    np.testing.assert_allclose(
        found.similarity, np.take_along_axis(cosines, found.landmark_idx, axis=1), atol=2e-6
    )
    # In 8 bits some of the last candidates are others that are almost as near.
    np.testing.assert_allclose(found.similarity, expected, atol=0.02)
    assert np.isclose(found.similarity, expected, atol=1e-5).mean() > 0.95
    assert all(len(set(row)) == 6 for row in found.landmark_idx.tolist())
    best = cosines.max(axis=0)[found.landmark_idx]
    np.testing.assert_allclose(found.best_of_landmark, best, atol=0.03)
    mutual = cosines[np.arange(keypoints), seen] == cosines.max(axis=0)[seen]
    behind = (found.similarity - found.best_of_landmark)[mutual, 0]
    assert mutual.mean() > 0.9
    assert (behind == 0).mean() > 0.99


def test_search_where_nothing_is_alike(rng):
    """Negative cosines are all the same in 8 bits: whatever is found is a landmark."""
    keys = unit(np.abs(rng.normal(size=(1500, 24))))
    found = LandmarkIndex(keys).search(-keys[:50], 6)
    assert found.landmark_idx.max() < 1500
    assert all(len(set(row)) == 6 for row in found.landmark_idx.tolist())
    assert (found.similarity < 0).all()
    assert (np.diff(found.similarity, axis=1) <= 0).all()


def test_candidate_errors_are_reprojection_errors(rng):
    reconstruction = make_reconstruction(rng)
    table, statistics = build_landmarks(reconstruction, max_landmarks=1000)
    image = reconstruction.images[0]
    candidates = find_training_candidates(image.features, image.point_idx, table, statistics, 3)
    errors = candidate_errors_px(
        candidates, table, image.ideal_keypoints, CAMERA, image.map_from_camera
    )
    for keypoint in range(0, len(image.features), 7):
        for column in range(3):
            point = table.points_in_map[candidates.landmark_idx[keypoint, column]]
            pixel = CAMERA.project(image.map_from_camera.inverse().apply(point[None]))[0]
            expected = np.linalg.norm(pixel - image.ideal_keypoints[keypoint])
            assert np.isclose(errors[keypoint, column], expected, atol=1e-2)
    turned = RigidTransform(rotation_from_vector([0, np.pi, 0]), np.zeros(3))
    behind = candidate_errors_px(candidates, table, image.ideal_keypoints, CAMERA, turned)
    assert np.isinf(behind).all()


def test_samples_mark_what_projects_onto_the_keypoint(rng):
    reconstruction = make_reconstruction(rng)
    table, statistics = build_landmarks(reconstruction, max_landmarks=1000)
    image = reconstruction.images[1]
    candidates = find_training_candidates(image.features, image.point_idx, table, statistics, 4)
    sample = make_sample(image, candidates, table, correct_px=3.0)
    assert len(sample) == len(image.features)
    labelled = image.point_idx[:, None] == candidates.landmark_idx
    # Exact projections: the landmark of a labelled keypoint is right, and is mostly found.
    assert sample.correct.numpy()[labelled].all()
    assert sample.correct.numpy()[image.point_idx >= 0].any(axis=1).mean() > 0.9
    assert sample.correct.numpy()[image.point_idx < 0].mean() < 0.05
    assert torch.isfinite(sample.evidence).all()
    inputs = network_inputs(View(image.features, CAMERA), candidates, table)
    assert torch.equal(inputs['candidate_points'], sample.candidate_points)
    assert sample.candidate_points.abs().median() < 1
    np.testing.assert_allclose(
        sample.keypoints.numpy(), CAMERA.normalize(image.features.keypoints), atol=1e-5
    )
    np.testing.assert_allclose(sample.log_scales.numpy(), np.log(image.features.scales), atol=1e-6)
