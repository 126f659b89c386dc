"""A simulated robot with drifting odometry: map -> odom over real /tf puts it where it is."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from ros.helpers import RELIABLE

from d2s_ros.data.bags import BagSource
from d2s_ros.data.tum import read_tum
from d2s_ros.geometry.transforms import RigidTransform, pose_error, vector_from_rotation
from d2s_ros.ros.transform_buffer import TransformBuffer

# A map is built: minutes on a busy machine.
pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.timeout(1800)]


def read_transforms(bag):
    """Return a buffer with the log's /tf and /tf_static."""
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    buffer = TransformBuffer(cache_ns=10**12)
    store = get_typestore(Stores.ROS2_JAZZY)
    with AnyReader([bag], default_typestore=store) as reader:
        connections = [c for c in reader.connections if c.topic in ('/tf', '/tf_static')]
        for connection, _, data in reader.messages(connections):
            message: Any = reader.deserialize(data, connection.msgtype)
            for item in message.transforms:
                t, q = item.transform.translation, item.transform.rotation
                buffer.insert(
                    item.header.frame_id,
                    item.child_frame_id,
                    item.header.stamp.sec * 10**9 + item.header.stamp.nanosec,
                    (t.x, t.y, t.z, q.x, q.y, q.z, q.w),
                    static=connection.topic == '/tf_static',
                )
    return buffer


@pytest.fixture(scope='module')
def logs(tmp_path_factory):
    from d2s_ros.map_building.config import budget
    from d2s_ros.map_building.pipeline import build_map
    from d2s_ros.simulation.config import SimulationConfig
    from d2s_ros.simulation.simulate import simulate_log

    folder = tmp_path_factory.mktemp('odometry')
    simulate_log(SimulationConfig(seed=3, frames=48), folder / 'map_log', progress=False)
    # Another drive past what was mapped, as a robot makes.
    query = SimulationConfig(seed=3, frames=20, trajectory_seed=5, odometry=True, poses=False)
    simulate_log(query, folder / 'query_log', progress=False)
    # Little training: frames and covariance are what is tested, not the best accuracy.
    config = budget('quick')
    config = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, steps=20),
        keep_update_data=False,
    )
    build_map(BagSource(folder / 'map_log'), folder / 'map', config, device='cpu', progress=False)
    return folder


@pytest.mark.parametrize('fused', [False, True])
def test_map_to_odom_puts_the_robot_where_it_is(logs, start_process, tmp_path, fused):
    node_parameters = {
        'fuse_odometry': fused,
        **RELIABLE,
        'map': logs / 'map',
        'device': 'cpu',
        'tf_mode': 'map_to_odom',
        'transform_tolerance': 0.2,
        'transform_timeout': 2.0,
        'diagnostics_period': 0.1,
    }
    start_process(
        'd2s_ros.ros.localizer_node',
        '--ros-args',
        *(part for key, value in node_parameters.items() for part in ('-p', f'{key}:={value}')),
    )
    output = tmp_path / 'record.json'
    player = start_process(
        'd2s_ros.ros.bag_player',
        *(logs / 'query_log', '--lock-step', '--timeout', '150', '--record', output),
    )
    assert player.wait(400) == 0
    record = json.loads(output.read_text())
    # Images that a slow machine did not answer in time were sent again.
    frames = [row for row in record['frames'] if row['status'] != 'duplicate_stamp']
    assert len(frames) == 20
    assert len(record['poses']) >= 16

    odometry = read_transforms(logs / 'query_log')
    truth = read_tum(logs / 'query_log' / 'groundtruth_tum.txt')
    base_from_camera = odometry.lookup('base_link', 'camera_optical_frame', None).target_from_source
    sent = {row['stamp_ns']: row for row in record['transforms'] if row['parent'] == 'map'}
    distances, drifts = [], []
    for row in record['poses']:
        stamp = row['stamp_ns']
        correction = sent[stamp + 200_000_000]
        assert correction['child'] == 'odom'
        odom_from_base = odometry.lookup('odom', 'base_link', stamp).target_from_source
        map_from_odom = RigidTransform.from_tum(correction['transform'])
        map_from_base = map_from_odom @ odom_from_base
        # What a robot gets from /tf is the published pose.
        published = RigidTransform.from_tum(row['pose'])
        np.testing.assert_allclose(map_from_base.matrix, published.matrix, atol=1e-6)
        true = truth.at(stamp) @ base_from_camera.inverse()
        error = np.r_[
            map_from_base.translation - true.translation,
            vector_from_rotation(map_from_base.rotation @ true.rotation.T),
        ]
        covariance = np.array(row['covariance']).reshape(6, 6)
        distances.append(float(error @ np.linalg.solve(covariance, error)))
        drifts.append(
            pose_error(
                map_from_odom, RigidTransform.from_tum(next(iter(sent.values()))['transform'])
            )[0]
        )
    # Six degrees of freedom: 22.5 holds 99.9 % of what the covariance promises.
    assert np.mean(np.array(distances) < 22.5) >= 0.9, distances
    # Odometry drifts, so the correction is not constant.
    assert max(drifts) > 0.02
