"""The network that descriptors pass before they are compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scene_models.made_up_scene import made_up_reconstruction

from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.descriptor_network import DescriptorNetwork
from d2s_ros.scene_models.landmark.descriptor_training import (
    DescriptorTrainingConfig,
    train_descriptors,
)
from d2s_ros.scene_models.landmark.network import LandmarkNetwork
from d2s_ros.scene_models.landmark.stored_descriptors import StoredDescriptorNetwork
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork

CONFIG = LandmarkConfig(descriptor_dim=32, num_landmarks=100, width=16, descriptor_width=24)
FAST = DescriptorTrainingConfig(steps=60, seeds=64)


def unit(array):
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


def scene(seed=0, shared=3.0):
    """A scene in which most of a descriptor is a disturbance that every observation has anew."""
    reconstruction = made_up_reconstruction(num_images=14, num_points=200, seed=seed)
    rng = np.random.default_rng(seed + 1)
    # Six directions hold what differs between the views of a point: another light, say.
    directions = np.linalg.qr(np.random.default_rng(99).normal(size=(32, 6)))[0].T
    images = []
    for image in reconstruction.images:
        count = len(image.point_idx)
        disturbed = (
            image.features.descriptors
            + shared * 0.3 * rng.normal(size=(count, 6)).astype(np.float32) @ directions
        )
        images.append(replace(image, features=replace(image.features, descriptors=unit(disturbed))))
    return replace(reconstruction, images=images)


def share_found_again(reconstruction, images):
    """Return how many observations in some images are most like their own point elsewhere."""
    dim = reconstruction.images[0].features.descriptors.shape[1]
    sums = np.zeros((len(reconstruction.points_in_map), dim))
    for index, image in enumerate(reconstruction.images):
        seen = image.point_idx >= 0
        if index not in images:
            np.add.at(sums, image.point_idx[seen], image.features.descriptors[seen])
    keys = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    right = []
    for index in images:
        image = reconstruction.images[index]
        seen = np.flatnonzero(image.point_idx >= 0)
        nearest = (image.features.descriptors[seen] @ keys.T).argmax(axis=1)
        right += (nearest == image.point_idx[seen]).tolist()
    return np.mean(right)


def stored(network):
    return StoredDescriptorNetwork({n: v.numpy() for n, v in network.state_dict().items()})


def test_it_changes_nothing_before_it_is_trained():
    descriptors = unit(np.random.default_rng(0).normal(size=(50, 32)))
    network = train_descriptors(scene(), [0, 1], CONFIG, replace(FAST, steps=0))
    np.testing.assert_allclose(stored(network)(descriptors), descriptors, atol=1e-6)


def test_it_learns_what_does_not_matter_in_a_place():
    """Of images that it did not see, it lets more keypoints find their point."""
    reconstruction = scene()
    left_out = [3, 9]
    learned_from = [i for i in range(len(reconstruction.images)) if i not in left_out]
    network = train_descriptors(reconstruction, learned_from, CONFIG, FAST)
    before = share_found_again(reconstruction, left_out)
    after = share_found_again(stored(network).of_reconstruction(reconstruction), left_out)
    assert before < 0.9
    assert after > before + 0.05


def test_training_is_repeatable():
    one, two = (train_descriptors(scene(), [0, 1, 2], CONFIG, FAST) for _ in range(2))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[name], rtol=0, atol=0)
    other = train_descriptors(scene(), [0, 1, 2], CONFIG, replace(FAST, seed=1))
    assert not torch.equal(one.inner.weight, other.inner.weight)


def test_one_image_teaches_nothing():
    network = train_descriptors(scene(), [0], CONFIG, FAST)
    assert not network.outer.weight.any()


def test_numpy_computes_what_pytorch_does():
    torch.manual_seed(2)
    network = DescriptorNetwork(CONFIG)
    torch.nn.init.normal_(network.outer.weight, std=0.1)
    descriptors = unit(np.random.default_rng(1).normal(size=(70, 32)))
    with torch.inference_mode():
        expected = network(torch.from_numpy(descriptors)).numpy()
    found = stored(network)(descriptors)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(found - descriptors).max() > 0.01


def test_a_map_keeps_it_to_the_last_bit():
    """Keys are made by the network as it is after a map was written and read."""
    trained = train_descriptors(scene(), list(range(14)), CONFIG, FAST)
    network = LandmarkNetwork(CONFIG)
    assert network.descriptors is not None
    network.descriptors.load_state_dict(trained.state_dict())
    written = StoredNetwork.of(network).tensors()
    again = StoredNetwork.from_tensors(CONFIG, written)
    descriptors = unit(np.random.default_rng(1).normal(size=(20, 32)))
    np.testing.assert_array_equal(again.describe(descriptors), stored(trained)(descriptors))


def test_maps_without_it_are_as_they_were():
    config = replace(CONFIG, descriptor_width=0)
    network = LandmarkNetwork(config)
    assert network.descriptors is None
    describe = StoredNetwork.of(network).describe
    descriptors = unit(np.random.default_rng(1).normal(size=(20, 32)))
    assert describe(descriptors) is descriptors
    reconstruction = scene()
    assert describe.of_reconstruction(reconstruction) is reconstruction


def test_missing_weights_are_refused():
    tensors = StoredNetwork.of(LandmarkNetwork(CONFIG)).tensors()
    del tensors['network.descriptors.outer.bias']
    with pytest.raises(ValueError, match=r'descriptors.outer.bias is missing'):
        StoredNetwork.from_tensors(CONFIG, tensors)
