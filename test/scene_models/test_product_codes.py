"""Product codes: small, close to what they stand for, and stable."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2s_ros.reconstruction.clustering import k_means, nearest_centroids
from d2s_ros.scene_models.landmark.product_codes import PART_DIM, ProductCodes


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize('dim', [128, 130])
def test_codes_are_close_and_small(rng, dim):
    vectors = unit(np.abs(rng.normal(size=(3000, dim))))
    coded = ProductCodes.encode(vectors)
    decoded = coded.decode()
    assert decoded.shape == vectors.shape
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-5)
    # Even random vectors keep most of what they are; real descriptors are less random.
    assert (vectors * decoded).sum(axis=1).min() > 0.9
    parts = -(-dim // PART_DIM)
    assert coded.nbytes == 3000 * parts + parts * 256 * PART_DIM * 2
    # Each is nearest to itself.
    assert ((decoded @ vectors.T).argmax(axis=1) == np.arange(3000)).mean() > 0.999


def test_few_vectors_come_back_as_they_are(rng):
    vectors = unit(rng.normal(size=(200, 64)))
    np.testing.assert_allclose(ProductCodes.encode(vectors).decode(), vectors, atol=1e-3)


def test_the_same_vectors_give_the_same_codes(rng):
    vectors = unit(rng.normal(size=(1000, 32)))
    first, second = ProductCodes.encode(vectors), ProductCodes.encode(vectors.copy())
    np.testing.assert_array_equal(first.codes, second.codes)
    np.testing.assert_array_equal(first.codebook, second.codebook)


def test_k_means_finds_clusters(rng):
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    data = centers[[0, 1] * 50] + torch.from_numpy(rng.normal(0, 0.1, (100, 2))).float()
    found = k_means(data, data[:2].clone())
    torch.testing.assert_close(found, centers, atol=0.1, rtol=0)
    assert nearest_centroids(data, found).tolist() == [0, 1] * 50


def test_an_empty_cluster_keeps_its_centroid():
    data = torch.zeros(4, 2)
    found = k_means(data, torch.tensor([[0.0, 0.0], [9.0, 9.0]]))
    assert found.tolist() == [[0, 0], [9, 9]]
