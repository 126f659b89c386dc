"""What keeps the memory of a build bounded when there are many images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scene_models.made_up_scene import made_up_reconstruction

from d2s_ros.data.array_log import ArrayLog
from d2s_ros.features.types import FeatureConfig, FeatureExtractor
from d2s_ros.geometry.statistics import subsample
from d2s_ros.map_building.calibration import calibration_images
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.scene_model import train_map
from d2s_ros.map_building.stages import BuildStages, keep_features, load_features
from d2s_ros.maps.update_data import collect_update_data
from d2s_ros.reconstruction.pair_matching import select_pairs
from d2s_ros.reconstruction.reconstruction import ImageInput, ReconstructionConfig
from d2s_ros.reconstruction.retrieval import nearest_images
from d2s_ros.scene_models.landmark.table import build_landmarks


class MadeUpFeatures(FeatureExtractor):
    config = FeatureConfig()
    dim = 32
    weights_hash = 'made-up'

    def extract(self, image, mask=None):
        raise NotImplementedError


def test_pairs_grow_linearly():
    counts = {}
    for count in (60, 120, 240):
        reconstruction = made_up_reconstruction(num_images=count, num_points=60, num_clutter=5)
        images = [
            ImageInput(i.name, i.stamp_ns, i.camera, i.map_from_camera, i.features)
            for i in reconstruction.images
        ]
        counts[count] = len(select_pairs(images, ReconstructionConfig()))
    # Ten neighbours by content, six by pose, one in time; all pairs of 240 would be 28,680.
    assert all(count_pairs <= 17 * count for count, count_pairs in counts.items())
    assert counts[240] < 2.3 * counts[120]


def test_nearest_images_of_many_queries(rng):
    """More queries than are compared at once."""
    described = rng.normal(size=(2500, 16)).astype(np.float32)
    described /= np.linalg.norm(described, axis=1, keepdims=True)
    found = nearest_images(described, described, 3)
    assert found.shape == (2500, 3)
    assert (found[:, 0] == np.arange(2500)).all()
    for row in (0, 1023, 1024, 2499):
        order = np.argsort(-(described @ described[row]), kind='stable')
        assert found[row].tolist() == order[:3].tolist()
    assert nearest_images(described[:0], described, 3).shape == (0, 3)


def test_update_data_is_bounded():
    reconstruction = made_up_reconstruction(num_images=40, num_points=900, num_clutter=600)
    count = BuildConfig().update_keypoints
    whole = collect_update_data(reconstruction, max_keypoints=count, max_megabytes=500.0)
    bounded = collect_update_data(reconstruction, max_keypoints=count, max_megabytes=1.0)
    per_keypoint = ('descriptors', 'descriptor_scales', 'keypoints', 'scales', 'point_idx')
    size = sum(bounded[name].nbytes for name in per_keypoint)
    assert 0.9e6 < size <= 1.0e6
    assert sum(whole[name].nbytes for name in per_keypoint) > 1.5e6
    # Keypoints with a point come first.
    share = (bounded['point_idx'] >= 0).mean()
    assert share > (whole['point_idx'] >= 0).mean()


def test_only_images_that_training_looks_at_are_sampled(tmp_path):
    reconstruction = made_up_reconstruction(num_images=60)
    config = BuildConfig(steps_per_image=1, num_layers=1)
    config = replace(
        config,
        training=replace(config.training, steps=5, images_per_step=2, keypoints_per_image=32),
    )
    with BuildStages(tmp_path / 'map', {}) as stages:
        _, figures = train_map(reconstruction, MadeUpFeatures(), config, stages=stages)
        assert figures['training']['steps'] == 5
        kept = ArrayLog(tmp_path / 'map.building' / 'samples.log', read_only=True)
        indices = sorted(int(key) for key in kept.keys() if key.isdigit())  # noqa: SIM118
    held_out = list(range(4, 60, 8))
    trained = sorted(set(indices) - set(held_out))
    assert len(trained) == 10
    # From all over the log.
    assert trained[0] == 0
    assert trained[-1] == 59
    assert max(np.diff(trained)) <= 8


def test_thinning():
    assert subsample([], 5) == []
    assert subsample([4, 5, 6], 5) == [4, 5, 6]
    assert subsample(list(range(100)), 3) == [0, 50, 99]
    judged = calibration_images(10_000, list(range(4, 10_000, 8)))
    assert len(judged) <= 260
    assert judged[0] == 0
    assert judged[-1] == 9999


def test_features_are_mapped_not_held(tmp_path):
    """A build's descriptors are views of the file, and stay so in tensors."""
    reconstruction = made_up_reconstruction(num_images=2)
    with BuildStages(tmp_path / 'map', {}) as stages:
        log = stages.log('features')
        for image in reconstruction.images:
            assert keep_features(log, image.name, image.features)
        for image in reconstruction.images:
            loaded = load_features(log, image.name)
            assert not loaded.descriptors.flags.owndata
            np.testing.assert_array_equal(loaded.descriptors, image.features.descriptors)
            assert loaded.image_size == image.features.image_size
            tensor = torch.from_numpy(loaded.descriptors)
            assert tensor.data_ptr() == loaded.descriptors.ctypes.data
    # The file is gone, its pages are not.
    assert not (tmp_path / 'map.building').exists()
    assert np.isfinite(loaded.descriptors).all()


def test_keys_are_the_means_of_their_tracks():
    """Also where few of the points become landmarks."""
    reconstruction = made_up_reconstruction(num_images=20, num_points=150)
    table, statistics = build_landmarks(reconstruction, max_landmarks=40)
    assert len(table) == 40
    point_idx = np.flatnonzero(statistics.landmark_of_point >= 0)
    for point in point_idx[::7]:
        descriptors = np.concatenate(
            [i.features.descriptors[i.point_idx == point] for i in reconstruction.images]
        )
        mean = descriptors.sum(axis=0)
        landmark = statistics.landmark_of_point[point]
        np.testing.assert_allclose(
            table.keys[landmark], mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-5
        )
        assert statistics.counts[landmark] == len(descriptors)
