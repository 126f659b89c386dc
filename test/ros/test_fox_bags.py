"""Real photographs end to end: a log becomes a map, and the node localizes another log over DDS."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from ros.helpers import RELIABLE

from d2s_ros.data.bags import BagSource
from d2s_ros.data.tum import read_tum
from d2s_ros.geometry.transforms import RigidTransform, pose_error

pytestmark = pytest.mark.ros


class EveryOther:
    """Half of a log, as the comparison needs no good map."""

    def __init__(self, source):
        self._source = source

    def __len__(self):
        return (len(self._source) + 1) // 2

    def __iter__(self):
        return (frame for index, frame in enumerate(self._source) if index % 2 == 0)


@pytest.fixture(scope='module')
def fox_bags(shared_data):
    folder = shared_data / 'fox_bags'
    if not folder.is_dir():
        pytest.skip(f'{folder} is not there')
    return folder


@pytest.fixture(scope='module')
def fox_map(fox_bags, tmp_path_factory):
    from d2s_ros.features.types import FeatureConfig
    from d2s_ros.map_building.config import budget
    from d2s_ros.map_building.pipeline import build_map

    config = budget('quick', features=FeatureConfig(max_keypoints=1024))
    config = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, steps=8),
        max_landmarks=2048,
        keep_update_data=False,
    )
    source = BagSource(fox_bags / 'map', poses=fox_bags / 'map_groundtruth_tum.txt')
    path = tmp_path_factory.mktemp('fox') / 'map'
    build_map(EveryOther(source), path, config, device='cpu', progress=False)
    return path


def test_the_node_gives_the_poses_of_the_localizer(fox_bags, fox_map, start_process, tmp_path):
    from d2s_ros.localization.localizer import Localizer

    localizer = Localizer.from_map(fox_map, device='cpu')
    expected = {
        frame.stamp_ns: localizer.localize(frame.image, frame.camera)
        for frame in BagSource(fox_bags / 'query')
    }
    localized = {stamp for stamp, result in expected.items() if result.localized}
    assert len(expected) == 10
    assert len(localized) >= 8

    parameters = {**RELIABLE, 'map': fox_map, 'device': 'cpu', 'diagnostics_period': 0.1}
    node = start_process(
        'd2s_ros.ros.localizer_node',
        '--ros-args',
        *(part for key, value in parameters.items() for part in ('-p', f'{key}:={value}')),
    )
    output = tmp_path / 'record.json'
    player = start_process(
        'd2s_ros.ros.bag_player',
        *(fox_bags / 'query', '--lock-step', '--timeout', '150', '--record', output),
    )
    assert player.wait(400) == 0
    assert node.running
    record = json.loads(output.read_text())

    found = {frame['stamp_ns']: frame for frame in record['frames']}
    assert found.keys() == expected.keys()
    for stamp, frame in found.items():
        assert frame['status'] == expected[stamp].status.value
        assert int(frame['values']['inliers']) == expected[stamp].num_inliers
    poses = {row['stamp_ns']: row for row in record['poses']}
    assert poses.keys() == localized
    truth = read_tum(fox_bags / 'query_groundtruth_tum.txt')
    errors = []
    for stamp, row in poses.items():
        pose, result = RigidTransform.from_tum(row['pose']), expected[stamp]
        np.testing.assert_allclose(pose.matrix, result.map_from_camera.matrix, atol=1e-6)
        covariance = np.array(row['covariance']).reshape(6, 6)
        np.testing.assert_allclose(covariance, result.covariance, rtol=1e-6, atol=1e-12)
        assert row['frame'] == 'map'
        errors.append(pose_error(pose, truth.at(stamp)))
    # A coarse map of half the photographs; scene units and degrees.
    assert np.median([error for error, _ in errors]) < 0.03
    assert np.median([degrees for _, degrees in errors]) < 0.3
    sent = {row['stamp_ns']: row for row in record['transforms'] if row['parent'] == 'map'}
    assert sent.keys() == localized
    for stamp, row in sent.items():
        assert row['child'] == 'camera_optical_frame'
        np.testing.assert_allclose(row['transform'], poses[stamp]['pose'], atol=1e-12)


def test_damaged_maps_are_refused_in_one_line(fox_map, start_process, tmp_path):
    import shutil

    damaged = tmp_path / 'damaged'
    shutil.copytree(fox_map, damaged)
    weights = next(damaged.rglob('localization.safetensors'))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    node = start_process('d2s_ros.ros.localizer_node', '--ros-args', '-p', f'map:={damaged}')
    assert node.wait(200) == 3
    assert 'is damaged' in node.output
    assert 'Traceback' not in node.output
