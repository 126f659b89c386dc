"""Arguments of launch files: strict, and typed as the parameters are."""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from d2s_ros.errors import ConfigError
from d2s_ros.ros.launch_arguments import boolean, names_a_map, parameter_file, typed

LISTS = ('base_from_camera', 'rig_image_topics', 'rig_camera_info_topics')


@pytest.mark.parametrize('value', ['true', 'True', '1', 'yes', 'on'])
def test_switches_that_are_on(value):
    assert boolean('fuse_odometry', value)
    assert typed('use_sim_time', value) is True


def test_switches_that_are_nothing():
    assert not boolean('updates', 'off')
    with pytest.raises(ConfigError, match="fuse_odometry is 'maybe'"):
        typed('fuse_odometry', 'maybe')


def test_types():
    assert typed('odometry_drift', '1') == 1.0
    assert typed('image_topic', '/camera/image') == '/camera/image'
    assert typed('base_from_camera', '[0, 0, 1.5, 0, 0, 0, 1]') == [0, 0, 1.5, 0, 0, 0, 1]
    for name, value in (('transform_hold', 'long'), ('base_from_camera', '5')):
        with pytest.raises(ConfigError, match=name):
            typed(name, value)


def test_files(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'p.yaml').write_text('/**:\n  ros__parameters:\n    map: ~/maps/1\n')
    (tmp_path / 'q.yaml').write_text('localizer:\n  ros__parameters:\n    map: ""\n')
    assert names_a_map(parameter_file('params_file', '~/p.yaml'))
    assert not names_a_map(parameter_file('params_file', str(tmp_path / 'q.yaml')))
    with pytest.raises(ConfigError, match=r'no file /nope\.yaml'):
        parameter_file('params_file', '/nope.yaml')


def test_every_argument_of_the_launch_file_has_a_type(repo_root):
    pytest.importorskip('launch_ros', reason='launch is not installed; a ROS distribution has it')
    import runpy

    path = repo_root / 'launch' / 'localize.launch.py'
    for name in runpy.run_path(str(path))['PARAMETERS']:
        typed(name, '[]' if name in LISTS else '1')
