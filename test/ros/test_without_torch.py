"""The node of a robot without PyTorch, over real DDS."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from ros.helpers import RELIABLE

from d2s_ros.data.sources import open_source
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.localizer import Localizer

pytestmark = [
    pytest.mark.ros,
    pytest.mark.skipif(
        os.environ.get('D2S_KERNELS') == 'reference',
        reason='without PyTorch only the compiled kernels compute',
    ),
]


def test_the_node_gives_the_poses_that_it_gives_with_torch(
    repo_root, building_logs, start_process, tmp_path, compiled_kernels
):
    path, log = repo_root / 'test' / 'data' / 'map_format_2', building_logs / 'map'
    parameters = {**RELIABLE, 'map': path, 'diagnostics_period': 0.1}
    node = start_process(
        repo_root / 'test' / 'without_torch.py',
        *('d2s_ros.ros.localizer_node', '--ros-args'),
        *(part for key, value in parameters.items() for part in ('-p', f'{key}:={value}')),
    )
    output = tmp_path / 'record.json'
    player = start_process(
        'd2s_ros.ros.bag_player',
        *(log, '--lock-step', '--timeout', '150', '--record', output),
    )
    assert player.wait(300) == 0
    assert node.running
    found = {row['stamp_ns']: row['pose'] for row in json.loads(output.read_text())['poses']}
    localizer = Localizer.from_map(path, device='cpu')
    expected = {
        frame.stamp_ns: localizer.localize(frame.image, frame.camera).map_from_camera
        for frame in open_source(log)
    }
    expected = {stamp: pose for stamp, pose in expected.items() if pose is not None}
    assert found.keys() == expected.keys()
    assert len(found) >= 5
    for stamp, pose in expected.items():
        matrix = RigidTransform.from_tum(found[stamp]).matrix
        np.testing.assert_allclose(matrix, pose.matrix, rtol=1e-4, atol=1e-5)
