"""What an attacker reads of maps of labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from d2s_ros.features.dense import create_dense
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.privacy.label_contents import LEVERS, DenseFeatures, LabelReader, Labels
from d2s_ros.privacy.shots import OwnScene, Shot
from d2s_ros.scene_models.labels.model import LabelModel
from d2s_ros.scene_models.labels.network import LabelConfig, LabelNetwork
from d2s_ros.scene_models.labels.table import LabelTable

POINTS, SEEN, LABELS = 60, 40, 8


@pytest.fixture(scope='module')
def reader():
    """Return the reader of a map of labels that nothing was learned for."""
    rng = np.random.default_rng(3)
    dense = create_dense('superpoint')
    config = LabelConfig(num_labels=LABELS, hidden=8, max_size=128)
    torch.manual_seed(0)
    network = LabelNetwork(config, dense.channels).eval()
    table = LabelTable(
        rng.standard_normal((POINTS, 3)).astype(np.float32),
        np.tile(np.eye(3, dtype=np.float32), (POINTS, 1, 1)),
        rng.integers(0, LABELS, (POINTS, 3)).astype(np.uint8),
        np.array([0, SEEN]),
        np.arange(SEEN, dtype=np.uint16),
        np.array([[0, 0, 0, 0, 0, 0, 1]], np.float32),
        np.ones((1, 2 * LABELS), np.int8),
    )
    return LabelReader(LabelModel(table, network, dense.weights_hash, (0.0, 1.0)))


def shot_of(rng, point_idx):
    features = LocalFeatures(
        (rng.random((SEEN, 2)) * [128, 96]).astype(np.float32),
        np.ones(SEEN, np.float32),
        rng.standard_normal((SEEN, 128)).astype(np.float32),
        (128, 96),
        np.ones(SEEN, np.float32),
    )
    return Shot(
        'a',
        (rng.random((96, 128)) * 255).astype(np.uint8),
        Camera('pinhole', 128, 96, 100.0, 100.0, 63.5, 47.5),
        RigidTransform.identity(),
        features,
        np.arange(SEEN),
        point_idx,
        np.ones(SEEN, np.float32),
    )


def test_labels_are_one_of_each_level_and_nothing_else(reader, rng):
    point_idx = rng.permutation(POINTS)[:SEEN]
    view = Labels(reader).of_map(shot_of(rng, point_idx))
    one_hot = view.attributes.reshape(SEEN, 3, LABELS)
    assert np.array_equal(one_hot.sum(axis=-1), np.ones((SEEN, 3)))
    assert np.array_equal(one_hot.argmax(axis=-1), reader.model.table.labels[point_idx])
    finest = Labels(reader, LEVERS['finest'])
    assert finest.dim == LABELS
    assert np.array_equal(finest.of_map(shot_of(rng, point_idx)).attributes, one_hot[:, -1])


def test_levers_leave_less(reader, rng):
    """Fewer levels, labels or points; points keep their places and depths."""
    point_idx = rng.permutation(POINTS)[:SEEN]
    shot = shot_of(rng, point_idx)
    labels = reader.model.table.labels[point_idx]
    coarse = Labels(reader, LEVERS['coarse']).of_map(shot).attributes.reshape(SEEN, 2, LABELS)
    assert np.array_equal(coarse.argmax(axis=-1), labels[:, :2])
    few = Labels(reader, replace(LEVERS['few'], count=4))
    assert few.dim == 12
    found = few.of_map(shot).attributes.reshape(SEEN, 3, 4).argmax(axis=-1)
    assert np.array_equal(found, labels % 4)
    # No map has fewer labels than it has.
    assert Labels(reader, LEVERS['few']).dim == 3 * LABELS
    sparse = Labels(reader, LEVERS['sparse']).of_map(shot)
    left = point_idx % 8 == 0
    assert 0 < left.sum() < SEEN / 4
    assert np.array_equal(sparse.pixels, shot.pixels[left])
    assert np.array_equal(sparse.depth, shot.depth[left])


def test_own_labels_are_what_the_heads_tell_of_all_views_of_a_point(reader, rng):
    shots = [shot_of(rng, np.arange(SEEN)), shot_of(rng, np.arange(SEEN))]
    both = OwnScene(shots, np.zeros((SEEN, 128), np.float32), [np.empty(0, np.int64)] * 2)
    alone = OwnScene(shots[:1], both.mean_descriptors, both.unused[:1])
    content = Labels(reader)
    voted = content.of_own(both, 0).attributes
    assert voted.shape == (SEEN, 3 * LABELS)
    assert np.array_equal(voted, content.of_own(both, 1).attributes)
    assert not np.array_equal(voted, content.of_own(alone, 0).attributes)


def test_dense_features_are_those_of_the_finest_level(reader, rng):
    content = DenseFeatures(reader)
    view = content.of_map(shot_of(rng, np.arange(SEEN)))
    assert view.attributes.shape == (SEEN, content.dim) == (SEEN, 320)
    assert np.allclose(np.linalg.norm(view.attributes, axis=1), 1, atol=1e-2)
