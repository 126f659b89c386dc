"""Matching against brute force."""

from __future__ import annotations

import numpy as np
import torch

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.reconstruction.matching import (
    epipolar_distances,
    fundamental_from_poses,
    match_guided,
    match_mutual,
)

CAMERA_1 = Camera('pinhole', 640, 480, 500.0, 510.0, 321.0, 238.0)
CAMERA_2 = Camera('pinhole', 800, 600, 650.0, 640.0, 395.0, 303.0)


def unit(rng, count, dim=32):
    vectors = rng.normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def two_views(rng, count=150):
    """Return poses, points and exact projections of points seen by both cameras."""
    pose_1 = RigidTransform(rotation_from_vector([0.1, -0.2, 0.05]), np.array([0.3, 0.1, -0.2]))
    pose_2 = RigidTransform(rotation_from_vector([0.05, 0.1, -0.1]), np.array([1.2, -0.1, 0.1]))
    points = rng.uniform([-3, -2, 4], [3, 2, 9], (count, 3))
    pixels_1 = CAMERA_1.project(pose_1.inverse().apply(points))
    pixels_2 = CAMERA_2.project(pose_2.inverse().apply(points))
    return pose_1, pose_2, pixels_1, pixels_2


def line_distance(fundamental, p1, p2):
    """Return the larger distance of the two points to their epipolar lines, in float64."""
    x1, x2 = np.append(p1, 1.0), np.append(p2, 1.0)
    line_2, line_1 = fundamental @ x1, fundamental.T @ x2
    return max(
        abs(line_2 @ x2) / np.hypot(*line_2[:2]),
        abs(line_1 @ x1) / np.hypot(*line_1[:2]),
    )


def test_true_projections_lie_on_their_epipolar_lines(rng):
    pose_1, pose_2, pixels_1, pixels_2 = two_views(rng)
    fundamental = fundamental_from_poses(CAMERA_1, CAMERA_2, pose_1, pose_2)
    assert np.isclose(np.linalg.norm(fundamental), 1)
    assert abs(np.linalg.det(fundamental)) < 1e-12
    distances = epipolar_distances(
        fundamental, pixels_1.astype(np.float32), pixels_2.astype(np.float32)
    )
    assert distances.max() < 0.02


def test_epipolar_distances_are_distances_to_lines(rng):
    pose_1, pose_2, pixels_1, pixels_2 = two_views(rng)
    fundamental = fundamental_from_poses(CAMERA_1, CAMERA_2, pose_1, pose_2)
    p1 = (pixels_1 + rng.normal(0, 20, pixels_1.shape)).astype(np.float32)
    p2 = (pixels_2 + rng.normal(0, 20, pixels_2.shape)).astype(np.float32)
    expected = [line_distance(fundamental, a, b) for a, b in zip(p1, p2, strict=True)]
    found = epipolar_distances(fundamental, p1, p2)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=0.02)


def brute_force_guided(d1, d2, p1, p2, fundamental, limit, ratio, min_similarity):
    n1, n2 = len(d1), len(d2)
    similarity = np.full((n1, n2), -1.0)
    for i in range(n1):
        for j in range(n2):
            value = float(d1[i] @ d2[j])
            if value > min_similarity and line_distance(fundamental, p1[i], p2[j]) <= limit:
                similarity[i, j] = value
    pairs = set()
    for i in range(n1):
        j = int(similarity[i].argmax())
        best = similarity[i, j]
        if best <= min_similarity or similarity[:, j].argmax() != i:
            continue
        second = max(np.delete(similarity[i], j).max(), np.delete(similarity[:, j], i).max())
        if 1 - best <= ratio**2 * (1 - second):
            pairs.add((i, j))
    return pairs


def test_guided_matching_equals_brute_force(rng):
    pose_1, pose_2, pixels_1, pixels_2 = two_views(rng)
    fundamental = fundamental_from_poses(CAMERA_1, CAMERA_2, pose_1, pose_2)
    base = unit(rng, 150)
    # Groups of similar descriptors, so that the ratio test and geometry have work to do.
    base[:60] = base[rng.integers(0, 12, 60)]
    d1 = base + 0.08 * rng.normal(size=base.shape)
    d2 = base + 0.08 * rng.normal(size=base.shape)
    d1 = (d1 / np.linalg.norm(d1, axis=1, keepdims=True)).astype(np.float32)
    d2 = (d2 / np.linalg.norm(d2, axis=1, keepdims=True)).astype(np.float32)
    shuffle = rng.permutation(150)
    d2, pixels_2 = d2[shuffle], pixels_2[shuffle]
    p1 = (pixels_1 + rng.normal(0, 1.5, pixels_1.shape)).astype(np.float32)
    p2 = (pixels_2 + rng.normal(0, 1.5, pixels_2.shape)).astype(np.float32)
    for limit, ratio, min_similarity in ((2.5, 0.9, 0.5), (20.0, 0.8, 0.0), (1.0, 1.0, 0.7)):
        found, similarity = match_guided(
            torch.from_numpy(d1),
            torch.from_numpy(d2),
            p1,
            p2,
            fundamental,
            max_distance_px=limit,
            ratio=ratio,
            min_similarity=min_similarity,
        )
        expected = brute_force_guided(d1, d2, p1, p2, fundamental, limit, ratio, min_similarity)
        assert {tuple(pair) for pair in found.tolist()} == expected
        assert len(expected) > 20
        np.testing.assert_allclose(
            similarity, (d1[found[:, 0]] * d2[found[:, 1]]).sum(1), atol=1e-5
        )


def test_guided_matching_rejects_similar_points_off_the_line(rng):
    pose_1, pose_2, pixels_1, pixels_2 = two_views(rng, 30)
    fundamental = fundamental_from_poses(CAMERA_1, CAMERA_2, pose_1, pose_2)
    descriptors = torch.from_numpy(unit(rng, 30))

    def matched(points_2):
        found, _ = match_guided(
            descriptors,
            descriptors,
            pixels_1.astype(np.float32),
            points_2.astype(np.float32),
            fundamental,
            max_distance_px=2.5,
            ratio=0.9,
            min_similarity=0.8,
        )
        return found

    assert len(matched(pixels_2)) == 30
    lines = np.concatenate([pixels_1, np.ones((30, 1))], axis=1) @ fundamental.T
    normal = lines[:, :2] / np.linalg.norm(lines[:, :2], axis=1, keepdims=True)
    assert len(matched(pixels_2 + 10 * normal)) == 0


def test_mutual_matching_equals_brute_force_and_is_symmetric(rng):
    base = unit(rng, 120)
    d1 = base + 0.1 * rng.normal(size=base.shape).astype(np.float32)
    d2 = base[::-1] + 0.1 * rng.normal(size=base.shape).astype(np.float32)
    d1 /= np.linalg.norm(d1, axis=1, keepdims=True)
    d2 /= np.linalg.norm(d2, axis=1, keepdims=True)
    t1, t2 = torch.from_numpy(d1), torch.from_numpy(d2)[:90].contiguous()
    similarity = t1.numpy() @ t2.numpy().T
    for ratio, floor in ((0.9, 0.0), (1.0, 0.0), (0.8, 0.75)):
        forward, values = match_mutual(t1, t2, ratio=ratio, min_similarity=floor)
        backward, _ = match_mutual(t2, t1, ratio=ratio, min_similarity=floor)
        pairs = {tuple(pair) for pair in forward.tolist()}
        assert pairs == {(j, i) for i, j in backward.tolist()}
        expected = set()
        for i in range(len(t1)):
            j = int(similarity[i].argmax())
            second = max(np.delete(similarity[i], j).max(), np.delete(similarity[:, j], i).max())
            passes = ratio >= 1 or 1 - similarity[i, j] <= ratio**2 * (1 - second)
            if similarity[:, j].argmax() == i and similarity[i, j] > floor and passes:
                expected.add((i, j))
        assert pairs == expected
        assert len(pairs) > 30
        np.testing.assert_allclose(values, similarity[forward[:, 0], forward[:, 1]], atol=1e-6)


def test_nothing_to_match(rng):
    some, none = torch.from_numpy(unit(rng, 5)), torch.zeros(0, 32)
    for first, second in ((some, none), (none, some), (none, none)):
        pairs, values = match_mutual(first, second)
        assert pairs.shape == (0, 2)
        assert values.shape == (0,)
        pairs, values = match_guided(
            first,
            second,
            np.zeros((len(first), 2), np.float32),
            np.zeros((len(second), 2), np.float32),
            np.eye(3),
            max_distance_px=1.0,
            ratio=0.9,
            min_similarity=0.0,
        )
        assert pairs.shape == (0, 2)
        assert values.shape == (0,)
