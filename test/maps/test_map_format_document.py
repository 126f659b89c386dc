"""docs/reference/map_format.md lists what is written, no more, no less; what is written is read."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from map_update.worlds import Room, mapping_data
from maps.test_scene_map import make_map
from safetensors.numpy import load_file

from d2s_ros.maps.files import LOCALIZATION_FILE, MANIFEST_FILE, UPDATE_FILE
from d2s_ros.maps.manifest import FORMAT_VERSION
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import MappingData, collect_update_data


@pytest.fixture(scope='module')
def data():
    """Return mapping images of a made-up room, of two logs."""
    room = Room(seed=3)
    found, _ = mapping_data(room)
    found.logs[-1] = 'monday'
    return found


@pytest.fixture(scope='module')
def written(data, tmp_path_factory):
    """Return the folder of a version with update data."""
    reconstruction = data.reconstruction()
    colours = np.full((len(reconstruction.points_in_map), 3), 128, np.uint8)
    update_data = collect_update_data(
        reconstruction, max_keypoints=1024, max_megabytes=100.0, logs=data.logs, colours=colours
    )
    root = tmp_path_factory.mktemp('maps') / 'map'
    return MapStore(root).write(make_map(), update_data).path


def documented(repo_root, heading):
    """Return names and types of the rows of the first table below a heading."""
    text = (repo_root / 'docs' / 'reference' / 'map_format.md').read_text()
    section = text[text.index(heading) :].split('\n## ')[0]
    found = {}
    for row in re.findall(r'^\| (`.*)\|$', section, re.MULTILINE):
        names, types, *_ = row.split(' | ')
        kinds = re.findall(r'u?int\d+|float\d+', types)
        for position, name in enumerate(re.findall(r'`([^`]+)`', names)):
            found[name] = kinds[min(position, len(kinds) - 1)] if kinds else ''
    return found


@pytest.mark.parametrize('file', [LOCALIZATION_FILE, UPDATE_FILE])
def test_every_tensor_is_documented(written, repo_root, file):
    tensors = load_file(written / file)
    expected = documented(repo_root, f'## {file}')
    network = expected.pop('network.*', None)
    assert (network == 'float16') == (file == LOCALIZATION_FILE)
    found = {
        name: str(value.dtype) for name, value in tensors.items() if not name.startswith('network.')
    }
    assert found == expected


def test_every_key_of_the_manifest_is_documented(written, repo_root):
    document = json.loads((written / MANIFEST_FILE).read_bytes())
    assert set(document) == set(documented(repo_root, '## manifest.json'))
    text = (repo_root / 'docs' / 'reference' / 'map_format.md').read_text()
    assert f'# Map format, version {FORMAT_VERSION}\n' in text


def test_update_data_comes_back(data, written):
    found = MappingData.from_map(SceneMap.open(written))
    assert found.logs == data.logs
    np.testing.assert_allclose(found.points_in_map, data.points_in_map, atol=1e-5)
    assert len(found.images) == len(data.images)
    for image, original in zip(found.images, data.images, strict=True):
        assert (image.name, image.stamp_ns) == (original.name, original.stamp_ns)
        assert image.camera == original.camera
        np.testing.assert_allclose(
            image.map_from_camera.matrix, original.map_from_camera.matrix, atol=1e-9
        )
        np.testing.assert_array_equal(image.point_idx, original.point_idx)
        np.testing.assert_array_equal(image.features.keypoints, original.features.keypoints)
        cosine = (image.features.descriptors * original.features.descriptors).sum(axis=1)
        assert cosine.min() > 0.999


def test_every_tensor_of_labels_is_documented(label_map, repo_root):
    tensors = load_file(label_map / 'versions' / '0001' / LOCALIZATION_FILE)
    expected = documented(repo_root, f'## {LOCALIZATION_FILE} of labels')
    assert expected.pop('network.*') == 'float16'
    found = {
        name: str(value.dtype) for name, value in tensors.items() if not name.startswith('network.')
    }
    assert found == expected
