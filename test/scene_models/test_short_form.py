"""Short tables: small, close to what they stand for, stable, refused where they cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from maps.test_scene_map import make_map
from safetensors.numpy import load_file, save

from d2s_ros.errors import ConfigError
from d2s_ros.maps.files import LOCALIZATION_FILE
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.model import LandmarkModel
from d2s_ros.scene_models.landmark.network import LandmarkNetwork
from d2s_ros.scene_models.landmark.short_form import ShortForm
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork
from d2s_ros.scene_models.landmark.table import LandmarkTable


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def made_up(rng, count=500, dim=128):
    """Keys near a plane of 16 dimensions, points 20 units apart, long thin covariances."""
    keys = rng.normal(size=(count, 16)) @ rng.normal(size=(16, dim)) + 0.1 * rng.normal(size=dim)
    points = (rng.uniform(-10, 10, (count, 3)) + 300.0).astype(np.float32)
    turn = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    sigmas = 10.0 ** rng.uniform(-5, -2, (count, 1)) * np.array([1.0, 2.0, 60.0])
    half = turn * sigmas[:, None]
    return unit(keys), points, (half @ half.transpose(0, 2, 1)).astype(np.float32)


def test_what_comes_back_is_close(rng):
    keys, points, covariances = made_up(rng)
    short = ShortForm.encode(keys, points, covariances, 16)
    assert sum(value.nbytes for value in short.tensors().values()) < 500 * 31 + 17 * 256 + 50
    assert (short.keys() * keys).sum(axis=1).min() > 0.98
    np.testing.assert_allclose(np.linalg.norm(short.keys(), axis=1), 1, atol=1e-5)
    # Half a step of the grid, and half a step of float32.
    assert np.abs(short.points_in_map() - points).max() < 3e-5
    back = short.covariances().astype(np.float64)
    assert np.linalg.eigvalsh(back).min() > 0
    scale = np.trace(covariances, axis1=1, axis2=2)[:, None, None]
    assert np.abs((back - covariances) / scale).max() < 2e-3


def test_others_come_back_as_those_of_the_map_do(rng):
    keys, points, covariances = made_up(rng)
    short = ShortForm.encode(keys, points, covariances, 16)
    np.testing.assert_array_equal(short.keys_like(keys), short.keys())
    np.testing.assert_array_equal(short.points_like(points), short.points_in_map())
    # Beyond the grid is its edge.
    outside = short.points_like(points[:1] + np.float32(1000))
    assert np.abs(outside - points.max(axis=0)).max() < 40


def model(rng):
    keys, points, covariances = made_up(rng)
    center = np.full(3, 300, np.float32)
    config = LandmarkConfig(descriptor_dim=128, num_landmarks=500, width=16, short_keys=16)
    table = LandmarkTable(keys, points, covariances, center, 10.0)
    return LandmarkModel(table.coded(16), StoredNetwork.of(LandmarkNetwork(config)))


def test_a_model_comes_back_and_is_written_again_as_it_was(rng):
    first = model(rng)
    tensors = first.tensors()
    second = LandmarkModel.from_tensors(first.network_config, tensors)
    for name in ('keys', 'points_in_map', 'covariances', 'center'):
        np.testing.assert_array_equal(getattr(first.table, name), getattr(second.table, name))
    assert second.table.extent == first.table.extent
    again = second.tensors()
    assert again.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, again[name])


CHANGES = {
    'codes of another count': lambda t: {'short.codes': t['short.codes'][:20]},
    'codes of another type': lambda t: {'short.codes': t['short.codes'].astype(np.int16)},
    'too few components': lambda t: {'short.components': t['short.components'][1:].copy()},
    'steps that are not numbers': lambda t: {'short.steps': t['short.steps'] * np.float16(np.nan)},
    'no step of the grid': lambda t: {'short.grid': t['short.grid'] * 0},
    'points beyond all bounds': lambda t: {'short.grid': t['short.grid'] + np.float32(1e20)},
    'covariances of zero': lambda t: {'short.factors': t['short.factors'] * 0},
    'negative covariances': lambda t: {'short.factors': -t['short.factors']},
    'a negative unit': lambda t: {'short.unit': -t['short.unit']},
    'no extent': lambda t: {'extent': t['extent'][:0]},
    'a center that is too far': lambda t: {'center': t['center'] + np.float32(1e20)},
    'no landmarks': lambda t: {
        name: value[:0].copy()
        for name, value in t.items()
        if name in ('short.codes', 'short.steps', 'short.points', 'short.factors')
    },
}


@pytest.mark.parametrize('name', CHANGES)
def test_tables_that_cannot_be_are_refused(rng, name):
    good = model(rng)
    tensors = good.tensors()
    with pytest.raises(ValueError, match=r'short|extent|points|center|landmarks'):
        LandmarkModel.from_tensors(good.network_config, {**tensors, **CHANGES[name](tensors)})


def test_a_map_with_short_keys_opens_and_one_without_them_does_not_pretend(rng, tmp_path):
    scene_map = make_map()
    short = model(rng)
    manifest = replace(scene_map.manifest, network=short.network_config)
    MapStore(tmp_path / 'map').write(replace(scene_map, manifest=manifest, model=short))
    opened = SceneMap.open(tmp_path / 'map')
    assert isinstance(opened.model, LandmarkModel)
    assert opened.model.network.config.short_keys == 16
    np.testing.assert_array_equal(opened.model.table.keys, short.table.keys)
    tensors = load_file(tmp_path / 'map' / 'versions' / '0001' / LOCALIZATION_FILE)
    assert not {'points', 'covariances', 'key_codes'} & set(tensors)
    assert len(save(tensors)) == opened.localization_size_bytes()
    plain = {**short.network_config, 'short_keys': 0}
    with pytest.raises(KeyError, match='key_codebook'):
        LandmarkModel.from_tensors(plain, tensors)


@pytest.mark.parametrize('count', [15, 130])
def test_components_are_even_and_not_more_than_there_are(count):
    with pytest.raises(ConfigError, match='short_keys'):
        LandmarkConfig(descriptor_dim=128, short_keys=count)
