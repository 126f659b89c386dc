"""A map of labels in the node, over real DDS: it localizes a bag and refuses another place."""

from __future__ import annotations

import json

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from ros.helpers import RELIABLE

from d2s_ros.data.sources import open_source
from d2s_ros.geometry.transforms import RigidTransform, pose_error

pytestmark = pytest.mark.ros


def test_a_map_of_labels_localizes_a_bag_and_refuses_another_place(
    label_map, building_logs, start_process, tmp_path
):
    parameters = {**RELIABLE, 'map': label_map, 'device': 'cpu', 'diagnostics_period': 0.1}
    node = start_process(
        'd2s_ros.ros.localizer_node',
        '--ros-args',
        *(part for key, value in parameters.items() for part in ('-p', f'{key}:={value}')),
    )
    records = {}
    for log in ('map', 'other'):
        output = tmp_path / f'{log}.json'
        player = start_process(
            'd2s_ros.ros.bag_player',
            *(building_logs / log, '--lock-step', '--timeout', '150', '--record', output),
        )
        assert player.wait(400) == 0
        assert node.running
        records[log] = json.loads(output.read_text())
    truth = {frame.stamp_ns: frame.map_from_camera for frame in open_source(building_logs / 'map')}
    assert {frame['stamp_ns'] for frame in records['map']['frames']} == truth.keys()
    poses = records['map']['poses']
    assert len(poses) >= 3
    for row in poses:
        pose = RigidTransform.from_tum(row['pose'])
        assert pose_error(pose, truth[row['stamp_ns']])[0] < 0.05
    other = records['other']
    foreign = {frame.stamp_ns for frame in open_source(building_logs / 'other')}
    assert {frame['stamp_ns'] for frame in other['frames']} == foreign
    assert not other['poses']
    assert 'localized' not in {frame['status'] for frame in other['frames']}
