"""Global descriptors and the choice of image pairs."""

from __future__ import annotations

import numpy as np

from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.reconstruction.pair_matching import select_pairs
from d2s_ros.reconstruction.reconstruction import ImageInput, ReconstructionConfig
from d2s_ros.reconstruction.retrieval import Vlad, nearest_images


def unit(rng, count, dim=16):
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_vlad_is_unit_and_ignores_order_and_repetition(rng):
    descriptors = unit(rng, 200)
    vlad = Vlad.fit([descriptors, unit(rng, 100)], num_centroids=8)
    described = vlad.describe(descriptors)
    assert described.shape == (8 * 16,)
    assert np.isclose(np.linalg.norm(described), 1, atol=1e-5)
    shuffled = descriptors[rng.permutation(200)]
    np.testing.assert_allclose(vlad.describe(shuffled), described, atol=1e-5)
    twice = np.concatenate([descriptors, descriptors])
    np.testing.assert_allclose(vlad.describe(twice), described, atol=1e-5)


def test_vlad_equals_its_definition(rng):
    vlad = Vlad.fit([unit(rng, 50)], num_centroids=4)
    centroids = vlad.centroids.numpy()
    # Not those of the fit: residuals to their converged centroids sum to nearly nothing.
    other = unit(rng, 30)
    blocks = np.zeros_like(centroids)
    for descriptor in other:
        nearest = np.argmin(((centroids - descriptor) ** 2).sum(1))
        blocks[nearest] += descriptor - centroids[nearest]
    blocks /= np.maximum(np.linalg.norm(blocks, axis=1, keepdims=True), 1e-12)
    expected = blocks.ravel() / np.linalg.norm(blocks)
    np.testing.assert_allclose(vlad.describe(other), expected, atol=1e-5)


def test_vlad_of_little_or_nothing(rng):
    vlad = Vlad.fit([unit(rng, 3), np.zeros((0, 16), np.float32)], num_centroids=32)
    assert len(vlad.centroids) == 3
    assert not vlad.describe(np.zeros((0, 16), np.float32)).any()


def test_fit_is_deterministic(rng):
    data = [unit(rng, 80) for _ in range(4)]
    first, second = Vlad.fit(data, seed=5), Vlad.fit(data, seed=5)
    assert (first.centroids == second.centroids).all()


def test_images_of_one_place_are_neighbours(rng):
    places = [unit(rng, 150) for _ in range(6)]
    images = []
    for place in places:
        for _ in range(3):
            noisy = place[rng.permutation(150)[:100]] + 0.05 * rng.normal(size=(100, 16))
            images.append((noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32))
    vlad = Vlad.fit(images)
    described = np.stack([vlad.describe(image) for image in images])
    found = nearest_images(described, described, 3)
    assert (found[:, 0] == np.arange(18)).all()
    assert (found // 3 == np.arange(18)[:, None] // 3).all()
    brute = np.argsort(-(described @ described.T), axis=1, kind='stable')[:, :3]
    assert (np.sort(found) == np.sort(brute)).all()
    assert nearest_images(described[:2], described[:4], 99).shape == (2, 4)


def images_on_a_line(rng, count, posed=True):
    camera = Camera('pinhole', 64, 48, 50.0, 50.0, 31.5, 23.5)
    images = []
    for index in range(count):
        descriptors = unit(rng, 30)
        features = LocalFeatures(
            np.zeros((30, 2), np.float32),
            np.ones(30, np.float32),
            descriptors,
            (64, 48),
            np.ones(30, np.float32),
        )
        pose = RigidTransform(
            rotation_from_vector([0, 0.05 * index, 0]), np.array([0.1 * index, 0, 0])
        )
        images.append(ImageInput(str(index), index, camera, pose if posed else None, features))
    return images


def test_few_images_are_all_matched(rng):
    config = ReconstructionConfig(all_pairs_up_to=10)
    pairs = select_pairs(images_on_a_line(rng, 10), config)
    assert pairs == [(i, j) for i in range(10) for j in range(i + 1, 10)]


def test_the_number_of_pairs_grows_linearly(rng):
    config = ReconstructionConfig(all_pairs_up_to=10)
    each = config.retrieval_neighbours + config.pose_neighbours + 1
    for posed in (True, False):
        for count in (50, 100, 200):
            pairs = select_pairs(images_on_a_line(rng, count, posed), config)
            assert count - 1 <= len(pairs) <= count * each
            assert pairs == sorted(set(pairs))
            assert all(0 <= i < j < count for i, j in pairs)
            assert {(i, i + 1) for i in range(count - 1)} <= set(pairs)


def test_a_walk_is_matched_with_what_follows_and_what_is_near(rng):
    config = ReconstructionConfig(all_pairs_up_to=100, next_images=3)
    found = select_pairs(images_on_a_line(rng, 40, posed=False), config)
    assert found == [(i, j) for i in range(40) for j in range(i + 1, min(i + 4, 40))]
    posed = set(select_pairs(images_on_a_line(rng, 40), config))
    assert posed > set(found)
    # Of every other neighbour by pose, of six, the farthest at the end of the line.
    assert max(j - i for i, j in posed) <= 11


def test_cameras_that_look_apart_are_not_neighbours_by_pose(rng):
    images = images_on_a_line(rng, 60)
    config = ReconstructionConfig(all_pairs_up_to=2, retrieval_neighbours=1, pose_neighbours=6)
    found = select_pairs(images, config)
    # Heading turns by 0.05 rad an image: 27 images are more than 75 degrees apart. Only the one
    # neighbour by (random) descriptors may be that far.
    assert sum(j - i >= 27 for i, j in found) <= 60
    assert sum(1 < j - i < 27 for i, j in found) > 100
