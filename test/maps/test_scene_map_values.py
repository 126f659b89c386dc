"""What is written into a map comes back with the same values."""

from __future__ import annotations

import numpy as np

from d2s_ros.config import to_dict
from d2s_ros.features.types import FeatureConfig
from d2s_ros.maps.manifest import MapManifest
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.model import LandmarkModel
from d2s_ros.scene_models.landmark.network import LandmarkNetwork
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork
from d2s_ros.scene_models.landmark.table import LandmarkTable


def test_landmarks_survive(tmp_path, rng):
    roots = rng.normal(size=(50, 3, 3))
    covariances = (roots @ roots.transpose(0, 2, 1)).astype(np.float32)
    keys = rng.normal(size=(50, 128)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    points = rng.normal(size=(50, 3)).astype(np.float32)
    table = LandmarkTable(keys, points, covariances, np.zeros(3, np.float32), 2.0)
    config = LandmarkConfig()
    network = LandmarkNetwork(config)
    manifest = MapManifest(FeatureConfig(), 'none', 'landmark', to_dict(config), ())
    MapStore(tmp_path / 'map').write(
        SceneMap(manifest, LandmarkModel(table, StoredNetwork.of(network)))
    )
    opened = SceneMap.open(tmp_path / 'map').model
    assert isinstance(opened, LandmarkModel)
    found = opened.table
    np.testing.assert_array_equal(found.covariances, covariances)
    np.testing.assert_array_equal(found.points_in_map, points)
    np.testing.assert_allclose(found.keys, keys, atol=2e-3)
    assert np.linalg.eigvalsh(found.covariances).min() > 0
