"""The latched topics that show the map itself: its landmarks and where it localizes."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from nav_msgs.msg import OccupancyGrid
from rclpy.parameter import Parameter
from ros.helpers import LATCHED, Collector, wait_for
from ros.stub_localizer import StubLocalizer
from sensor_msgs.msg import PointCloud2

from d2s_ros.maps.files import COVERAGE_FILE
from d2s_ros.ros.localizer_node import LocalizerNode
from d2s_ros.ros.map_loader import LoadedMap
from d2s_ros.ros.map_messages import read_coverage

pytestmark = pytest.mark.ros

POINTS = np.array([[1.0, 2.0, 0.5], [-1.0, 0.0, 2.0]])


def write_coverage(folder):
    """Write what `d2s map coverage` writes, of three cells of half a metre in two rows."""
    verdicts = {(0.25, -0.25): 'gg', (0.75, -0.25): 'gb', (1.25, 0.25): 'bf'}
    words = {'g': 'good', 'b': 'bad', 'f': 'fair'}
    cells = [
        {'middle': [x, y, 1.2], 'views': [{'verdict': words[letter]} for letter in letters]}
        for (x, y), letters in verdicts.items()
    ]
    (folder / COVERAGE_FILE).write_text(json.dumps({'cell': 0.5, 'cells': cells}))


def test_landmarks_and_coverage_are_latched(spinner, client, tf2_msgs, tmp_path):
    (tmp_path / 'current').write_text('0001')
    write_coverage(tmp_path)

    def load(config, device):
        version = (tmp_path / 'current').read_text()
        points = POINTS if version == '0001' else 2 * POINTS
        return LoadedMap(
            StubLocalizer('cpu'),
            'map',
            version,
            scale=1.0 if version == '0001' else 2.0,
            points_in_map=points,
            coverage=read_coverage(tmp_path),
            folder=tmp_path,
        )

    node = LocalizerNode(
        localizer_factory=load,
        context=spinner.context,
        parameter_overrides=[
            Parameter('map', value=str(tmp_path)),
            Parameter('map_check_period', value=0.05),
        ],
    )
    spinner.add(node)
    assert node.start()
    # Whoever comes late gets them too.
    clouds = Collector(client, PointCloud2, '/d2s/map_points', LATCHED)
    grids = Collector(client, OccupancyGrid, '/d2s/coverage', LATCHED)
    cloud = wait_for(lambda: clouds.messages)[-1]
    values = np.frombuffer(cloud.data, '<f4').reshape(-1, 4)
    np.testing.assert_allclose(values, np.array([[1, 2, 0.5, 0.5], [-1, 0, 2, 2]]))
    assert cloud.header.frame_id == 'map'
    grid = wait_for(lambda: grids.messages)[-1]
    assert (grid.info.width, grid.info.height) == (3, 2)
    assert grid.info.resolution == pytest.approx(0.5)
    assert (grid.info.origin.position.x, grid.info.origin.position.y) == (0.0, -0.5)
    assert list(grid.data) == [0, 50, -1, -1, -1, 100]
    # A build and an update predict after the map is live: what comes later is published too.
    (tmp_path / 'new').write_text((tmp_path / COVERAGE_FILE).read_text().replace('bad', 'good'))
    (tmp_path / 'new').replace(tmp_path / COVERAGE_FILE)
    wait_for(lambda: list(grids.messages[-1].data) == [0, 0, -1, -1, -1, 50])
    # `d2s map scale` makes another version: its landmarks are published, and the pose is forgotten.
    node._hint = 'somewhere'
    (tmp_path / 'current').write_text('0002')
    wait_for(lambda: len(clouds.messages) > 1)
    values = np.frombuffer(clouds.messages[-1].data, '<f4').reshape(-1, 4)
    np.testing.assert_allclose(values[:, :3], 2 * POINTS)
    assert node._hint == ''
    spinner.stop()
    assert node.close(10)


@pytest.mark.parametrize(
    'text', ['', '{', '[]', '{"cell": 0.5, "cells": []}', '{"cell": 0, "cells": [{"middle": [1]}]}']
)
def test_a_damaged_coverage_is_none(tmp_path, caplog, text):
    assert read_coverage(tmp_path) is None
    (tmp_path / COVERAGE_FILE).write_text(text)
    assert read_coverage(tmp_path) is None
    assert 'run d2s map coverage again' in caplog.text
